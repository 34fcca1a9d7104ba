"""What is missing of a run's snapshots, computed and written: the work that a fit and a process without one share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from lightning_tracin.analysis.reliance import Floats
from lightning_tracin.attribution.batching import Job, Target, free_share
from lightning_tracin.attribution.checks import check_gradients
from lightning_tracin.attribution.exact import attribute_snapshot
from lightning_tracin.attribution.losses import SummedLoss, loss_named
from lightning_tracin.attribution.masks import Mask
from lightning_tracin.attribution.means import attribute_means
from lightning_tracin.attribution.processes import Processes, done_by_first
from lightning_tracin.attribution.projected import prepare_sketch, project_snapshot
from lightning_tracin.attribution.representations import sentence_representations
from lightning_tracin.attribution.samples import SampleSet
from lightning_tracin.attribution.spot_check import check_features, check_means, check_products, described
from lightning_tracin.config import Settings, View
from lightning_tracin.gradients import plan_coverage
from lightning_tracin.gradients.layouts import Decisions
from lightning_tracin.gradients.partition import parts_of
from lightning_tracin.reporting.findings import study_of
from lightning_tracin.reporting.html import write_results
from lightning_tracin.reporting.results import Results, analyse
from lightning_tracin.run import TracInRun
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.features import FeatureStore
from lightning_tracin.storage.snapshots import Snapshot, load_weights
from lightning_tracin.trainer.environment import preparation
from lightning_tracin.trainer.isolation import untouched_process


@dataclass(frozen=True)
class Pass:
    """What is computed of every snapshot, and with what.

    Attributes:
        train: the train samples.
        probes: the probes.
        settings: what the scores depend on.
        loss: name of the loss (`losses.loss_named`).
        mask: the elements that count; None = all.
        memory_budget: bytes that a pass may take; None = a share of what is free.
        progress: whether bars are shown.
        decisions: what was found out about the module's layers before.
    """

    train: SampleSet
    probes: SampleSet
    settings: Settings
    loss: str
    mask: Mask | None
    memory_budget: int | None
    progress: bool
    decisions: Decisions | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The data type in which influence is computed."""
        dtype = getattr(torch, self.settings.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype


class Attributor:
    """Computes what is missing of snapshots, and writes the results of the run.

    Args:
        directory: the run.
        environment: the processes that share the work.
        work: what is computed.
    """

    def __init__(self, directory: RunDirectory, environment: Processes, work: Pass) -> None:
        self._directory, self._environment, self._work = directory, environment, work
        self._prepared = preparation(environment, work.dtype)
        self._checked = False

    def memory_budget(self, model: nn.Module) -> int:
        """Bytes that a pass may take, the same on all ranks."""
        if self._work.memory_budget is not None:
            return self._work.memory_budget
        return int(self._environment.broadcast(free_share(next(model.parameters()).device)))

    def job(self, loss: SummedLoss, memory_budget: int) -> Job:
        """What stays the same from snapshot to snapshot."""
        return Job(
            train=self._work.train,
            probes=self._work.probes,
            loss=loss,
            prepare=self._prepared,
            batch_size=self._work.settings.batch_size,
            memory_budget=memory_budget,
            rank=self._environment.rank,
            ranks=self._environment.ranks,
            progress=self._work.progress,
        )

    def on_both_sides(
        self, scales: dict[str, Tensor] | None, names: frozenset[str], device: torch.device
    ) -> dict[str, Tensor] | None:
        """What the gradients of the named parameters are multiplied with: an optimizer's scales, the mask, both or neither."""
        if self._work.mask is not None:
            scales = self._work.mask.scales(names, scales)
        if scales is None:
            return None
        return {name: scale.to(device, self._work.dtype) for name, scale in scales.items()}

    def attribute_stored(self, copy: LightningModule, snapshot: Snapshot) -> None:
        """Compute what is missing of one snapshot, with the weights that it holds.

        Raises:
            TracInError: the weights were not kept, or as `attribute`.
        """
        scales = snapshot.scales() if self._work.settings.preconditioner == "adam" else None
        self.attribute(copy, snapshot, snapshot.state_dict(), scales)

    def attribute(
        self, copy: LightningModule, snapshot: Snapshot, weights: dict[str, Tensor], scales: dict[str, Tensor] | None
    ) -> None:
        """Compute what is missing of one snapshot; when it returns, all ranks have done so.

        Args:
            copy: of the module, in evaluation mode; it has the snapshot's weights afterwards.
            snapshot: in the ledger.
            weights: of the snapshot.
            scales: of its optimizer's second moments, where these precondition.

        Raises:
            TracInError: gradients cannot be taken, or a loss or gradient is not finite.
        """
        load_weights(copy, weights)
        work, settings = self._work, self._work.settings
        coverage = plan_coverage(copy, frozenset(snapshot.record.groups), work.decisions)
        loss = loss_named(copy, work.loss)
        if not self._checked:  # once more: at the start, a head of zeros may have hidden the gradients of all other layers
            check_gradients(copy, coverage, loss, work.train, self._prepared, "train sample", f"at snapshot {snapshot.name}")
            self._checked = True
        job = self.job(loss, self.memory_budget(copy))
        parts = parts_of(snapshot.record.groups, settings.per_layer)
        on_both_sides = self.on_both_sides(scales, frozenset(parts.of), copy.device)
        target = Target(snapshot.name, copy, coverage, parts, on_both_sides)
        if settings.projection_dim is not None:
            store = self._directory.features(snapshot)
            if self._environment.rank == 0:
                prepare_sketch(target, job, store, settings.projection_dim)
            self._environment.barrier("tracin_sketch")
            project_snapshot(target, job, store)
        else:
            attribute = attribute_means if settings.method == "means" else attribute_snapshot
            attribute(target, job, self._directory.ingredients(snapshot))
        self._environment.barrier("tracin_attributed")
        done_by_first(self._environment, lambda: self._check(target, job, snapshot))

    def _check(self, target: Target, job: Job, snapshot: Snapshot) -> None:
        """Compare some of what is stored with single samples' gradients, and write down what was found."""
        store = self._directory.stored(snapshot)
        if isinstance(store, FeatureStore):
            check = check_features(target, job, store)
        else:
            check = (check_means if self._work.settings.method == "means" else check_products)(target, job, store)
        self._directory.note_check(snapshot.name, check)
        rank_zero_info(f"TracIn: spot check of {snapshot.name}: {described(check)}.")

    def unfinished(self, snapshots: Sequence[Snapshot]) -> tuple[Snapshot, ...]:
        """Those of which something is missing, or was not checked; the same on all ranks, before any of them goes on."""

        def missing() -> list[str]:
            checked = self._directory.record().spot_checks
            return [
                snapshot.name
                for snapshot in snapshots
                if (snapshot.kept and snapshot.name not in checked) or not self._directory.stored(snapshot).is_complete()
            ]

        names = done_by_first(self._environment, missing)
        return tuple(snapshot for snapshot in snapshots if snapshot.name in names)

    def write_results(self, view: View, fitted: Callable[[], LightningModule]) -> Results | None:
        """Write the run's results; None on other ranks than 0.

        Args:
            view: what is shown.
            fitted: gives the fitted model as a copy in evaluation mode, for its own representations.
        """
        if self._environment.rank != 0:
            return None
        run = TracInRun(self._directory)
        results = analyse(run, view, self._work.progress)
        study = None
        if run.is_large:
            rank_zero_info(
                f"TracIn: influence of {len(run.train):,} train samples on {len(run.queries):,} probes is made shard by shard; "
                "experiments and baselines, which need all of it at once, are left out of the results."
            )
        elif view.measure == "share":
            study = study_of(run, view, lambda: self._representations(fitted))
        write_results(self._directory.results, results, study)
        rank_zero_info(f"TracIn: reliance at {len(run.snapshots)} snapshots is in {self._directory.results}.")
        return results

    def _representations(self, fitted: Callable[[], LightningModule]) -> tuple[Floats, Floats]:
        """The fitted model's own representations of the train samples and of the probes."""
        with untouched_process():
            copy = fitted()
            loss = loss_named(copy, self._work.loss)
            train, probes = (
                sentence_representations(copy, samples, loss, self._prepared, self._work.settings.batch_size)
                for samples in (self._work.train, self._work.probes)
            )
        self._directory.write_representations(torch.from_numpy(train).float(), torch.from_numpy(probes).float())
        return train, probes
