"""The reference fit of the benchmarks, with and without an account of contributions."""

from __future__ import annotations

import copy
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.timing import seconds
from benchmarks.workloads import Workload
from lightning_tracin import ContributionCallback

#: Samples of a batch, and train languages, which take turns.
BATCH_SIZE, LANGUAGES = 32, ("de", "en", "es", "fr", "ru")


class Module(pl.LightningModule):
    """A workload's model in an ordinary LightningModule."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.model, self.loss = copy.deepcopy(workload.model), workload.loss

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        """The mean loss."""
        return self.loss(self.model, batch) / len(batch["labels"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=2e-5)


def languages(count: int) -> list[str]:
    """A language for each sample."""
    return [LANGUAGES[index % len(LANGUAGES)] for index in range(count)]


def account(workload: Workload, folder: Path, **options: Any) -> ContributionCallback:
    """A callback that accounts for the workload's samples."""
    return ContributionCallback(
        folder / "run",
        languages=languages(len(workload.train)),
        languages_of_probes=languages(len(workload.probes)),
        **options,
    )


def fit(workload: Workload, epochs: int, options: dict[str, Any] | None) -> float:
    """Seconds of one fit, with an account of these options or, without options, without one."""
    loaders = [
        DataLoader(side, batch_size=BATCH_SIZE, shuffle=side is workload.train) for side in (workload.train, workload.probes)
    ]
    module = Module(workload)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[] if options is None else [account(workload, Path(folder), **options)],
            default_root_dir=folder,
            limit_val_batches=0 if options is None else None,
            num_sanity_val_steps=0,
        )
        return seconds(lambda: trainer.fit(module, loaders[0], loaders[1]))
