"""Several processes on one study: they share its fits, wait for what is done once, and take up what a killed one left."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lightning_tracin.errors import TracInError
from lightning_tracin.storage.files import write_bytes
from lightning_tracin.storage.lock import RunLock
from lightning_tracin.studies import runner, study_runs
from lightning_tracin.studies.page import write_page
from lightning_tracin.studies.resume import begin_or_resume
from lightning_tracin.studies.runner import run_study
from lightning_tracin.studies.shared_folder import SharedFolder
from lightning_tracin.trainer import refits
from tests.support.small import settings

PART: dict[str, Any] = {"experiments": ["left_out"], "scores": ["cosine"], "baselines": ["random"], "area_scores": []}


def noted(fit: Callable[..., None], log: Path) -> Callable[..., None]:
    """A fit that writes a line when it begins."""

    def work(*arguments: Any) -> None:
        named = arguments[-1] if isinstance(arguments[-1], Path) else next(iter(arguments[2]))
        with log.open("a") as file:
            file.write(f"{named.name}\n")
        fit(*arguments)

    return work


def study(folder: Path, name: str) -> None:
    """Run the study in a process that notes its fits, and keep the tables that it ends with."""
    runner.first_fit = noted(runner.first_fit, folder / name)
    study_runs.influence_run = noted(study_runs.influence_run, folder / name)
    refits.refit = noted(refits.refit, folder / name)
    outcome = run_study(settings(folder, **PART), progress=False, say=lambda text: None)
    write_page(outcome)
    kept = folder / f"{name}.tables"
    kept.mkdir()
    for path in sorted((outcome.folder / "results").glob("*.csv")):
        (kept / path.name).write_bytes(path.read_bytes())


@contextmanager
def processes(folder: Path, *names: str) -> Iterator[list[multiprocessing.process.BaseProcess]]:
    """The study in several processes, which are ended with the context."""
    folder.mkdir(parents=True, exist_ok=True)
    started: list[Any] = [multiprocessing.get_context("fork").Process(target=study, args=(folder, name)) for name in names]
    for process in started:
        process.start()
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.join()


def fits(folder: Path, name: str) -> list[str]:
    return (folder / name).read_text().splitlines() if (folder / name).exists() else []


def tables(folder: Path, name: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / f"{name}.tables").iterdir()}


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are started by fork")
def test_two_processes_share_the_fits_of_a_study_and_one_takes_up_what_the_other_leaves(tmp_path: Path) -> None:
    with processes(tmp_path / "alone", "one") as (alone,):
        alone.join(300)
        assert alone.exitcode == 0
    whole = fits(tmp_path / "alone", "one")

    with processes(tmp_path / "both", "one", "other") as both:
        for process in both:
            process.join(300)
        assert [process.exitcode for process in both] == [0, 0]
    shares = [fits(tmp_path / "both", name) for name in ("one", "other")]
    assert sorted([*shares[0], *shares[1]]) == sorted(whole)  # no fit twice
    assert all(shares)

    with processes(tmp_path / "killed", "one", "other") as (first, second):
        while len(fits(tmp_path / "killed", "one")) < len(whole) // 4:
            assert first.is_alive()
            time.sleep(0.005)
        first.kill()
        second.join(300)
        assert second.exitcode == 0

    expected = tables(tmp_path / "alone", "one")
    assert len(expected) > 5
    for folder, name in (("both", "one"), ("both", "other"), ("killed", "other")):
        assert tables(tmp_path / folder, name) == expected
        assert not list((tmp_path / folder / "small").rglob("*.claim")), "a claim is left"
        assert not (tmp_path / folder / "small" / "workers").exists()


def test_settings_do_not_change_under_another_process(tmp_path: Path) -> None:
    asked, other = settings(tmp_path, **PART), settings(tmp_path, **PART, candidates_per_language=12)
    write_bytes(tmp_path / "small" / "study.json", begin_or_resume(asked, tmp_path / "small"))
    message = r"Another process works on the study in .* with candidates_per_language=16, but the settings now say 12: give"
    with RunLock(tmp_path / "small" / "workers" / "elsewhere-7"), pytest.raises(TracInError, match=message):
        run_study(other, progress=False, say=lambda text: None)
    assert json.loads(begin_or_resume(other, tmp_path / "small"))["candidates_per_language"] == 12  # may change before the fits


def test_a_process_says_whom_it_waits_for(tmp_path: Path) -> None:
    said: list[str] = []
    lock = RunLock(tmp_path / "small")
    lock.acquire()

    def told(text: str) -> None:
        said.append(text)
        lock.release()

    with SharedFolder(tmp_path / "small", told) as shared:
        assert not shared.has_others
        with shared.unlocked(), RunLock(tmp_path / "small"):
            pass
        with pytest.raises(TracInError, match="is in use"), RunLock(tmp_path / "small"):
            pass
    (text,) = said
    assert text.startswith(f"Waiting for {tmp_path / 'small'}: process {os.getpid()} on ")
    assert not (tmp_path / "small").exists()
