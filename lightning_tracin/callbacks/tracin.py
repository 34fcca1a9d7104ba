"""`TracInCallback`: when to take snapshots and when to compute influence. The only module with Trainer hooks."""

from __future__ import annotations

import itertools
import uuid
import weakref
from collections.abc import Sequence
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from lightning_tracin.attribution.prepare import GivenLanguages
from lightning_tracin.attribution.processes import acquired, on_rank_zero
from lightning_tracin.callbacks.directories import default_directory, placed_first, skipped
from lightning_tracin.callbacks.resuming import chosen_state, recorder_at, refuse_other_fit, require_unbroken, states_in
from lightning_tracin.config import Options
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.filesystem import Place, place
from lightning_tracin.storage.lock import RunLock
from lightning_tracin.trainer.compat import CallbackBase, overrides
from lightning_tracin.trainer.environment import Environment, has_pieces, refuse_sharded
from lightning_tracin.trainer.fit_facts import averaging_callback, data_replicas, users_objects
from lightning_tracin.trainer.isolation import untouched_process
from lightning_tracin.trainer.learning_rates import Recorder, StepWatch, unwrapped
from lightning_tracin.trainer.live import as_before
from lightning_tracin.trainer.session import Session
from lightning_tracin.trainer.sharded_session import ShardedSession

#: The way out for strategies whose parts of a model cannot be read tensor by tensor.
_WITHOUT_PIECES = (
    "use `strategy='ddp'` or a single device, or ModelParallelStrategy with `fully_shard` in `configure_model`, under which the "
    "fit takes snapshots"
)


