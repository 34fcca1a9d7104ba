"""A fit, or an attribution after it, that is killed at any moment and resumed ends with the bytes of one that was not.

Every second kill strikes between two operations on files of the run directory, the others after a certain time of work. `make
test` kills four fits and two attributions; `TRACIN_KILLS=30 python -m pytest tests/guarantees/test_kill.py` thirty and fifteen.
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
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from lightning_tracin.storage.directory import RunDirectory
from tests.support.processes import attributed, fit, last_checkpoint

KILLS = int(os.environ.get("TRACIN_KILLS", "4"))

#: Between them: attribution at the end and at once, weights kept and discarded, snapshots within epochs, products and features.
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"when": "snapshot", "keep_snapshots": False, "every_n_train_steps": 2, "preconditioner": "adam"},
    {"projection_dim": 64, "every_n_epochs": 2, "preconditioner": "adam-fisher"},
    {"method": "ekfac"},
)

#: Attribution in a process of its own: products and features.
WAYS_LATER: tuple[dict[str, Any], ...] = ({}, {"projection_dim": 64, "every_n_epochs": 2})

#: What changes files, as Python announces it before it is done.
_CHANGES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")


#: What a process does in a folder.
Work = Callable[[Path], None]


def watched(folder: Path, work: Work, die_at: int) -> None:
    """Work, counting the changes to the run directory; the process kills itself before the one with this number."""
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
    work(folder)


def run_process(folder: Path, work: Work, die_at: int = -1, die_after: float = float("inf")) -> tuple[int, float]:
    """Work in a process of its own, killed at a change or after so many seconds: how it ended, and its seconds of work."""
    process = multiprocessing.get_context("fork").Process(target=watched, args=(folder, work, die_at))
    process.start()
    assert process.pid is not None
    seconds = 0.0
    try:
        while process.is_alive():
            try:
                seconds = max(seconds, sum(psutil.Process(process.pid).cpu_times()[:2]))
            except psutil.Error:
                break
            if seconds >= die_after:
                process.kill()
            time.sleep(0.002)
        process.join()
    finally:
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode, seconds


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
    """Work that is not interrupted."""

    def __init__(self, folder: Path, work: Work) -> None:
        code, self.seconds = run_process(folder, work)
        assert code == 0
        self.contents = said(folder / "run")
        self.changes = len((folder / "changes").read_text().splitlines())

    def killed(self, folder: Path, work: Work, number: int, kills: int) -> int:
        """The same work, killed at a moment of its own; moments of both kinds are spread over the whole of it."""
        generator = random.Random(number)
        share = (number // 2 + generator.random()) / (-(-kills // 2))
        if number % 2 == 0:
            code, seconds = run_process(folder, work, die_at=int(share * self.changes))
        else:
            code, seconds = run_process(folder, work, die_after=share * self.seconds)
        changes = (folder / "changes").read_text().splitlines()
        print(
            f"kill {number}, after {seconds:.2f} s of {self.seconds:.2f} and {len(changes)} of {self.changes} changes, ", end=""
        )
        print(f"last {changes[-1] if changes else 'none'}")
        assert code == -signal.SIGKILL or number % 2, "the work ended before it was killed"
        return code

    def require_same(self, path: Path) -> None:
        """A run directory says what that of the uninterrupted work says."""
        ended = said(path)
        assert ended.keys() == self.contents.keys()
        assert not [name for name, content in ended.items() if content != self.contents[name]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Whole, Work]]:
    """The uninterrupted fit of each way, made when it is asked for, and the fit."""

    @lru_cache
    def made(way: int) -> tuple[Whole, Work]:
        work = partial(fit, **WAYS[way])
        return Whole(tmp_path_factory.mktemp("whole"), work), work

    return made


@pytest.fixture(scope="module")
def whole_later(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Whole, Work, Path]]:
    """The uninterrupted attribution of each way, the attribution, and the fit's folder as it found it."""

    @lru_cache
    def made(way: int) -> tuple[Whole, Work, Path]:
        fitted, folder = tmp_path_factory.mktemp("fitted"), tmp_path_factory.mktemp("whole")
        fit(fitted, when="never", **WAYS_LATER[way])
        shutil.copytree(fitted, folder, dirs_exist_ok=True)
        return Whole(folder, attributed), attributed, fitted

    return made


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are started by fork")
@pytest.mark.parametrize("number", range(KILLS))
def test_killed_fit_ends_with_the_same_bytes(tmp_path: Path, whole: Any, number: int) -> None:
    reference, work = whole(number % len(WAYS))
    if reference.killed(tmp_path, work, number, KILLS) != 0:
        if last_checkpoint(tmp_path) is None:  # there is nothing to resume, so the user deletes what there is
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
        assert run_process(tmp_path, work)[0] == 0
    reference.require_same(tmp_path / "run")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are started by fork")
@pytest.mark.parametrize("number", range(KILLS // 2))
def test_killed_attribution_ends_with_the_same_bytes(tmp_path: Path, whole_later: Any, number: int) -> None:
    reference, work, fitted = whole_later(number // 2 % len(WAYS_LATER))
    shutil.copytree(fitted, tmp_path, dirs_exist_ok=True)
    if reference.killed(tmp_path, work, number, KILLS // 2) != 0:
        assert run_process(tmp_path, work)[0] == 0
    reference.require_same(tmp_path / "run")
