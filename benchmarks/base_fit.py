"""A short fit of XLM-R base's real shape with the callback, in a process of its own: prints times and memory as JSON.

`python -m benchmarks.base_fit METHOD BUDGET`, where the method is `exact`, `means` or `projected`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.memory import resident
from benchmarks.workloads import base_shape
from lightning_tracin import TracInCallback
from lightning_tracin.attribution.representations import sentence_representations
from lightning_tracin.trainer.finish import finish

#: Options of each way to compute.
WAYS: dict[str, dict[str, Any]] = {"exact": {}, "means": {"language_means": True}, "projected": {"projection_dim": 4096}}

_STEPS, _BATCH_SIZE = 5, 8


class Module(pl.LightningModule):
    """The model in an ordinary module; SGD, so that the optimizer adds no memory of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        """The model's own loss."""
        loss: Tensor = self.model(**batch).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=1e-4)


class Clock:
    """Seconds and peak memory of the parts of a fit."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, function: Any) -> Any:
        """The function, with a clock."""

        def call(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

        return call


def main() -> None:
    """Fit, and print the figures."""
    way, budget = sys.argv[1], int(sys.argv[2])
    warnings.simplefilter("ignore")
    workload = base_shape(train=_STEPS * _BATCH_SIZE, probes=2 * _BATCH_SIZE)
    module, clock = Module(workload.model), Clock()
    model_bytes = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    loaders = [DataLoader(side, batch_size=_BATCH_SIZE) for side in (workload.train, workload.probes)]
    before = resident("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        callback = TracInCallback(
            Path(folder) / "run",
            languages=["en", "de"] * (len(workload.train) // 2),
            languages_of_probes=["en", "de"] * (len(workload.probes) // 2),
            memory_budget=budget,
            top_k=10,
            batch_size=_BATCH_SIZE,
            **WAYS[way],
        )
        trainer = pl.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[callback],
            default_root_dir=folder,
        )
        with (
            patch.object(TracInCallback, "on_train_start", clock.timed("checks", TracInCallback.on_train_start)),
            patch.object(TracInCallback, "on_train_end", clock.timed("end", TracInCallback.on_train_end)),
            patch("lightning_tracin.trainer.session.finish", clock.timed("results", finish)),
            patch(
                "lightning_tracin.trainer.finish.sentence_representations",
                clock.timed("representations", sentence_representations),
            ),
        ):
            clock.timed("all", trainer.fit)(module, *loaders)
    seconds = clock.seconds
    steps = seconds["all"] - seconds["checks"] - seconds["end"]
    peak = resident("VmHWM") - before + model_bytes
    print(json.dumps({**seconds, "steps": steps, "peak": peak, "model": model_bytes, "budget": budget}))


if __name__ == "__main__":
    main()
