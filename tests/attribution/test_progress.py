"""Bars follow the Trainer's own: none, tqdm's or rich's, and the Trainer's display goes on after one of ours."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.callbacks import RichProgressBar, TQDMProgressBar

from lightning_tracin import TracInCallback, TracInRun
from lightning_tracin.attribution.progress import tracked
from tests.support.fits import Classifier, loaders, trainer

PASSES = [f"influence at 000{number}-step{step}" for number, step in enumerate((5, 10))]


def fitted(folder: Path, *bars: Any, **settings: Any) -> TracInRun:
    callback = TracInCallback(folder / "run", top_k=5, when="snapshot")
    trainer(folder, [callback, *bars], max_epochs=2, **settings).fit(Classifier(), *loaders())
    return TracInRun.open(folder / "run")


def test_no_bars_without_the_trainers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fitted(tmp_path, enable_progress_bar=False)
    said = capsys.readouterr()
    assert not any(one in said.out + said.err for one in PASSES)


def test_bars_of_tqdm_with_those_of_tqdm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fitted(tmp_path, TQDMProgressBar(), enable_progress_bar=True)
    said = capsys.readouterr().err
    assert all(one in said for one in PASSES)


def test_bars_of_rich_with_those_of_rich(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich", reason="rich is not installed")
    screen = io.StringIO()
    shown = RichProgressBar(console_kwargs={"file": screen, "force_terminal": True, "width": 200})
    run = fitted(tmp_path, shown, enable_progress_bar=True)
    assert all(one in screen.getvalue() for one in PASSES)
    assert "Epoch 1/1" in screen.getvalue().rpartition(PASSES[0])[2]  # the Trainer's bar goes on after ours
    assert not any(one in capsys.readouterr().err for one in PASSES)  # none of tqdm's beside
    assert len(run.reliance(5)) == 2 * 9


def test_a_log_has_the_trainers_last_bar_once(tmp_path: Path) -> None:
    pytest.importorskip("rich", reason="rich is not installed")
    log = io.StringIO()
    shown = RichProgressBar(console_kwargs={"file": log, "force_terminal": False, "width": 200})
    fitted(tmp_path, shown, enable_progress_bar=True)
    assert log.getvalue().count("Epoch") == 1


def test_a_bar_that_an_error_ends_lets_the_trainers_go_on(tmp_path: Path) -> None:
    rich_progress = pytest.importorskip("rich.progress", reason="rich is not installed")
    from rich.console import Console

    from lightning_tracin.attribution.progress import RichBars

    class Callback:
        progress = rich_progress.Progress(console=Console(file=io.StringIO(), force_terminal=True))

    def fails_at_two() -> None:
        with tracked(RichBars(Callback()), total=3, desc="numbers") as bar:
            assert not Callback.progress.live.is_started
            bar.update(2)
            raise ValueError("at two")

    with Callback.progress:
        with pytest.raises(ValueError, match="at two"):
            fails_at_two()
        assert Callback.progress.live.is_started
    assert not Callback.progress.live.is_started
