"""The cost of what a pass checks, relative to the pass: the spot check at its end, the loss of each batch, and all together."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch.distributed
from torch import Tensor, nn

from benchmarks import ours
from benchmarks.registry import Context, measurement
from benchmarks.report import Report, ratio_result
from benchmarks.scopes import everything
from benchmarks.timing import interleaved
from benchmarks.workloads import Workload, reference
from lightning_tracin.attribution import batching, exact, losses
from lightning_tracin.attribution.checks import checked_loss
from lightning_tracin.attribution.data_digest import digest_of
from lightning_tracin.attribution.spot_check import check_products
from lightning_tracin.attribution.witnesses import require_same_losses, witness_losses
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


class TrainingStep(nn.Module):
    """A workload's mean loss as a training step."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.model, self.loss = workload.model, workload.loss

    def training_step(self, batch: Any) -> Tensor:
        """The mean loss of a batch."""
        return self.loss(self.model, batch) / len(batch["labels"])


@measurement("watched_loss_vs_pass")
def watched_loss_vs_pass(context: Context) -> Report:
    """The pass with a training step that is watched in every batch, over the pass with a loss that is taken as it is."""
    workload = reference(_TRAIN, _PROBES).scaled(context.scale)
    plain = ours.job_of(workload)
    step = TrainingStep(workload).eval()
    watched = replace(plain, loss=checked_loss(step, plain.train, plain.probes, plain.prepare))

    def attribution(watch: bool) -> None:
        with tempfile.TemporaryDirectory() as folder:
            ours.attributed(workload.model, watched if watch else plain, everything, Path(folder) / "0000-step0")

    attribution(True)  # warm-up
    pairs = interleaved(lambda: attribution(True), lambda: attribution(False), context.repetitions, context.patience)
    return Report((ratio_result("watched_loss_vs_pass", pairs.ours_over_theirs),))


@measurement("checks_vs_pass")
def checks_vs_pass(context: Context) -> Report:
    """A snapshot's pass with everything that is checked in each batch and at each snapshot, over the same pass without it.

    Both sides run the same training step in a process group of one process, in which collectives have to be kept away. The side
    without checks is made here, by patches: the package has no switch for them.
    """
    workload = reference(_TRAIN, _PROBES).scaled(context.scale)
    plain = ours.job_of(workload)
    step = TrainingStep(workload).eval()
    job = replace(plain, loss=checked_loss(step, plain.train, plain.probes, plain.prepare))
    target = ours.target_of(workload.model)

    def attribution(folder: str) -> IngredientStore:
        store = IngredientStore(Path(folder) / "0000-step0", len(job.train), len(job.probes))
        exact.attribute_snapshot(target, job, store)
        store.read().dot.sum(0)
        return store

    def checked() -> None:
        before = digest_of(workload.train)
        kept = witness_losses(step, job.loss.name, job.train, job.prepare)  # when the snapshot is taken
        found = witness_losses(step, job.loss.name, job.train, job.prepare)  # before its influence is computed
        require_same_losses(found, kept, job.train, torch.float32, target.name)
        with tempfile.TemporaryDirectory() as folder:
            check_products(target, job, attribution(folder))
        assert digest_of(workload.train) == before

    def unchecked() -> None:
        with no_checks(), tempfile.TemporaryDirectory() as folder:
            attribution(folder)

    with _process_group():
        checked()  # warm-up
        unchecked()
        pairs = interleaved(checked, unchecked, context.repetitions, context.patience)
    return Report((ratio_result("checks_vs_pass", pairs.ours_over_theirs),))


@contextmanager
def no_checks() -> Iterator[None]:
    """Inside, a step's loss is taken for a mean without a look, in the batch itself, with collectives as they are."""

    def unwatched(step: losses.StepLoss, batch: Any, samples: int) -> losses.Summed:
        del samples
        each = step.module.loss(step.module.model, batch, reduction="none")  # type: ignore[operator]
        return losses.Summed(each.sum(), True, lambda: each)

    run_batch: Callable[..., None] = batching.run_batch.__wrapped__  # type: ignore[attr-defined]
    with ExitStack() as stack:
        stack.enter_context(patch.object(losses.StepLoss, "summed", unwatched))
        for module in (batching, exact):
            stack.enter_context(patch.object(module, "run_batch", run_batch))
        yield


@contextmanager
def _process_group() -> Iterator[None]:
    """A process group of this process alone."""
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()
