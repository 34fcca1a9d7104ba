"""Work in several processes: all of it, its errors, and nothing that outlives the process that asked for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from lightning_tracin.errors import TracInError
from lightning_tracin.trainer.process_pool import run_all


def write(folder: Path, name: str) -> None:
    if name == "bad":
        raise TracInError("bad input")
    (folder / name).write_text(str(os.getpid()))


def threads(folder: Path, name: str) -> None:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    (folder / name).write_text(" ".join([str(torch.get_num_threads()), *(os.environ[one] for one in names)]))


def linger(folder: Path, name: str) -> None:
    write(folder, name)
    time.sleep(600)


@pytest.mark.parametrize("workers", [1, 2])
def test_everything_is_done_and_an_error_comes_through(tmp_path: Path, workers: int) -> None:
    run_all(write, [(tmp_path, str(i)) for i in range(5)], workers, "", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == list("01234")
    here = {int(path.read_text()) for path in tmp_path.iterdir()} & {os.getpid()}
    assert bool(here) == (workers == 1)
    with pytest.raises(TracInError, match="bad input"):
        run_all(write, [(tmp_path, "bad"), (tmp_path, "6")], workers, "", progress=False)


def test_workers_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_tracin.trainer.process_pool.own_cores", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # fewer than there is room for: kept
    monkeypatch.setenv("MKL_NUM_THREADS", "8")
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    run_all(threads, [(tmp_path, name) for name in "ab"], 2, "", progress=False)
    assert {tuple((tmp_path / name).read_text().split()) for name in "ab"} == {("3", "1", "3", "3", "3")}
    assert os.environ["MKL_NUM_THREADS"] == "8"
    assert "RAYON_NUM_THREADS" not in os.environ


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    code = f"""
if __name__ == "__main__":
    from pathlib import Path
    from lightning_tracin.trainer.process_pool import run_all
    from tests.trainer.test_process_pool import linger
    run_all(linger, [(Path({str(tmp_path)!r}), str(i)) for i in range(2)], 2, "", progress=False)
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    root = Path(__file__).parents[2]
    parent = subprocess.Popen([sys.executable, str(script)], cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    try:
        workers = wait_for(lambda: [int((tmp_path / name).read_text() or 0) for name in "01" if (tmp_path / name).exists()], 2)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert wait_for(lambda: [pid for pid in workers if not alive(pid)], 2) == workers
    finally:
        parent.kill()
        for pid in workers:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_for(found: object, count: int) -> list[int]:
    for _ in range(1200):
        have = [one for one in found() if one]  # type: ignore[operator]
        if len(have) == count:
            return have
        time.sleep(0.1)
    raise AssertionError(f"only {have}")
