"""Computes the missing influence of snapshots, for fits and for `attribute`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_tracin.attribution.adam import on_model, stored_scales
from lightning_tracin.attribution.batching import Job, Target, free_share
from lightning_tracin.attribution.checks import checked_loss
from lightning_tracin.attribution.cost import Cost
from lightning_tracin.attribution.losses import SummedLoss
from lightning_tracin.attribution.method import method_of
from lightning_tracin.attribution.prepare import Setup, verify
from lightning_tracin.attribution.processes import Processes, on_rank_zero
from lightning_tracin.attribution.spot_check import described
from lightning_tracin.attribution.witnesses import require_same_losses, witness_losses
from lightning_tracin.gradients import Coverage
from lightning_tracin.gradients.partition import parts_of
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.snapshots import Snapshot, load_weights


class Attributor:
    """Computes the missing influence of a run's snapshots.

    Args:
        directory: the run.
        processes: the processes that share the work.
        setup: what all passes of the run share.
    """

    def __init__(self, directory: RunDirectory, processes: Processes, setup: Setup) -> None:
        self._directory, self._processes, self._setup = directory, processes, setup
        self._method = method_of(setup.options)
        self._checked = False
        self._decisions = setup.decisions  # how each layer's samples are told apart, kept from snapshot to snapshot

    def cost(self, model: nn.Module, coverage: Coverage, groups: Mapping[str, int], loss: SummedLoss) -> Cost:
        """Estimate the cost of one pass from a few batches, with the model's current weights."""
        target = self._target("the start of the fit", model, coverage, groups, None)
        return self._method.cost(target, self._job(model, loss))

    def attribute_stored(self, model: nn.Module, snapshot: Snapshot) -> None:
        """Complete one snapshot with its stored weights.

        Raises:
            TracInError: the weights were not kept, or `attribute` raises it.
        """
        load_weights(model, snapshot.state_dict())
        self.attribute(model, snapshot, stored_scales(self._setup.options, snapshot))

    def score_candidates(self, model: nn.Module, snapshot: Snapshot) -> None:
        """Compute one snapshot's products where the setup's train samples are candidates, which the fit did not see.

        Raises:
            TracInError: the weights were not kept, gradients cannot be computed, or a loss or gradient is not finite.
        """
        load_weights(model, snapshot.state_dict())
        self._set_moment(model, snapshot)
        target, job = self._verified(model, snapshot, stored_scales(self._setup.options, snapshot))
        check = self._method.compute_candidates(target, job, self._directory, snapshot, self._processes)
        self._directory.note_check(snapshot.name, check)

    def attribute(self, model: nn.Module, snapshot: Snapshot, scales: Mapping[str, Tensor] | None) -> None:
        """Complete one snapshot. Returns when all ranks are done.

        Args:
            model: a copy of the module with the snapshot's weights, in evaluation mode.
            snapshot: a snapshot in the ledger.
            scales: its Adam scales, with `preconditioner="adam"` or `"adam-fisher"`.

        Raises:
            TracInError: gradients cannot be computed, or a loss or gradient is not finite.
        """
        target, job = self._ready(model, snapshot, scales)
        self._method.compute(target, job, self._directory, snapshot, self._processes)
        self._processes.barrier("tracin_attributed")
        on_rank_zero(self._processes, lambda: self._check(target, job, snapshot))

    def ready(self, model: nn.Module, snapshot: Snapshot) -> tuple[Target, Job]:
        """Load a snapshot's stored weights, check losses and gradients, and return what to compute.

        Raises:
            TracInError: the weights were not kept, losses are not those of the fit, or gradients cannot be computed.
        """
        load_weights(model, snapshot.state_dict())
        return self._ready(model, snapshot, stored_scales(self._setup.options, snapshot))

    def _ready(self, model: nn.Module, snapshot: Snapshot, scales: Mapping[str, Tensor] | None) -> tuple[Target, Job]:
        setup = self._setup
        self._set_moment(model, snapshot)
        found = witness_losses(model, setup.loss, setup.train, self._processes.prepared(model, setup.dtype))
        require_same_losses(found, snapshot.record.witnesses, setup.train, setup.dtype, snapshot.name)
        return self._verified(model, snapshot, scales)

    def _set_moment(self, model: nn.Module, snapshot: Snapshot) -> None:
        self._processes.set_moment(model, snapshot.record.epoch - 1, snapshot.record.global_step)

    def _verified(self, model: nn.Module, snapshot: Snapshot, scales: Mapping[str, Tensor] | None) -> tuple[Target, Job]:
        """Check loss and gradients with the snapshot's weights, and return what to compute."""
        setup, groups = self._setup, snapshot.record.groups
        # The check before the fit is not enough: a zero-initialized head makes all other gradients 0.
        train = None if self._checked else setup.train
        moment = f"at snapshot {snapshot.name}"
        prepared = self._processes.prepared(model, setup.dtype)
        unit, kind = setup.options.loss_unit, setup.train_kind
        loss = checked_loss(model, setup.train, setup.probes, prepared, setup.loss, unit, kind)
        coverage = verify(model, frozenset(groups), loss, train, None, prepared, moment, self._decisions, kind).coverage
        self._checked, self._decisions = True, coverage.decisions
        return self._target(snapshot.name, model, coverage, groups, scales), self._job(model, loss)

    def _check(self, target: Target, job: Job, snapshot: Snapshot) -> None:
        """Compare some stored products with single-sample gradients, and record the result."""
        check = self._method.check(target, job, self._directory, snapshot)
        self._directory.note_check(snapshot.name, check)
        self._processes.info(f"TracIn: spot check of {snapshot.name}: {described(check)}.")

    def unfinished(self, snapshots: Sequence[Snapshot]) -> tuple[Snapshot, ...]:
        """The snapshots that are incomplete or unchecked, found by rank 0 for all ranks."""

        def missing() -> list[str]:
            checked = self._directory.record().spot_checks
            return [
                snapshot.name
                for snapshot in snapshots
                if (snapshot.kept and snapshot.name not in checked)
                or not self._method.store(self._directory, snapshot).is_complete()
            ]

        names = on_rank_zero(self._processes, missing)
        return tuple(snapshot for snapshot in snapshots if snapshot.name in names)

    def _job(self, model: nn.Module, loss: SummedLoss) -> Job:
        """The settings of a pass that are the same at every snapshot."""
        setup, budget = self._setup, self._setup.options.memory_budget
        if budget is None:  # the same on all ranks, so that all split the probes alike
            budget = int(self._processes.broadcast(free_share(_device(model))))
        return Job(
            train=setup.train,
            probes=setup.probes,
            loss=loss,
            prepare=self._processes.prepared(model, setup.dtype),
            batch_size=1 if loss.is_of_one else setup.options.batch_size,
            memory_budget=budget,
            rank=self._processes.rank,
            ranks=self._processes.ranks,
            progress=setup.progress,
            train_kind=setup.train_kind,
        )

    def _target(
        self, name: str, model: nn.Module, coverage: Coverage, groups: Mapping[str, int], scales: Mapping[str, Tensor] | None
    ) -> Target:
        """The target of a pass; its scales are those of the optimizer, the mask, both or neither."""
        parts = parts_of(groups, self._setup.options.per_layer)
        if self._setup.mask is not None:
            scales = self._setup.mask.scales(frozenset(groups), scales)
        if scales is not None:
            scales = on_model(scales, model, self._setup.dtype)
        return Target(name, model, coverage, parts, scales)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
