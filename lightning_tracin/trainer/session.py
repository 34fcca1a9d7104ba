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
from lightning_tracin.attribution.attributor import Attributor, Pass
from lightning_tracin.attribution.batching import Target, bytes_of_a_probe, bytes_of_a_query
from lightning_tracin.attribution.checks import check_gradients, checked_loss
from lightning_tracin.attribution.cost import pass_seconds
from lightning_tracin.attribution.losses import SummedLoss
from lightning_tracin.attribution.masks import read_mask
from lightning_tracin.attribution.plan import Plan
from lightning_tracin.attribution.probes import chosen_probes, probes_from_loaders
from lightning_tracin.attribution.samples import from_loader, measured
from lightning_tracin.config import Options
from lightning_tracin.errors import TracInError
from lightning_tracin.gradients import plan_coverage
from lightning_tracin.gradients.partition import parts_of
from lightning_tracin.reporting.loggers import sinks_for
from lightning_tracin.reporting.results import point
from lightning_tracin.run import TracInRun
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.records import RunRecord, known_samples, package_versions
from lightning_tracin.storage.snapshots import Snapshot, SnapshotRecord, folder_name, frozen_digest, trainable_names, weights_of
from lightning_tracin.trainer.environment import TrainerEnvironment, preparation
from lightning_tracin.trainer.isolation import isolated_copy, untouched_process
from lightning_tracin.trainer.learning_rates import Recorder, group_of_parameters


