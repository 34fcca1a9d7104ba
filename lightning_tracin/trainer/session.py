"""One fit's work: from its samples, verified at the start, to snapshots, ingredients and results.

The callback says when; here is what. A session lives from `on_train_start` to `on_train_end`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from lightning_tracin.attribution.adam import adam_scales, require_second_moments
from lightning_tracin.attribution.attributor import Attributor
from lightning_tracin.attribution.checks import checked_loss
from lightning_tracin.attribution.cost import Plan
from lightning_tracin.attribution.losses import SummedLoss
from lightning_tracin.attribution.method import method_of
from lightning_tracin.attribution.prepare import (
    Setup,
    Sources,
    dtype_of,
    opened_mask,
    read_samples,
    require_top_k,
    run_record,
    scored_names,
    snapshot_record,
    verify,
)
from lightning_tracin.config import Options, View
from lightning_tracin.gradients.partition import parts_of
from lightning_tracin.reporting.loggers import sinks_for
from lightning_tracin.reporting.results import point
from lightning_tracin.run import TracInRun
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.snapshots import Snapshot, SnapshotRecord, folder_name, frozen_digest, trainable_names, weights_of
from lightning_tracin.trainer.environment import TrainerEnvironment
from lightning_tracin.trainer.finish import finish
from lightning_tracin.trainer.isolation import isolated_copy, untouched_process
from lightning_tracin.trainer.learning_rates import Recorder, group_of_parameters


class Session:
    """Everything that one fit needs.

    Args:
        options: of the callback.
        sources: probes and languages that the callback was given; samples otherwise come from the Trainer's loaders.
        directory: where the run goes.
        trainer: the fit's Trainer.
        module: the module being fitted.

    Raises:
        TracInError: influence cannot be computed for the samples, the loss or the parameters; see each part.
    """

    def __init__(
        self, options: Options, sources: Sources, directory: RunDirectory, trainer: Trainer, module: LightningModule
    ) -> None:
        self._options, self._directory, self._trainer, self._module = options, directory, trainer, module
        self._processes = TrainerEnvironment(trainer, module)
        self._sources = replace(
            sources,
            train=trainer.train_dataloader,
            probes=_validation_loaders(trainer) if sources.probes is None else sources.probes,
        )
        progress = trainer.is_global_zero and trainer.progress_bar_callback is not None
        train, probes = read_samples(self._sources, options, self._processes, progress)
        if options.when != "never":
            require_top_k(options.top_k, len(train))
        if options.preconditioner == "adam":
            require_second_moments(trainer.optimizers)
        mask = opened_mask(options.mask, module)
        names = scored_names(options, mask, module)
        self._trainable = trainable_names(module)
        copy = isolated_copy(module, dtype_of(options))
        prepared = self._processes.prepared(dtype_of(options))
        loss = checked_loss(copy, train, probes, prepared)
        self._coverage = verify(copy, names, loss, train, probes, prepared, "before the fit")
        self._setup = Setup(options, train, probes, loss.name, mask, progress, self._coverage.decisions)
        self._attributor = Attributor(directory, self._processes, self._setup)
        self._method = method_of(options)
        plan = self._planned(copy, loss)
        rank_zero_info(plan.described(directory.path))
        plan.require_disk(directory.path)
        self._sinks = sinks_for(trainer.loggers) if trainer.is_global_zero else []
        self._run: TracInRun | None = None
        self._held: tuple[int, dict[str, Tensor]] = (-1, {})  # a step, and the weights right after it

    def _planned(self, copy: LightningModule, loss: SummedLoss) -> Plan:
        """What the run will cost, by a few batches through a copy of the module before the fit."""
        options, setup, coverage = self._options, self._setup, self._coverage
        groups = self._groups(frozenset(coverage.elements))
        writes = options.when != "never"
        parts = len(parts_of(groups, options.per_layer))
        return Plan(
            train=setup.train.table,
            probes=setup.probes.table,
            parameters=len(coverage.elements),
            elements=coverage.total,
            coverage=coverage.by_rule,
            kept=None if setup.mask is None else setup.mask.elements(frozenset(coverage.elements)),
            weights_bytes=self._weights_bytes() if options.writes_weights else 0,
            ingredients_bytes=self._method.stored_bytes(parts, len(setup.train), setup.probes.table) if writes else 0,
            cost=self._attributor.cost(copy, coverage, groups, loss) if writes or options.dry_run else None,
            snapshots=_expected_snapshots(options, self._trainer),
        )

    def _scored(self) -> frozenset[str]:
        """Names of the parameters whose gradients are compared now."""
        return scored_names(self._options, self._setup.mask, self._module)

    def start(self, run: str, step: int, resumed: bool) -> None:
        """Write what the run is, or find it as it was.

        Args:
            run: identity of the fit.
            step: optimizer steps made before.
            resumed: whether the directory holds this run already.
        """
        self._trainer.strategy.barrier("tracin_checked")
        if self._trainer.is_global_zero:
            averaging = averaging_callback(getattr(self._trainer, "callbacks", ()))
            record = run_record(run, self._setup, self._coverage, self._sources, averaging)
            if resumed:
                self._directory.resume(record, step)
            else:
                self._directory.start(record, self._setup.train.table, self._setup.probes.table)
        self._trainer.strategy.barrier("tracin_start")
        if self._trainer.is_global_zero:
            self._run = TracInRun(self._directory)
        else:
            self._directory.reload()

    def snapshot(self, recorder: Recorder, epoch: int) -> None:
        """Take a snapshot now, and attribute it now where that is asked for."""
        step, held = self._held
        weights = held if step == recorder.step else weights_of(self._module, trainable_names(self._module))
        scales = self._scales()
        record = self._record(recorder, len(self._directory.ledger.snapshots()), epoch)
        self._trainer.strategy.barrier("tracin_ledger_read")
        if self._trainer.is_global_zero:
            self._directory.discard(folder_name(record))  # what a killed fit left
            self._directory.ledger.append(record, weights if self._options.writes_weights else None, scales)
        self._trainer.strategy.barrier("tracin_ledger_written")
        if not self._trainer.is_global_zero:
            self._directory.ledger.reload()
        if self._options.when == "snapshot":
            with untouched_process():
                added = self._directory.ledger.snapshots()[record.index]
                self._attributor.attribute(self._copy(), added, weights, scales)
                self._attributed(added)

    def hold_weights(self, step: int) -> None:
        """Keep the weights as they are after a step, for a snapshot of it that is taken when others may have replaced them."""
        self._held = step, weights_of(self._module, trainable_names(self._module))

    def _scales(self) -> dict[str, Tensor] | None:
        if self._options.preconditioner != "adam":
            return None
        names = self._scored()
        return adam_scales(
            self._trainer.optimizers, {name: tensor for name, tensor in self._module.named_parameters() if name in names}
        )

    def keep_unfrozen(self, step: int) -> None:
        """Write the values of parameters that begin to be trained, before their first step: earlier snapshots lack them."""
        if sum(parameter.requires_grad for parameter in self._module.parameters()) == len(self._trainable):
            return
        before, self._trainable = self._trainable, trainable_names(self._module)
        new = {name: tensor for name, tensor in self._module.named_parameters() if name in self._trainable - before}
        if new and self._options.writes_weights and self._trainer.is_global_zero and self._directory.ledger.snapshots():
            self._directory.ledger.append_unfrozen(step, new)

    def _record(self, recorder: Recorder, index: int, epoch: int) -> SnapshotRecord:
        optimizers = self._trainer.optimizers
        interval = recorder.interval(optimizers)
        names = self._scored()
        scored = {name: parameter for name, parameter in self._module.named_parameters() if name in names}
        return snapshot_record(
            index,
            epoch=epoch,
            step=recorder.step,
            steps=interval.steps,
            visits=interval.samples / len(self._setup.train),
            rates=interval.mean,
            last_rates=interval.last,
            groups=self._groups(names),
            elements=sum(parameter.numel() for parameter in scored.values()),
            frozen=frozen_digest(self._module, trainable_names(self._module)),
        )

    def _groups(self, names: frozenset[str]) -> dict[str, int]:
        """The group of each of the named parameters, in the model's order; one more for those that no optimizer moves."""
        numbered = group_of_parameters(self._trainer.optimizers)
        idle = sum(len(optimizer.param_groups) for optimizer in self._trainer.optimizers)
        return {name: numbered.get(id(tensor), idle) for name, tensor in self._module.named_parameters() if name in names}

    def finish(self) -> None:
        """Attribute what is due at the end, log it, and write the results."""
        snapshots = self._directory.ledger.snapshots()
        if self._trainer.is_global_zero:
            self._directory.end()
        if self._options.when == "never" or not snapshots:
            return
        # live, only what a killed process left undone
        due = self._attributor.unfinished(snapshots) if self._options.when == "snapshot" else snapshots
        if due:
            with untouched_process():
                copy = self._copy()
                for snapshot in due:
                    self._attributor.attribute_stored(copy, snapshot)
                    self._attributed(snapshot)
        if self._run is not None:
            results = finish(self._run, self._view, self._setup, self._processes, self._copy)
            for sink in self._sinks:
                sink.finish(results)

    def _copy(self) -> LightningModule:
        return isolated_copy(self._module, self._setup.dtype)

    @property
    def _view(self) -> View:
        """What is shown."""
        return self._options.view(self._method.measure)

    def _attributed(self, snapshot: Snapshot) -> None:
        """Log a snapshot's point, and drop weights that are not to be kept."""
        if self._run is None:
            return
        reliance = point(self._run, snapshot.index, self._view)
        for sink in self._sinks:
            sink.point(reliance)
        if not self._options.keep_snapshots:
            snapshot.discard_weights()

    def _weights_bytes(self) -> int:
        trainable = (tensor for tensor in self._module.parameters() if tensor.requires_grad)
        return sum(tensor.nbytes for tensor in (*trainable, *self._module.buffers()))


def _validation_loaders(trainer: Trainer) -> Any:
    """The fit's validation loaders, also where the Trainer has not asked for them yet; None where there are none."""
    if trainer.val_dataloaders is not None:
        return trainer.val_dataloaders
    source = trainer.fit_loop.epoch_loop.val_loop._data_source
    return source.dataloader() if source.is_defined() else None


def averaging_callback(callbacks: Sequence[Any]) -> str | None:
    """The first callback that averages weights over the fit: Lightning's own kinds, and what is derived from them."""
    kinds = {"StochasticWeightAveraging", "WeightAveraging"}  # by name: there are those of two packages
    found = (one for one in callbacks if kinds & {parent.__name__ for parent in type(one).__mro__})
    return next((type(one).__name__ for one in found), None)


def _expected_snapshots(options: Options, trainer: Trainer) -> int | None:
    """How many snapshots the fit will take; None where its length is not known."""
    if options.every_n_train_steps is not None:
        steps = trainer.estimated_stepping_batches
        return None if steps == float("inf") else -(-int(steps) // options.every_n_train_steps)
    if trainer.max_epochs is None or trainer.max_epochs < 0 or options.every_n_epochs is None:
        return None
    return -(-trainer.max_epochs // options.every_n_epochs)
