"""The cost of what a pass checks, relative to the pass: the spot check at its end, and the loss of each batch."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from benchmarks import ours
from benchmarks.registry import Context, measurement
from benchmarks.report import Report, ratio_result
from benchmarks.scopes import everything
from benchmarks.timing import interleaved
from benchmarks.workloads import Workload, reference
from lightning_tracin.attribution.checks import checked_loss
from lightning_tracin.attribution.spot_check import check_products
from lightning_tracin.storage.ingredients import IngredientStore

#: Train samples and probes: enough for the number of checked samples to depend on them.
_TRAIN, _PROBES = 4096, 64


@measurement("spot_check_vs_pass")
def spot_check_vs_pass(context: Context) -> Report:
    """The reference model with more train samples; the pass with files and probes, the check with its reading of them."""
    workload = reference(_TRAIN, _PROBES).scaled(context.scale)
    job, target = ours.job_of(workload), ours.target_of(workload.model)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "0000-step0"
        ours.attributed(workload.model, job, everything, whole)
        store = IngredientStore(whole, len(job.train), len(job.probes))

        def check() -> None:
            check_products(target, job, store)

        def attribution() -> None:
            with tempfile.TemporaryDirectory() as other:
                ours.attributed(workload.model, job, everything, Path(other) / "0000-step0")

        check()  # warm-up
        pairs = interleaved(check, attribution, context.repetitions, context.patience)
    return Report((ratio_result("spot_check_vs_pass", pairs.ours_over_theirs),))


class _Step(nn.Module):
    """A workload's mean loss as a training step."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.model, self.loss = workload.model, workload.loss

    def training_step(self, batch: Any) -> Tensor:
        return self.loss(self.model, batch) / len(batch["labels"])


@measurement("watched_loss_vs_pass")
def watched_loss_vs_pass(context: Context) -> Report:
    """The pass with a training step that is watched in every batch, over the pass with a loss that is taken as it is."""
    workload = reference(_TRAIN, _PROBES).scaled(context.scale)
    plain = ours.job_of(workload)
    step = _Step(workload).eval()
    watched = replace(plain, loss=checked_loss(step, plain.train, plain.probes, plain.prepare))

    def attribution(watch: bool) -> None:
        with tempfile.TemporaryDirectory() as folder:
            ours.attributed(workload.model, watched if watch else plain, everything, Path(folder) / "0000-step0")

    attribution(True)  # warm-up
    pairs = interleaved(lambda: attribution(True), lambda: attribution(False), context.repetitions, context.patience)
    return Report((ratio_result("watched_loss_vs_pass", pairs.ours_over_theirs),))
