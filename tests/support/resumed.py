"""Fits that are interrupted and go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_tracin import TracInCallback, TracInRun
from tests.support.fits import Classifier, loaders, trainer


class Counting(pl.Callback):
    """Counts what the fit does, without the package: samples, and the rate of each optimizer step."""

    def __init__(self) -> None:
        self.samples: list[int] = []
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self.rates.append(float(optimizer.param_groups[0]["lr"]))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any) -> None:
        self.samples.append(len(batch["labels"]))


def fit(
    folder: Path,
    epochs: int,
    checkpoint: Any = None,
    run: str | None = "run",
    others: Any = (),
    size: int = 7,
    settings: dict[str, Any] | None = None,
    every: dict[str, int] | None = None,
    **options: Any,
) -> Any:
    """Fit from a checkpoint on; `run=None` is a fit without the callback. Each epoch has 30 samples, in 5 steps of 7."""
    pl.seed_everything(5)
    saver = ModelCheckpoint(folder / "checkpoints", filename="{epoch}-{step}", save_top_k=-1, save_last=True, **(every or {}))
    watchers = [] if run is None else [TracInCallback(folder / run, **{"top_k": 5, "when": "never", **options})]
    fitting = trainer(folder, [*watchers, *others, saver], enable_checkpointing=True, max_epochs=epochs, **(settings or {}))
    fitting.fit(Classifier(), *loaders(batch_size=size), ckpt_path=checkpoint)
    return fitting


def steps(path: Path) -> list[tuple[int, int, int]]:
    return [(snapshot.epoch, snapshot.step, snapshot.steps) for snapshot in TracInRun.open(path).snapshots]


def at(folder: Path, step: int) -> Path:
    """The checkpoint of a step."""
    (found,) = (folder / "checkpoints").glob(f"epoch=*-step={step}.ckpt")
    return found


WHOLE = [(1, 5, 5), (2, 10, 5), (3, 15, 5), (4, 20, 5)]
