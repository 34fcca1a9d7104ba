"""This package's side of every comparison: the only module here that knows the engine."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from benchmarks.scopes import Scope, everything
from benchmarks.workloads import Loss, Sentences, Workload
from lightning_tracin.attribution.batching import Job, Target, free_share
from lightning_tracin.attribution.exact import attribute_snapshot
from lightning_tracin.attribution.losses import Summed
from lightning_tracin.attribution.samples import SampleSet
from lightning_tracin.gradients import Capture, plan_coverage
from lightning_tracin.gradients.partition import parts_of
from lightning_tracin.storage.ingredients import IngredientStore
from lightning_tracin.storage.sample_table import SampleTable
from lightning_tracin.storage.snapshots import load_weights

#: The callback's own default.
BATCH_SIZE = 32


@dataclass(frozen=True)
class ModelLoss:
    """A workload's loss as the engine takes it."""

    model: nn.Module
    loss: Loss
    name: str = "benchmark"
    deviation: float = 0.0
    is_of_one: bool = False

    @property
    def module(self) -> nn.Module:
        """The model."""
        return self.model

    def summed(self, batch: Any, samples: int) -> Summed:
        """The losses of a batch."""
        del samples
        losses = self.loss(self.model, batch, reduction="none")
        return Summed(losses.sum(), True, lambda: losses)

    def __call__(self, batch: Any, samples: int) -> Tensor:
        """The sum of the losses of a batch."""
        del samples
        return self.loss(self.model, batch)


def exact(
    workload: Workload,
    scope: Scope = everything,
    *,
    batch_size: int = BATCH_SIZE,
    memory_budget: int | None = None,
    scales: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """The whole exact pass over one snapshot, with probes, writing and reading: inner products [train, probes].

    `scales` are factors of gradients, as `preconditioner="adam-factored"` has them.
    """
    job = job_of(workload, batch_size, memory_budget)
    with tempfile.TemporaryDirectory() as folder:
        return torch.from_numpy(attributed(workload.model, job, scope, Path(folder) / "0000-step0", scales))


def exact_over_snapshots(workload: Workload, snapshots: Sequence[Mapping[str, Tensor]]) -> None:
    """The exact pass over several snapshots, whose weights are loaded into the model in turn."""
    job = job_of(workload)
    with tempfile.TemporaryDirectory() as folder:
        for index, weights in enumerate(snapshots):
            load_weights(workload.model, weights)
            attributed(workload.model, job, everything, Path(folder) / f"{index:04d}-step{index}")


def job_of(workload: Workload, batch_size: int = BATCH_SIZE, memory_budget: int | None = None) -> Job:
    """The job for the engine."""
    device = workload.device
    return Job(
        sample_set(workload.train),
        sample_set(workload.probes),
        ModelLoss(workload.model, workload.loss),
        prepare=lambda batch: on_device(batch, device),
        batch_size=batch_size,
        memory_budget=free_share(device) if memory_budget is None else memory_budget,
    )


def attributed(model: nn.Module, job: Job, scope: Scope, folder: Path, scales: Mapping[str, Tensor] | None = None) -> Any:
    """Attribute one snapshot into a folder; returns the inner products over all groups: [train, probes]."""
    store = IngredientStore(folder, len(job.train), len(job.probes))
    target = replace(checked_target(model, job, scope), scales=scales)
    attribute_snapshot(target, job, store)
    return store.read().dot.sum(0)


def checked_target(model: nn.Module, job: Job, scope: Scope = everything) -> Target:
    """The model after the check that every fit makes before its first pass.

    Without it a pass trusts no shape: it differentiates each batch a second time to see which sample a line belongs to.
    """
    target = target_of(model, scope)
    few = range(min(2, len(job.train)))
    batch = job.prepare(job.train.batch(few))
    with Capture(model, target.coverage) as capture:  # a fit compares with plain autograd; here, the tests compare scores
        capture.run(lambda: job.loss(batch, len(few)), len(few), lambda *_: None)
    target.coverage.decisions.verified.update(layer.name for layer in target.coverage.layers)
    return target


def target_of(model: nn.Module, scope: Scope = everything) -> Target:
    """The model as it is, with products kept by layer, as in the callback."""
    names = scope(model)
    ordered = {name: 0 for name, _ in model.named_parameters() if name in names}
    return Target("0000-step0", model, plan_coverage(model, names), parts_of(ordered, per_layer=True))


def sample_set(samples: Sentences) -> SampleSet:
    """The samples as the engine takes them."""
    count = len(samples)
    table = SampleTable(("en",) * count, (None,) * count, ("",) * count, (None,) * count)
    return SampleSet(table, (samples,), (default_collate,), tuple((0, index) for index in range(count)))


def on_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """A batch on the model's device."""
    return {name: tensor.to(device) for name, tensor in batch.items()}