class TracInCallback(CallbackBase):
    """Takes snapshots of a fit, computes TracIn influence between languages, and logs cross-lingual reliance.

    If the fit ends with steps after the last snapshot, one more is taken, so that the snapshots cover the whole fit.

    Args:
        dirpath: the run directory. Default: next to the first logger's files, or `tracin` in the Trainer's `default_root_dir`.
        probes: a DataLoader (or several) with the samples to explain. Default: the fit's validation loaders.
        languages: each train sample's language, in dataset order. Default: read from `language_column`.
        languages_of_probes: each probe's language, in the order of the probe datasets. Default: read from `language_column`.
        options: any field of `config.Options`, by name.

    Raises:
        TracInError: an option is invalid or does not exist, or two options contradict each other.

    Example:
        >>> tracin = TracInCallback("runs/xnli", language_column="lang", item_column="item", top_k=50)
        >>> tracin.options.top_k, tracin.options.similarity, tracin.options.every_n_epochs
        (50, 'dot', 1)

        Add it to a Trainer; skipped here, because it takes a fit.

        >>> Trainer(max_epochs=3, callbacks=[tracin]).fit(module, train_loader, val_loader)  # doctest: +SKIP
        >>> TracInRun.open("runs/xnli").reliance()  # doctest: +SKIP
    """

    def __init__(
        self,
        dirpath: Place | None = None,
        probes: DataLoader[Any] | list[DataLoader[Any]] | None = None,
        languages: Sequence[str | bool] | None = None,  # a LightningCLI file may say `no`, which gets an error with the remedy
        languages_of_probes: Sequence[str | bool] | None = None,
        **options: Any,
    ) -> None:
        self.options = Options(**options)
        self.probes = probes
        self.languages = GivenLanguages(languages, languages_of_probes)
        self.dirpath = None if dirpath is None else place(dirpath)
        self._named = None if self.dirpath is None else self.dirpath.name
        self._run = ""
        self._recorder = Recorder()
        self._last_step, self._last_digest = 0, ""
        self._epoch = 1
        self._session: Session | None = None
        self._lock: RunLock | None = None
        self._watch: StepWatch | None = None
        self._began = False
        self._trainer: Any = None  # of the fit that the state is of
        self._states: dict[str, dict[str, Any]] | None = None  # in the checkpoint that the fit goes on from

    @property
    def state_key(self) -> str:
        """Key of this callback's state in a checkpoint: its schedule, and its directory's name (a run may move)."""
        named = {} if self._named is None else {"dirpath": self._named}
        return self._generate_state_key(**self._schedule, **named)

    @property
    def _legacy_state_key(self) -> str:  # type: ignore[override]
        """Where Lightning looks next: the key of older checkpoints, which has the schedule only."""
        return self._generate_state_key(**self._schedule)

    @property
    def _schedule(self) -> dict[str, Any]:
        return {name: getattr(self.options, name) for name in ("every_n_epochs", "every_n_train_steps")}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed fit needs, as plain types."""
        return {
            "run": self._run,
            "recorder": self._recorder.state(),
            "last_step": self._last_step,
            "last_digest": self._last_digest,
            "epoch": self._epoch,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` saved, unless `on_load_checkpoint` has chosen among the states."""
        if self._states is None:
            self._restore(state_dict)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on from the state of the directory's run, which another schedule or a moved directory saved under another key."""
        self._forget()
        self._states = states_in(checkpoint)
        if self.dirpath is not None:
            directory = RunDirectory(self.dirpath)
            run = directory.record().run if directory.holds_run else None
            state = chosen_state(self._states, run, (self.state_key, self._legacy_state_key))
            if state is not None:
                self._restore(state)

    def _forget(self) -> None:
        self._run, self._recorder, self._states = "", Recorder(), None
        self._last_step, self._last_digest = 0, ""

    def _restore(self, state_dict: dict[str, Any]) -> None:
        self._run, self._last_step, self._epoch = (state_dict[name] for name in ("run", "last_step", "epoch"))
        self._last_digest = state_dict.get("last_digest", "")  # unknown to older versions
        self._recorder = Recorder.from_state(state_dict["recorder"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run directory, and raise an error for unsupported fits before any data is loaded."""
        self._began = False
        if stage != "fit" or skipped(trainer):
            return
        if self._trainer is None or self._trainer() is not trainer:  # the callback may have been used in another fit before
            self._forget()
            self._trainer = weakref.ref(trainer)
        self._states = None
        if not has_pieces(trainer.strategy):
            refuse_sharded(trainer.strategy, "TracInCallback", _WITHOUT_PIECES)
        taken = {other.dirpath for other in placed_first(self, trainer) if isinstance(other, TracInCallback)}
        if self.dirpath is None:
            candidates = (default_directory(trainer, number) for number in itertools.count(1))
            free = next(path for path in candidates if path not in taken)
            self.dirpath = place(trainer.strategy.broadcast(str(free)))
        elif self.dirpath in taken:
            raise TracInError(f"Two TracInCallbacks of this Trainer write to {self.dirpath}; give each a `dirpath` of its own.")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the samples, verify loss and gradients on real batches, and start the run directory."""
        self._session, self._began = None, True
        if skipped(trainer):
            rank_zero_info("TracInCallback does nothing in a `fast_dev_run` or `barebones` fit.")
            return
        assert self.dirpath is not None
        if trainer.global_step == 0:  # the Trainer's fit begins again
            self._forget()
        elif self._recorder.step == 0:  # the callback was not there before
            self._recorder = recorder_at(trainer.global_step, [unwrapped(optimizer) for optimizer in trainer.optimizers])
            self._last_step = self._recorder.step
        self._epoch = trainer.current_epoch + 1  # the hook of an epoch that was interrupted is not called again
        directory, environment = RunDirectory(self.dirpath), Environment(pl_module, trainer.strategy)
        if not self.options.dry_run:
            self._end()
            self._lock = acquired(self.dirpath, environment)
        resumed = directory.holds_run and directory.record().run == self._run
        if not resumed and not self.options.dry_run:
            self._make_room(trainer, directory)
            self._run = str(trainer.strategy.broadcast(uuid.uuid4().hex))
        with untouched_process(*users_objects(trainer)):
            options = as_before(self.options, directory) if resumed else self.options
            kind = ShardedSession if has_pieces(trainer.strategy) else Session
            session = kind(options, self.probes, self.languages, directory, trainer, pl_module)
        if self.options.dry_run:
            rank_zero_info("TracIn: dry_run, so nothing is written and the fit runs as without the callback.")
            return
        if resumed:
            last = self._last_step, self._last_digest
            on_rank_zero(environment, lambda: require_unbroken(directory, self._recorder.step, *last))
        session.start(self._run, self._recorder, resumed)
        if resumed and any(snapshot.step == self._recorder.step for snapshot in directory.ledger.snapshots()):
            self._start_interval(directory)  # that snapshot was taken after the checkpoint was saved
        self._watch = StepWatch(trainer.optimizers, self._recorder)
        self._session = session

    def _make_room(self, trainer: Trainer, directory: RunDirectory) -> None:
        """Clear a directory whose run may be replaced; refuse any other that holds one."""
        if trainer.is_global_zero:
            asked = self.options.overwrite and directory.is_used
            if asked or (directory.holds_run and not directory.ledger.snapshots()):
                why = "as `overwrite=True` asks for" if asked else "which has no snapshots"
                rank_zero_info(f"TracIn: replacing the run in {directory.path}, {why}.")
                directory.clear()
        trainer.strategy.barrier("tracin_cleared")
        directory.reload()
        if trainer.global_step > 0:
            refuse_other_fit(directory, self._states or {}, self._recorder.step)
        directory.refuse_other_run()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the epoch."""
        self._epoch = trainer.current_epoch + 1

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Announce a step; it is counted once the optimizer has made it, because a gradient scaler may skip it."""
        if self._session is not None and self._watch is not None:
            self._session.keep_unfrozen(self._recorder.step)
            self._watch.expect(unwrapped(optimizer))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the samples, and take a snapshot every `every_n_train_steps`."""
        if self._session is None:
            return
        self._recorder.samples += self._session.samples_in(batch, batch_idx) * data_replicas(trainer)
        every = self.options.every_n_train_steps
        if every is not None and self._recorder.step // every > self._last_step // every:
            self._snapshot(self._session)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Snapshot if epochs are what is counted; otherwise hold the weights, which may turn out to be the last ones."""
        if self._session is None:
            return
        every = self.options.every_n_epochs
        if every is not None and self._epoch % every == 0:
            self._snapshot(self._session)
        elif self._recorder.step != self._last_step and _may_swap_weights(trainer, pl_module, self):
            self._session.hold_weights(self._recorder.step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the last snapshot, compute the missing influence, log and write the results."""
        if self._session is None:
            return
        self._snapshot(self._session)
        if self._recorder.step == 0:
            rank_zero_warn(
                "TracInCallback noticed no optimizer step, so there are no snapshots and no influence. Under manual "
                "optimization, step the optimizers from `self.optimizers()`, not the torch optimizers inside them."
            )
        self._session.finish()
        self._end()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if a resumed fit had no step left, because nothing was computed then."""
        if not self._began:
            rank_zero_warn(
                f"The fit made no step, so TracInCallback did nothing in {self.dirpath}. To compute the missing influence of an "
                "interrupted run, resume with a `ckpt_path` from before the last step."
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Release the run directory: the fit ends without `on_train_end`."""
        self._end()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Release the run directory, however the fit ended."""
        self._end()

    def _end(self) -> None:
        self._session = None
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _snapshot(self, session: Session) -> None:
        """Take a snapshot, unless this step already has one."""
        if self._recorder.step != self._last_step and session.snapshot(self._recorder, self._epoch):
            self._start_interval(session.directory)

    def _start_interval(self, directory: RunDirectory) -> None:
        """Begin after the last snapshot of the directory."""
        self._recorder.start_interval()
        self._last_step, self._last_digest = self._recorder.step, directory.ledger.snapshots()[-1].record.digest


def _may_swap_weights(trainer: Trainer, module: LightningModule, watcher: TracInCallback) -> bool:
    """Whether code that is not Lightning's own runs between the end of an epoch and the end of the fit."""
    others = [other for other in getattr(trainer, "callbacks", []) if other is not watcher]
    own = any(not type(other).__module__.startswith(("pytorch_lightning.", "lightning.")) for other in others)
    return own or overrides(module, "on_train_epoch_end") or averaging_callback(others) is not None
