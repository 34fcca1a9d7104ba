"""What the callback does during one fit: verify its samples and loss, take snapshots, compute influence, write results.

The callback decides when. A session lasts from `on_train_start` to `on_train_end`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from humanize import naturalsize
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn

from lightning_tracin.attribution.adam import adam_scales, require_second_moments
from lightning_tracin.attribution.attributor import Attributor
from lightning_tracin.attribution.checks import checked_loss
from lightning_tracin.attribution.cost import Cost, Plan
from lightning_tracin.attribution.data_digest import digest_of
from lightning_tracin.attribution.method import method_of
from lightning_tracin.attribution.prepare import (
    GivenLanguages,
    Scored,
    Setup,
    dtype_of,
    opened_mask,
    read_samples,
    require_top_k,
    run_record,
    scored_names,
    verify,
)
from lightning_tracin.attribution.processes import on_rank_zero
from lightning_tracin.attribution.progress import progress_of
from lightning_tracin.attribution.token_losses import TokenLoss
from lightning_tracin.attribution.witnesses import witness_losses
from lightning_tracin.config import SCALED, Options
from lightning_tracin.errors import TracInError
from lightning_tracin.gradients import Coverage
from lightning_tracin.gradients.partition import parts_of
from lightning_tracin.reporting.loggers import sinks_for
from lightning_tracin.reporting.results import point
from lightning_tracin.run import TracInRun
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.filesystem import free_bytes
from lightning_tracin.storage.frozen_digest import frozen_digest
from lightning_tracin.storage.snapshots import (
    Snapshot,
    SnapshotRecord,
    copied,
    folder_name,
    load_weights,
    trainable_names,
    weights_of,
)
from lightning_tracin.trainer.batch_counts import BatchCounts
from lightning_tracin.trainer.environment import Environment
from lightning_tracin.trainer.finish import finish
from lightning_tracin.trainer.fit_facts import (
    averaging_callback,
    changed_schedule,
    expected_snapshots,
    users_objects,
    validation_loaders,
    with_preconditioner,
)
from lightning_tracin.trainer.isolation import discard, isolated_copy, set_moment, untouched_process
from lightning_tracin.trainer.language_warnings import warn_of_mismatch
from lightning_tracin.trainer.learning_rates import Recorder, groups_of, makes_plain_steps, rates_by_group
from lightning_tracin.trainer.live import decided
from lightning_tracin.trainer.tolerance import appended, end_recorded, logged, stored


class Session:
    """The work of the callback in one fit.

    Args:
        options: the callback's.
        probes: loaders of the probes. None: the Trainer's validation loaders.
        languages: given to the callback.
        directory: the run directory.
        trainer: the fit's Trainer.
        module: the module being fitted.

    Attributes:
        directory: the run directory.

    Raises:
        TracInError: influence cannot be computed for the samples, the loss or the parameters.
    """

    def __init__(
        self,
        options: Options,
        probes: Any,
        languages: GivenLanguages,
        directory: RunDirectory,
        trainer: Trainer,
        module: LightningModule,
    ) -> None:
        self.directory, self._trainer, self._module, self._languages = directory, trainer, module, languages
        self._options = options = self._possible(with_preconditioner(options, trainer))
        self._processes = Environment(module, trainer.strategy)
        progress = trainer.is_global_zero and progress_of(trainer.progress_bar_callback)
        loader: Any = trainer.train_dataloader
        loaders = validation_loaders(trainer) if probes is None else probes
        train, probes = read_samples(loader, loaders, languages, options, self._processes, progress)
        self._digest = digest_of(loader.dataset)
        self.require_same_data()  # fetched again: a dataset that draws its samples differs at once
        warn_of_mismatch(train.table.language, probes.table.language)
        if options.when != "never":
            require_top_k(options.top_k, len(train))
        if options.preconditioner in SCALED:
            require_second_moments(trainer.optimizers)
        self._setup = Setup(options, train, probes, "", opened_mask(options.mask, module), progress)
        self._trainable = trainable_names(module)
        self._frozen = self._digest_without(self._trainable)
        self._is_full = False
        self._counts = BatchCounts(loader, train)
        self._sinks = sinks_for(trainer.loggers) if trainer.is_global_zero else []
        self._run: TracInRun | None = None
        self._held: tuple[int, dict[str, Tensor]] = (-1, {})  # a step, and the weights right after it
        self._examine(scored_names(options, self._setup.mask, module))

    def _possible(self, options: Options) -> Options:
        """The options as this kind of fit can have them."""
        return options

    def _examine(self, names: frozenset[str]) -> None:
        """Check the loss and the gradients of the named parameters on a copy, and say how large the run will be."""
        options, module, setup = self._options, self._module, self._setup
        copy = isolated_copy(module, dtype_of(options))
        prepared = self._processes.prepared(copy, dtype_of(options))
        loss = checked_loss(copy, setup.train, setup.probes, prepared, unit=options.loss_unit)
        if options.per_token:
            TokenLoss(loss).tokens(prepared(setup.probes.batch([0])))  # a loss without tokens is an error now
        verified = verify(copy, names, loss, setup.train, setup.probes, prepared, "before the fit")
        coverage = verified.coverage
        self._setup = replace(setup, loss=loss.name, decisions=coverage.decisions, deviation=verified.deviation)
        self._scored = Scored.of(coverage)  # without the copy's layers, which need the memory of another model
        self._attributor = Attributor(self.directory, self._processes, self._setup)
        self._method = method_of(options)
        self._view = options.view(self._method.measure)
        groups = groups_of(module, frozenset(coverage.elements), self._trainer.optimizers)
        cost = self._attributor.cost(copy, coverage, groups, loss) if options.when != "never" or options.dry_run else None
        self._options = decided(options, cost, self._trainer, self._processes)
        self._setup = replace(self._setup, options=self._options)
        plan = self._planned(coverage, groups, cost)
        discard(copy, module)
        rank_zero_info(plan.described(self.directory.path))
        self._warn(plan.require_disk(self.directory.path))
        self._bytes = plan.weights_bytes, plan.ingredients_bytes

    def _planned(self, coverage: Coverage, groups: Mapping[str, int], cost: Cost | None) -> Plan:
        """The size of the run, and the cost of its passes."""
        options, setup = self._options, self._setup
        parts = len(parts_of(groups, options.per_layer))
        trainable = (parameter for parameter in self._module.parameters() if parameter.requires_grad)
        weights = sum(tensor.nbytes for tensor in (*trainable, *self._module.buffers()))
        products = self._method.stored_bytes(parts, len(setup.train), setup.probes.table)
        scales = 4 * sum(coverage.elements.values()) if options.preconditioner in SCALED else 0
        return Plan(
            train=setup.train.table,
            probes=setup.probes.table,
            coverage=coverage,
            loss=setup.loss,
            unit=options.loss_unit,
            deviation=setup.deviation,
            kept=None if setup.mask is None else setup.mask.elements(frozenset(coverage.elements)),
            weights_bytes=weights + scales if options.writes_weights else 0,
            ingredients_bytes=products + self._method.factor_bytes(coverage) if options.when != "never" else 0,
            cost=cost,
            snapshots=expected_snapshots(options, self._trainer),
        )

    def _scored_now(self) -> dict[str, nn.Parameter]:
        """The parameters that are scored now."""
        names = scored_names(self._options, self._setup.mask, self._module)
        return {name: parameter for name, parameter in self._module.named_parameters() if name in names}

    def start(self, run: str, recorder: Recorder, resumed: bool) -> None:
        """Start the run directory, or check that it belongs to the resumed fit.

        Args:
            run: id of the fit.
            recorder: counts of the steps before this start.
            resumed: whether the directory already holds this run.
        """
        self._processes.barrier("tracin_checked")
        if self._trainer.is_global_zero:
            averaging = averaging_callback(getattr(self._trainer, "callbacks", ()))
            record = run_record(run, self._setup, self._scored, self._languages, averaging)
            if resumed:
                changed = changed_schedule(self.directory.record().options, self._options)
                if changed is not None:
                    rank_zero_info(changed)
                self.directory.resume(record, recorder.step)
            else:
                record = record.model_copy(update={"began_at": recorder.before_step})
                self.directory.start(record, self._setup.train.table, self._setup.probes.table)
            self._warn(self.directory.record().uncovered)
        self._processes.barrier("tracin_start")
        if self._trainer.is_global_zero:
            for sink in self._sinks:
                self._warn(logged(partial(sink.settings, self.directory.record()), self.directory))
            self._run = TracInRun(self.directory)
        else:
            self.directory.reload()

    def require_same_data(self) -> None:
        """Check that the fit still trains on the samples that it began with.

        Raises:
            TracInError: it does not.
        """
        loader: Any = self._trainer.train_dataloader
        if digest_of(loader.dataset) != self._digest:
            raise TracInError(
                "The train samples are not those that the fit began with (a loader that is made again with other data, a dataset "
                "that grows, or random augmentation in the dataset), so their influence cannot be computed later. Train on a "
                "dataset that stays the same, and augment in the module; or use a `ContributionCallback`, which keeps account "
                "during the fit and works with data that change."
            )

    def samples_in(self, batch: Any, batch_idx: int) -> int:
        """Number of samples in a batch of this rank."""
        return self._counts.samples_in(batch, batch_idx, self._trainer.train_dataloader)

    def _warn(self, message: str | None) -> None:
        if message is not None and self._trainer.is_global_zero:
            rank_zero_warn(message)

    def _has_room(self) -> bool:
        """Whether the disk holds one more snapshot and what is still to be computed; a warning says so once if not."""
        if self._is_full:
            return False
        weights, products = self._bytes
        waiting = len(self.directory.ledger.snapshots()) if self._options.when == "fit_end" else 0
        needed = weights + products * (waiting + 1)
        free = on_rank_zero(self._processes, lambda: free_bytes(self.directory.path))
        if free is not None and free < needed:
            self._is_full = True
            self._warn(
                f"The disk of {self.directory.path} has {naturalsize(free)} free, but the next snapshot and what is computed at "
                f"the end need {naturalsize(needed)}: the fit goes on, and no more snapshots are taken."
            )
        return not self._is_full

    def snapshot(self, recorder: Recorder, epoch: int) -> bool:
        """Take a snapshot, and compute its influence now with `when="snapshot"`; False if the disk has no room for it."""
        if not self._has_room():
            return False
        step, held = self._held
        weights = held if step == recorder.step else weights_of(self._module, self._kept_names())
        self._held = (-1, {})
        metric = self._options.preconditioner
        scales = None
        if metric in SCALED:
            scales = adam_scales(self._trainer.optimizers, self._scored_now(), factored=metric == "adam-factored")
        with untouched_process(*users_objects(self._trainer)):
            self.require_same_data()
            copy = self._loaded(weights)
            set_moment(copy, epoch - 1, self._trainer.global_step)
            prepared = self._processes.prepared(copy, self._setup.dtype)
            losses = witness_losses(copy, self._setup.loss, self._setup.train, prepared)
            if self._options.when != "snapshot":
                discard(copy, self._module)
        record = self._record(recorder, epoch, frozenset(weights), losses)
        self._processes.barrier("tracin_ledger_read")

        def append() -> None:
            self.directory.discard(folder_name(record))  # left by a killed fit
            self.directory.ledger.append(record, weights if self._options.writes_weights else None, scales)

        refusal = on_rank_zero(self._processes, lambda: appended(append, folder_name(record), self.directory))
        self._warn(refusal)
        self._is_full = refusal is not None
        if self._is_full:
            return False
        if not self._trainer.is_global_zero:
            self.directory.ledger.reload()
        if self._options.when == "snapshot":
            with untouched_process(*users_objects(self._trainer)):
                added = self.directory.ledger.snapshots()[record.index]
                if self._stored(partial(self._attributor.attribute, copy, added, scales), added):
                    self._attributed(added)
                discard(copy, self._module)
        return True

    def _kept_names(self) -> frozenset[str]:
        """Names of the parameters that a snapshot stores: the trainable ones, or all if others have changed in the fit."""
        trainable = frozenset(trainable_names(self._module))
        if self._digest_without(trainable) == self._frozen:
            return trainable
        return frozenset(name for name, _ in self._module.named_parameters())

    def _digest_without(self, kept: frozenset[str]) -> str:
        return frozen_digest(self._module, kept)

    def hold_weights(self, step: int) -> None:
        """Keep the weights as they are after a step, for a snapshot of it that is taken when others may have replaced them."""
        self._held = step, copied(weights_of(self._module, self._kept_names()))

    def keep_unfrozen(self, step: int) -> None:
        """Save parameters that have just been unfrozen, before their first step: earlier snapshots do not contain them."""
        if sum(parameter.requires_grad for parameter in self._module.parameters()) == len(self._trainable):
            return
        before, self._trainable = self._trainable, trainable_names(self._module)
        self._frozen = self._digest_without(self._trainable)
        new = {name: tensor for name, tensor in self._module.named_parameters() if name in self._trainable - before}
        if new and self._options.writes_weights and self._trainer.is_global_zero and self.directory.ledger.snapshots():
            self.directory.ledger.append_unfrozen(step, new)

    def _record(self, recorder: Recorder, epoch: int, stored: frozenset[str], losses: tuple[float, ...]) -> SnapshotRecord:
        interval = recorder.interval(self._trainer.optimizers)
        scored = self._scored_now()
        groups = groups_of(self._module, frozenset(scored), self._trainer.optimizers)
        return SnapshotRecord(
            index=len(self.directory.ledger.snapshots()),
            epoch=epoch,
            step=recorder.step,
            steps=interval.steps,
            visits=interval.samples / len(self._setup.train),
            learning_rates=rates_by_group(interval.mean, groups),
            last_learning_rates=rates_by_group(interval.last, groups),
            groups=groups,
            elements=sum(parameter.numel() for parameter in scored.values()),
            frozen=self._digest_without(stored),
            global_step=int(self._trainer.global_step),
            witnesses=losses,
            plain_steps=makes_plain_steps(self._trainer.optimizers),
        )

    def finish(self) -> None:
        """Compute the influence that is still missing, write the results, and log them; what fails is a warning."""
        snapshots = self.directory.ledger.snapshots()
        if self._trainer.is_global_zero:
            self._warn(end_recorded(self.directory, self._options))
        if self._options.when == "never" or not snapshots:
            return
        due = self._attributor.unfinished(snapshots)  # with when="snapshot", those that a killed process left incomplete
        shown = due if self._options.when == "snapshot" else snapshots
        if self.directory.record().options.keep_snapshots:
            due = shown  # also notices weights that were deleted
        if shown and not self._completed(shown, due):
            return
        if self._run is not None:
            written = finish(self._run, self._view, self._setup, self._processes, self._copy)
            self._warn(written.remedy)
            for sink in self._sinks:
                for part in sink.finishing(written.results, self.directory.results) if written.results is not None else ():
                    self._warn(logged(part, self.directory))

    def _completed(self, shown: Sequence[Snapshot], due: Sequence[Snapshot]) -> bool:
        """Compute what is due, and log what is shown; False if the system refuses to store it."""
        with untouched_process(*users_objects(self._trainer)):
            copy = self._copy()
            try:
                for snapshot in shown:
                    compute = partial(self._attributor.attribute_stored, copy, snapshot)
                    if snapshot in due and not self._stored(compute, snapshot):
                        return False
                    self._attributed(snapshot)
            finally:
                discard(copy, self._module)
        return True

    def _stored(self, compute: Callable[[], None], snapshot: Snapshot) -> bool:
        """Compute and store the influence at a snapshot; False, with a warning, if the system refuses to store it."""
        refusal = stored(compute, snapshot, self.directory, self._options, self._processes)
        self._warn(refusal)
        return refusal is None

    def _copy(self) -> LightningModule:
        return isolated_copy(self._module, self._setup.dtype)

    def _loaded(self, weights: Mapping[str, Tensor]) -> LightningModule:
        """A copy with these weights."""
        copy = self._copy()
        load_weights(copy, weights)
        return copy

    def _attributed(self, snapshot: Snapshot) -> None:
        """Log a snapshot's results, and delete its weights with `keep_snapshots=False`."""
        if self._run is None:
            return
        if self._sinks:
            reliance = point(self._run, snapshot.index, self._view)
            for sink in self._sinks:
                self._warn(logged(partial(sink.point, reliance, self._options.when == "snapshot"), self.directory))
        if not self._options.keep_snapshots:
            snapshot.discard_weights()