class Session:
    """Everything that one fit needs.

    Args:
        options: the user's settings.
        directory: where the run goes.
        trainer: the fit's Trainer.
        module: the module being fitted.

    Raises:
        TracInError: the samples, the loss or the parameters are not what influence can be computed for; see each part.
    """

    def __init__(self, options: Options, directory: RunDirectory, trainer: Trainer, module: LightningModule) -> None:
        self._options, self._directory, self._trainer, self._module = options, directory, trainer, module
        self._progress = trainer.is_global_zero and trainer.progress_bar_callback is not None
        environment = TrainerEnvironment(trainer, module)
        train = from_loader(trainer.train_dataloader, options.columns, "train samples", options.languages, environment)
        self.train = measured(replace(train, progress=self._progress), environment)
        loaders = options.probes if options.probes is not None else _validation_loaders(trainer)
        self.probes = chosen_probes(
            probes_from_loaders(loaders, options.columns, options.languages_of_probes, environment),
            options.probe_languages,
            options.max_probes_per_language,
        )
        if options.when != "never" and options.view.top_k > len(self.train):
            raise TracInError(
                f"top_k={options.view.top_k} is larger than the train set ({len(self.train)} samples); choose a smaller `top_k`."
            )
        if options.preconditioner == "adam":
            require_second_moments(trainer.optimizers)
        self._mask = None if options.mask is None else read_mask(options.mask)
        if self._mask is not None:
            self._mask.require_fits(module)
        names = self._scored()
        self._trainable = trainable_names(module)
        copy = self._copy()
        coverage = plan_coverage(copy, names)
        prepared = preparation(environment, options.torch_dtype)
        loss = checked_loss(copy, self.train, self.probes, prepared)
        check_gradients(copy, coverage, loss, self.train, prepared, "train sample", "before the fit")
        check_gradients(copy, coverage, loss, self.probes, prepared, "probe", "before the fit")
        self._work = Pass(
            train=self.train,
            probes=self.probes,
            settings=options.settings(None if self._mask is None else self._mask.sha256),
            loss=loss.name,
            mask=self._mask,
            memory_budget=options.memory_budget,
            progress=self._progress,
            decisions=coverage.decisions,
        )
        self._attributor = Attributor(directory, environment, self._work)
        parts = parts_of(self._groups(names), options.per_layer)
        self._plan = Plan(
            train=self.train.table,
            probes=self.probes.table,
            parameters=len(coverage.elements),
            elements=coverage.total,
            coverage=coverage.by_rule,
            kept=None if self._mask is None else self._mask.elements(names),
            weights_bytes=self._weights_bytes() if options.writes_weights else 0,
            ingredients_bytes=self._ingredients_bytes(len(parts)) if options.when != "never" else 0,
            held_bytes=0,
            seconds=None,
            snapshots=_expected_snapshots(options, trainer),
        )
        if options.when != "never" or options.dry_run:
            scales = self._attributor.on_both_sides(None, names, module.device)
            target = Target("the start of the fit", copy, coverage, parts, scales)
            self._plan = replace(self._plan, **self._cost(target, loss))
        rank_zero_info(self._plan.described(directory.path))
        self._plan.require_disk(directory.path)
        self._sinks = sinks_for(trainer.loggers) if trainer.is_global_zero else []

    def _scored(self) -> frozenset[str]:
        """Names of the parameters whose gradients are compared now: by the patterns, and by the mask."""
        names = self._options.scored(self._module)
        return names if self._mask is None else self._mask.restricted(names)

    def _cost(self, target: Target, loss: SummedLoss) -> dict[str, Any]:
        """What one snapshot's pass will hold in memory, and how long it will take: by a few batches, before the fit."""
        job = self._attributor.job(loss, self._attributor.memory_budget(target.model))
        held = 0
        if self._options.method == "exact":
            held = min(job.memory_budget, len(self.probes) * bytes_of_a_probe(target, job))
        elif self._options.method == "means":
            held = 2 * len(self.probes.table.counts()) * bytes_of_a_query(target.coverage)
        return {"held_bytes": held, "seconds": pass_seconds(target, job, self._options.method)}

    def start(self, run: str, step: int, resumed: bool) -> None:
        """Write what the run is, or find it as it was.

        Args:
            run: identity of the fit.
            step: optimizer steps made before.
            resumed: whether the directory holds this run already.
        """
        self._trainer.strategy.barrier("tracin_checked")
        if self._trainer.is_global_zero:
            record = RunRecord(
                run=run,
                settings=self._work.settings,
                choices=self._options.choices,
                loss=self._work.loss,
                train=known_samples(self.train.table),
                probes=known_samples(self.probes.table),
                parameters=self._plan.parameters,
                elements=self._plan.elements,
                kept_elements=self._plan.kept,
                coverage=dict(self._plan.coverage),
                versions=package_versions(),
                averaging=averaging_callback(getattr(self._trainer, "callbacks", ())),
            )
            if resumed:
                self._directory.resume(record, step)
            else:
                self._directory.start(record, self.train.table, self.probes.table)
        self._trainer.strategy.barrier("tracin_start")

    def snapshot(self, recorder: Recorder, epoch: int) -> None:
        """Take a snapshot now, and attribute it if that is due at once."""
        snapshots = self._directory.ledger.snapshots()
        weights = weights_of(self._module, trainable_names(self._module))
        scales = self._scales()
        record = self._record(recorder, len(snapshots), epoch)
        self._trainer.strategy.barrier("tracin_ledger_read")
        if self._trainer.is_global_zero:
            self._directory.discard(folder_name(record))  # what a killed fit left
            self._directory.ledger.append(record, weights if self._options.writes_weights else None, scales)
        self._trainer.strategy.barrier("tracin_ledger_written")
        if self._options.when == "snapshot":
            with untouched_process():
                added = self._directory.ledger.snapshots()[record.index]
                self._attributor.attribute(self._copy(), added, weights, scales)
                self._attributed(added)

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
        groups, idle = self._groups(names), len(interval.mean)
        extra = (0.0,) if idle in groups.values() else ()  # the group of parameters that no optimizer moves
        return SnapshotRecord(
            index=index,
            epoch=epoch,
            step=recorder.step,
            steps=interval.steps,
            visits=interval.samples / len(self.train),
            learning_rates=interval.mean + extra,
            last_learning_rates=interval.last + extra,
            groups=groups,
            elements=sum(parameter.numel() for parameter in scored.values()),
            frozen=frozen_digest(self._module, trainable_names(self._module)),
        )

    def _groups(self, names: frozenset[str]) -> dict[str, int]:
        """The group of each of the named parameters, in the model's order; one more for those that no optimizer moves."""
        numbered = group_of_parameters(self._trainer.optimizers)
        idle = sum(len(optimizer.param_groups) for optimizer in self._trainer.optimizers)
        return {name: numbered.get(id(tensor), idle) for name, tensor in self._module.named_parameters() if name in names}

    def finish(self) -> None:
        """Attribute what is due at the end; log and write the results."""
        snapshots = self._directory.ledger.snapshots()
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
        results = self._attributor.write_results(self._options.view, self._copy)
        if results is not None:
            for sink in self._sinks:
                sink.finish(results)

    def _copy(self) -> LightningModule:
        return isolated_copy(self._module, self._options.torch_dtype)

    def _attributed(self, snapshot: Snapshot) -> None:
        """Log a snapshot's point, and drop weights that are not to be kept."""
        if not self._trainer.is_global_zero:
            return
        reliance = point(TracInRun(self._directory), snapshot.index, self._options.view)
        for sink in self._sinks:
            sink.point(reliance)
        if not self._options.keep_snapshots:
            snapshot.discard_weights()

    def _weights_bytes(self) -> int:
        trainable = (tensor for tensor in self._module.parameters() if tensor.requires_grad)
        return sum(tensor.nbytes for tensor in (*trainable, *self._module.buffers()))

    def _ingredients_bytes(self, parts: int) -> int:
        if self._options.projection_dim is not None:
            return (2 * self._options.projection_dim + 12) * (len(self.train) + len(self.probes))
        columns = 2 * len(self.probes.table.counts()) if self._options.language_means else len(self.probes)
        return 4 * parts * (len(self.train) + 1) * (columns + 1)


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
