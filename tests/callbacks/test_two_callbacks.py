"""Two callbacks in one Trainer: each has its own directory and state, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_tracin import TracInCallback, TracInError, TracInRun
from tests.support.fits import Classifier, loaders, trainer


def fit(folder: Path, watchers: list[TracInCallback], epochs: int = 2, checkpoint: Path | None = None, **settings: Any) -> None:
    pl.seed_everything(3)
    fitting = trainer(folder, [*watchers, *settings.pop("others", [])], max_epochs=epochs, **settings)
    fitting.fit(Classifier(), *loaders(), ckpt_path=checkpoint)


def test_two_of_one_schedule_and_two_directories(tmp_path: Path) -> None:
    fit(tmp_path, [TracInCallback(tmp_path / "one", top_k=5), TracInCallback(tmp_path / "two", top_k=5, language_means=True)])
    one, two = TracInRun.open(tmp_path / "one"), TracInRun.open(tmp_path / "two")
    assert [snapshot.step for snapshot in one.snapshots] == [snapshot.step for snapshot in two.snapshots] == [5, 10]
    for name, tensor in one.snapshots[-1].state_dict().items():
        np.testing.assert_array_equal(tensor, two.snapshots[-1].state_dict()[name])


def test_default_directories_differ(tmp_path: Path) -> None:
    watchers = [TracInCallback(top_k=5), TracInCallback(top_k=5, every_n_train_steps=4)]
    fit(tmp_path, watchers)
    assert [watcher.dirpath.name for watcher in watchers if watcher.dirpath is not None] == ["tracin", "tracin-2"]
    assert [snapshot.step for snapshot in TracInRun.open(tmp_path / "tracin-2").snapshots] == [4, 8, 10]


def test_two_of_one_directory_are_refused(tmp_path: Path) -> None:
    watchers = [TracInCallback(tmp_path / "run", top_k=5), TracInCallback(tmp_path / "run", top_k=5, every_n_epochs=2)]
    with pytest.raises(TracInError, match=r"Two TracInCallbacks of this Trainer write to .*run; give each a `dirpath`"):
        fit(tmp_path, watchers)


def test_each_resumes_with_its_own_state(tmp_path: Path) -> None:
    def watchers() -> list[TracInCallback]:
        return [TracInCallback(tmp_path / "one", top_k=5), TracInCallback(tmp_path / "two", top_k=5)]

    saver = ModelCheckpoint(tmp_path / "checkpoints", filename="{epoch}", save_top_k=-1)
    fit(tmp_path, watchers(), epochs=1, others=[saver], enable_checkpointing=True)
    fit(tmp_path, watchers(), epochs=2, checkpoint=tmp_path / "checkpoints" / "epoch=0.ckpt")
    for name in ("one", "two"):
        assert [snapshot.step for snapshot in TracInRun.open(tmp_path / name).snapshots] == [5, 10]
