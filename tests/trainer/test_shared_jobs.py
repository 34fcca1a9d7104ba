"""Work that several processes share: everything once, and nothing lost with a process that ends."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest

from lightning_tracin.errors import TracInError
from lightning_tracin.trainer.shared_jobs import SharedJob, make, run_shared


def write(path: Path) -> None:
    """Notes the process, too; two in one file would be a result that was made twice."""
    with path.with_suffix(".who").open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(0.02)
    path.touch()


def jobs_in(folder: Path, count: int = 12) -> list[SharedJob]:
    return [SharedJob((path,), (path,), path) for path in (folder / f"{number:02d}.done" for number in range(count))]


def shared(folder: Path) -> None:
    run_shared(write, jobs_in(folder), 1, "", progress=False)


def in_process(target: Any, *arguments: Any) -> multiprocessing.process.BaseProcess:
    process: Any = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def test_processes_share_the_jobs(tmp_path: Path) -> None:
    several = [in_process(shared, tmp_path) for _ in range(3)]
    for process in several:
        process.join(60)
    assert [process.exitcode for process in several] == [0, 0, 0]
    made = [(tmp_path / f"{number:02d}.who").read_text().split() for number in range(12)]
    assert all(len(by) == 1 for by in made)
    assert len({by for (by,) in made}) > 1
    assert {path.suffix for path in tmp_path.iterdir()} == {".done", ".who"}


def hold(job: SharedJob, mark: Path) -> None:
    def wait() -> None:
        mark.touch()
        time.sleep(600)

    make(wait, SharedJob(job.results, (), job.name))


def test_a_job_of_a_process_that_is_killed_is_taken_up(tmp_path: Path) -> None:
    first = jobs_in(tmp_path)[0]
    holding = in_process(hold, first, tmp_path / "held")
    try:
        while not (tmp_path / "held").exists():
            time.sleep(0.01)
        assert not first.is_free
        other = in_process(shared, tmp_path)
        while len(list(tmp_path.glob("*.done"))) < 11:
            time.sleep(0.01)
        time.sleep(0.5)
        assert other.is_alive()  # waits for the one that is held
        holding.kill()
        other.join(60)
        assert other.exitcode == 0
    finally:
        holding.kill()
        holding.join()
    assert first.is_done


def test_an_error_frees_the_job(tmp_path: Path) -> None:
    job = jobs_in(tmp_path)[0]

    def fail(path: Path) -> None:
        raise TracInError("bad input")

    with pytest.raises(TracInError, match="bad input"):
        run_shared(fail, [job], 1, "", progress=False)
    assert job.is_free
    assert not job.is_done
