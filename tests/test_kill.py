"""A fit that is killed at any moment and resumed ends with the bytes of one that was not interrupted.

Every second kill strikes between two operations on files of the run directory, the others after a certain time of work. `make
test` makes four kills; `TRACIN_KILLS=30 python -m pytest tests/test_kill.py` makes thirty.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from lightning_tracin.directory import RunDirectory
from tests.processes import fit, last_checkpoint

KILLS = int(os.environ.get("TRACIN_KILLS", "4"))

#: Between them: attribution at the end and at once, weights kept and discarded, snapshots within epochs, products and features.
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"when": "snapshot", "keep_snapshots": False, "every_n_train_steps": 2, "preconditioner": "adam"},
    {"projection_dim": 64, "every_n_epochs": 2},
)

#: What changes files, as Python announces it before it is done.
_CHANGES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")


def watched(folder: Path, options: dict[str, Any], die_at: int) -> None:
    """Fit, counting the changes to the run directory; the process kills itself before the one with this number."""
    log, seen = (folder / "changes").open("w"), [0]

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CHANGES and str(arguments[0]).startswith(str(folder / "run")):
            if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
                return
            log.write(f"{Path(str(arguments[0])).relative_to(folder / 'run')}\n")
            log.flush()
            if seen[0] == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            seen[0] += 1

    sys.addaudithook(count)
    fit(folder, **options)


def run_process(folder: Path, options: dict[str, Any], die_at: int = -1, die_after: float = float("inf")) -> tuple[int, float]:
    """Fit in a process of its own, killed at a change or after so many seconds of work: how it ended, and its work."""
    process = multiprocessing.get_context("fork").Process(target=watched, args=(folder, options, die_at))
    process.start()
    assert process.pid is not None
    work = 0.0
    try:
        while process.is_alive():
            try:
                work = max(work, sum(psutil.Process(process.pid).cpu_times()[:2]))
            except psutil.Error:
                break
            if work >= die_after:
                process.kill()
            time.sleep(0.002)
        process.join()
    finally:
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode, work


def said(path: Path) -> dict[str, bytes]:
    """The content of every file of a run directory, but for the fit's identity."""
    identity = RunDirectory(path).record().run.encode()
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and file.name != "lock"]
    contents = {str(file.relative_to(path)): file.read_bytes().replace(identity, b"identity") for file in files}
    return {
        name: re.sub(rb'"checksum": "\w+"', b"", content) if name.endswith(".json") else content
        for name, content in contents.items()
    }


class Whole:
    """A fit that is not interrupted."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        folder.mkdir()
        code, self.work = run_process(folder, options)
        assert code == 0
        self.contents = said(folder / "run")
        self.changes = len((folder / "changes").read_text().splitlines())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The uninterrupted fit of each way, made when it is asked for."""
    made: dict[int, Whole] = {}
    folder = tmp_path_factory.mktemp("whole")
    return lambda way: made.get(way) or made.setdefault(way, Whole(folder / str(way), WAYS[way]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are started by fork")
@pytest.mark.parametrize("number", range(KILLS))
def test_killed_fit_ends_with_the_same_bytes(tmp_path: Path, whole: Any, number: int) -> None:
    way = number % len(WAYS)
    reference, generator = whole(way), random.Random(number)
    share = (number // 2 + generator.random()) / (-(-KILLS // 2))  # moments of both kinds are spread over the whole fit
    if number % 2 == 0:
        code, work = run_process(tmp_path, WAYS[way], die_at=int(share * reference.changes))
    else:
        code, work = run_process(tmp_path, WAYS[way], die_after=share * reference.work)
    changes = (tmp_path / "changes").read_text().splitlines()
    print(
        f"kill {number}: {WAYS[way]}, after {work:.2f} s of {reference.work:.2f} and {len(changes)} of {reference.changes}",
        end="",
    )
    print(f" changes, last {changes[-1] if changes else 'none'}")
    assert code == -signal.SIGKILL or number % 2, "the fit ended before it was killed"
    if code != 0:
        if last_checkpoint(tmp_path) is None:  # there is nothing to resume, so the user deletes what there is
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
        assert run_process(tmp_path, WAYS[way])[0] == 0
    ended = said(tmp_path / "run")
    assert ended.keys() == reference.contents.keys()
    assert not [name for name, content in ended.items() if content != reference.contents[name]]
