"""The overhead of the callback in a fit in which it only takes snapshots."""

from __future__ import annotations

import copy
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.registry import Context, measurement
from benchmarks.report import Report, ratio_result
from benchmarks.timing import seconds, spread
from benchmarks.workloads import Workload, reference
from lightning_tracin import TracInCallback

_EPOCHS, _SAMPLES, _BATCH_SIZE = 4, 1024, 32


class _Module(pl.LightningModule):
    """A workload's model in an ordinary LightningModule."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.model, self.loss = copy.deepcopy(workload.model), workload.loss

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        return self.loss(self.model, batch) / len(batch["labels"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-5)


class _Timed(TracInCallback):
    """The callback with a clock on the two hooks that do real work."""

    starting = 0.0
    writing = 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.starting += seconds(lambda: super(_Timed, self).on_train_start(trainer, pl_module))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.writing += seconds(lambda: super(_Timed, self).on_train_epoch_end(trainer, pl_module))


@measurement("fit_overhead")
def fit_overhead(context: Context) -> Report:
    """Time of a fit with `TracInCallback(when="never")`, minus writing snapshots, over the same fit without the callback."""
    workload = reference(_SAMPLES, 64).scaled(context.scale)
    _fit(workload, None)  # warm-up
    ratios: list[float] = []
    starts: list[float] = []
    writes: list[float] = []
    began = time.perf_counter()
    while len(ratios) < min(3, context.repetitions) or (
        len(ratios) < context.repetitions and time.perf_counter() - began < context.patience
    ):
        with tempfile.TemporaryDirectory() as folder:
            callback = _Timed(
                dirpath=Path(folder) / "run",
                when="never",
                languages=["en"] * len(workload.train),
                languages_of_probes=["en"] * len(workload.probes),
            )
            took = _fit(workload, callback)
        ratios.append((took - callback.writing) / _fit(workload, None))
        starts.append(callback.starting)
        writes.append(callback.writing / _EPOCHS)
    note = (
        f"fit_overhead: {_EPOCHS} epochs of {len(workload.train)} samples; checks before the fit took "
        f"{spread(starts).value:.2f} s of it, once; writing a snapshot takes {spread(writes).value:.2f} s, not counted."
    )
    return Report((ratio_result("fit_overhead", spread(ratios)),), notes=(note,))


def _fit(workload: Workload, callback: TracInCallback | None) -> float:
    """Seconds of one fit."""
    loaders = [DataLoader(side, batch_size=_BATCH_SIZE) for side in (workload.train, workload.probes)]
    module = _Module(workload)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            max_epochs=_EPOCHS,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[callback] if callback else [],
            default_root_dir=folder,
        )
        return seconds(lambda: trainer.fit(module, loaders[0], loaders[1]))
