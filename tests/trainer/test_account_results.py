"""A window that cannot be stored ends the account, and not the fit."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from lightning_tracin import ContributionCallback, TracInRun
from lightning_tracin.storage.account import AccountStore
from tests.support.accounted_fits import Module, Tokens
from tests.support.fits import trainer

pytestmark = pytest.mark.results


class FillDisk(pl.Callback):
    """The writer of the second window finds the disk full."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "contributions" / "windows" / "000002.safetensors.partial"

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 4:
            self.path.symlink_to("/dev/full")


def fitted(folder: Path, callbacks: list[pl.Callback]) -> Module:
    module = Module()
    fitting = trainer(folder, callbacks, precision="64-true", max_epochs=3)
    fitting.fit(module, DataLoader(Tokens(20, seed=1), batch_size=4), DataLoader(Tokens(9, seed=2), batch_size=4))
    return module


def test_a_full_disk_ends_the_account_and_not_the_fit(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        accounted = fitted(tmp_path / "with", [ContributionCallback(run, window=3, dtype="float64"), FillDisk(run)])
    plain = fitted(tmp_path / "without", [])
    assert all(torch.equal(one, other) for one, other in zip(accounted.parameters(), plain.parameters(), strict=True))
    said = [str(one.message) for one in caught if "TracIn" in str(one.message)]
    assert len(said) == 1, said
    assert "window 2 could not be written" in said[0]
    assert "No space left on device" in said[0]
    assert [window.record.last_step for window in AccountStore(run).windows()] == [3]
    assert not AccountStore(run).record().ended
    assert set(TracInRun.open(run).contributions()["window"]) == {1}
    assert (run / "results" / "contributions.csv").exists()
