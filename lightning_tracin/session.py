"""One fit's work: from its samples, verified at the start, to snapshots, ingredients and results.

The callback says when; here is what. A session lives from `on_train_start` to `on_train_end`.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from lightning_utilities.core.rank_zero import rank_zero_info
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from lightning_tracin.attribution import Job, attribute_snapshot, free_share
from lightning_tracin.checks import check_gradients, checked_loss
from lightning_tracin.directory import RunDirectory, RunRecord, Settings, known_samples, package_versions
from lightning_tracin.errors import TracInError
from lightning_tracin.gradients import plan_coverage
from lightning_tracin.isolation import isolated_copy, untouched_process
from lightning_tracin.learning_rates import Recorder, group_of_parameters
from lightning_tracin.loggers import sinks_for
from lightning_tracin.losses import loss_named
from lightning_tracin.options import Options
from lightning_tracin.plan import Plan
from lightning_tracin.probes import chosen_probes, probes_from_loaders
from lightning_tracin.report import write_results
from lightning_tracin.results import analyse, point
from lightning_tracin.run import TracInRun
from lightning_tracin.samples import from_loader
from lightning_tracin.snapshots import Snapshot, SnapshotRecord, folder_name, load_weights, trainable_names, weights_of


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
        train = from_loader(trainer.train_dataloader, options.columns, "train samples", options.languages)
        self.train = replace(train, progress=self._progress)
        loaders = options.probes if options.probes is not None else _validation_loaders(trainer)
        self.probes = chosen_probes(
            probes_from_loaders(loaders, options.columns, options.languages_of_probes),
            options.probe_languages,
            options.max_probes_per_language,
        )
        if options.when != "never" and options.view.top_k > len(self.train):
            raise TracInError(
                f"top_k={options.view.top_k} is larger than the train set ({len(self.train)} samples); choose a smaller `top_k`."
            )
        names = options.scored(module)
        self._trainable = trainable_names(module)
        copy = isolated_copy(module, options.torch_dtype)
        coverage = plan_coverage(copy, names)
        loss = checked_loss(copy, self.train, self.probes, self._prepared)
        check_gradients(copy, coverage, loss, self.train, self._prepared, "train sample", "before the fit")
        check_gradients(copy, coverage, loss, self.probes, self._prepared, "probe", "before the fit")
        self._loss = loss.name
        self._decisions = coverage.decisions
        self._checked = False
        self._plan = Plan(
            train=self.train.table,
            probes=self.probes.table,
            parameters=len(coverage.elements),
            elements=coverage.total,
            weights_bytes=self._weights_bytes() if options.writes_weights else 0,
            ingredients_bytes=self._ingredients_bytes() if options.when != "never" else 0,
            snapshots=_expected_snapshots(options, trainer),
        )
        rank_zero_info(self._plan.described(directory.path))
        self._plan.require_disk(directory.path)
        self._sinks = sinks_for(trainer.loggers) if trainer.is_global_zero else []

    def start(self, run: str, step: int, resumed: bool) -> None:
        """Write what the run is, or find it as it was.

        Args:
            run: identity of the fit.
            step: optimizer steps made before.
            resumed: whether the directory holds this run already.
        """
        self._trainer.strategy.barrier("tracin_checked")
        if self._trainer.is_global_zero:
            options = self._options
            record = RunRecord(
                run=run,
                settings=Settings(
                    every_n_epochs=options.every_n_epochs,
                    every_n_train_steps=options.every_n_train_steps,
                    parameters=None if options.parameters is None else tuple(options.parameters),
                    dtype=options.dtype,
                    batch_size=options.batch_size,
                ),
                loss=self._loss,
                train=known_samples(self.train.table),
                probes=known_samples(self.probes.table),
                parameters=self._plan.parameters,
                elements=self._plan.elements,
                versions=package_versions(),
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
        record = self._record(recorder, len(snapshots), epoch)
        self._trainer.strategy.barrier("tracin_ledger_read")
        if self._trainer.is_global_zero:
            shutil.rmtree(self._directory.path / "ingredients" / folder_name(record), ignore_errors=True)  # a killed fit's
            self._directory.ledger.append(record, weights if self._options.writes_weights else None)
        self._trainer.strategy.barrier("tracin_ledger_written")
        if self._options.when == "snapshot":
            with untouched_process():
                copy = isolated_copy(self._module, self._options.torch_dtype)
                self._attribute(copy, self._directory.ledger.snapshots()[record.index], weights)

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
        numbered, idle = group_of_parameters(optimizers), len(interval.mean)
        names = self._options.scored(self._module)
        scored = {name: parameter for name, parameter in self._module.named_parameters() if name in names}
        groups = {name: numbered.get(id(parameter), idle) for name, parameter in scored.items()}
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
        )

    def finish(self) -> None:
        """Attribute what is due at the end; log and write the results."""
        snapshots = self._directory.ledger.snapshots()
        if self._options.when == "never" or not snapshots:
            return
        due = snapshots
        if self._options.when == "snapshot":  # only what a killed process left undone
            due = tuple(snapshot for snapshot in snapshots if not self._directory.ingredients(snapshot).is_complete())
        self._trainer.strategy.barrier("tracin_due")
        if due:
            with untouched_process():
                copy = isolated_copy(self._module, self._options.torch_dtype)
                for snapshot in due:
                    self._attribute(copy, snapshot, snapshot.state_dict())
        if self._trainer.is_global_zero:
            results = analyse(TracInRun(self._directory), self._options.view, self._progress)
            write_results(self._directory.results, results)
            for sink in self._sinks:
                sink.finish(results)
            rank_zero_info(f"TracIn: reliance at {len(snapshots)} snapshots is in {self._directory.results}.")

    def _attribute(self, copy: LightningModule, snapshot: Snapshot, weights: dict[str, Tensor]) -> None:
        """Compute one snapshot's ingredients and log its point."""
        load_weights(copy, weights)
        trainer, options = self._trainer, self._options
        coverage = plan_coverage(copy, frozenset(snapshot.record.groups), self._decisions)
        loss = loss_named(copy, self._loss)
        if not self._checked:  # once more: at the start, a head of zeros may have hidden the gradients of all other layers
            check_gradients(copy, coverage, loss, self.train, self._prepared, "train sample", f"at snapshot {snapshot.name}")
            self._checked = True
        attribute_snapshot(
            copy,
            coverage,
            snapshot.record.groups,
            len(snapshot.learning_rates),
            Job(
                train=self.train,
                probes=self.probes,
                loss=loss,
                prepare=self._prepared,
                batch_size=options.batch_size,
                memory_budget=options.memory_budget or int(trainer.strategy.broadcast(free_share(copy.device))),
                rank=trainer.global_rank,
                ranks=trainer.world_size,
                progress=self._progress,
            ),
            self._directory.ingredients(snapshot),
            snapshot.name,
        )
        trainer.strategy.barrier("tracin_attributed")
        if not trainer.is_global_zero:
            return
        reliance = point(TracInRun(self._directory), snapshot.index, options.view)
        for sink in self._sinks:
            sink.point(reliance)
        if not options.keep_snapshots:
            snapshot.discard_weights()

    def _prepared(self, batch: Any) -> Any:
        """A batch as the fit gives it to a step, in the precision of the scores."""
        dtype: torch.dtype = self._options.torch_dtype
        batch = self._module._on_before_batch_transfer(batch)
        batch = self._trainer.strategy.batch_to_device(batch)
        return apply_to_collection(batch, Tensor, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)

    def _weights_bytes(self) -> int:
        trainable = (tensor for tensor in self._module.parameters() if tensor.requires_grad)
        return sum(tensor.nbytes for tensor in (*trainable, *self._module.buffers()))

    def _ingredients_bytes(self) -> int:
        groups = len(set(group_of_parameters(self._trainer.optimizers).values()))
        return 4 * max(1, groups) * (len(self.train) + 1) * (len(self.probes) + 1)


def _validation_loaders(trainer: Trainer) -> Any:
    """The fit's validation loaders, also where the Trainer has not asked for them yet; None where there are none."""
    if trainer.val_dataloaders is not None:
        return trainer.val_dataloaders
    source = trainer.fit_loop.epoch_loop.val_loop._data_source
    return source.dataloader() if source.is_defined() else None


def _expected_snapshots(options: Options, trainer: Trainer) -> int | None:
    """How many snapshots the fit will take; None where its length is not known."""
    if options.every_n_train_steps is not None:
        steps = trainer.estimated_stepping_batches
        return None if steps == float("inf") else -(-int(steps) // options.every_n_train_steps)
    if trainer.max_epochs is None or trainer.max_epochs < 0 or options.every_n_epochs is None:
        return None
    return -(-trainer.max_epochs // options.every_n_epochs)
