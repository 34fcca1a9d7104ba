"""The shell: when to snapshot and when to attribute. The one module that knows the Trainer's hooks."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities.data import extract_batch_size
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader

from lightning_tracin.attribution.prepare import Sources
from lightning_tracin.attribution.processes import acquired
from lightning_tracin.config import Options
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.filesystem import Place, place
from lightning_tracin.storage.lock import RunLock
from lightning_tracin.trainer.compat import CallbackBase
from lightning_tracin.trainer.environment import TrainerEnvironment, refuse_sharded
from lightning_tracin.trainer.isolation import untouched_process
from lightning_tracin.trainer.learning_rates import Recorder, StepWatch, unwrapped
from lightning_tracin.trainer.session import Session, averaging_callback


class TracInCallback(CallbackBase):
    """Snapshots a fit, computes TracIn influence, and logs cross-lingual reliance.

    When a fit ends after steps that no snapshot covers, a last snapshot is taken, so that the ledger covers the whole fit.

    Args:
        dirpath: the run directory; default: beside the first logger's files, else under the Trainer's `default_root_dir`.
        probes: a DataLoader (or several) of the samples whose influences are asked for; default: the validation loaders.
        languages: each train sample's language, in the dataset's order; default: read from `language_column`.
        languages_of_probes: each probe's language, in the probe datasets' order; default: read from `language_column`.
        options: by name, any field of `config.Options`, which documents and checks them.

    Raises:
        TracInError: a value is out of range, two contradict each other, or there is no such option.

    Example:
        >>> TracInCallback("runs/xnli", item_column="item", top_k=50).options.top_k
        50
    """

    def __init__(
        self,
        dirpath: Place | None = None,
        probes: DataLoader[Any] | list[DataLoader[Any]] | None = None,
        languages: list[str] | None = None,
        languages_of_probes: list[str] | None = None,
        **options: Any,
    ) -> None:
        for name, given in (("languages", languages), ("languages_of_probes", languages_of_probes)):
            if isinstance(given, str):
                raise TracInError(f"{name} should be a list of strings, but is the string {given!r}.")
        self.options = Options(**options)
        self.sources = Sources(None, probes, languages, languages_of_probes)
        self.dirpath = None if dirpath is None else place(dirpath)
        self._run = ""
        self._recorder = Recorder()
        self._last_step = 0
        self._epoch = 1
        self._session: Session | None = None
        self._lock: RunLock | None = None
        self._watch: StepWatch | None = None
        self._began = False

    @property
    def state_key(self) -> str:
        """Tells this callback's state from another's in a checkpoint."""
        options = self.options
        return self._generate_state_key(every_n_epochs=options.every_n_epochs, every_n_train_steps=options.every_n_train_steps)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed fit needs, in plain types."""
        return {
            "run": self._run,
            "recorder": self._recorder.state(),
            "last_step": self._last_step,
            "epoch": self._epoch,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` saved."""
        self._run = state_dict["run"]
        self._recorder = Recorder.from_state(state_dict["recorder"])
        self._last_step = state_dict["last_step"]
        self._epoch = state_dict["epoch"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Resolve the run directory, and refuse what cannot work, before anything is loaded."""
        self._began = False
        if stage != "fit" or _skipped(trainer):
            return
        refuse_sharded(trainer.strategy, "TracInCallback", "use `strategy='ddp'` or a single device")
        # First in every hook: what others put in the place of the trained weights (an average, say) is in no snapshot.
        fitting: Any = trainer  # `callbacks` is not declared
        fitting.callbacks = [self, *(other for other in fitting.callbacks if other is not self)]
        if self.dirpath is None:
            self.dirpath = place(trainer.strategy.broadcast(str(_default_directory(trainer))))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Index the samples, verify loss and gradients on real batches, and start the run directory."""
        self._session, self._began = None, True
        if _skipped(trainer):
            rank_zero_info("TracInCallback does nothing in a `fast_dev_run` or `barebones` fit.")
            return
        assert self.dirpath is not None
        if trainer.global_step == 0:  # another fit than the one that this callback may have seen before
            self._run, self._recorder, self._last_step = "", Recorder(), 0
        directory = RunDirectory(self.dirpath)
        if not self.options.dry_run:
            self._take_lock(trainer, self.dirpath)
        resumed = directory.holds_run and directory.record().run == self._run
        if not resumed and not self.options.dry_run:
            directory.refuse_other_run()
            self._run = str(trainer.strategy.broadcast(uuid.uuid4().hex))
        with untouched_process():
            session = Session(self.options, self.sources, directory, trainer, pl_module)
        if self.options.dry_run:
            rank_zero_info("TracIn: dry_run, so nothing is written and the fit goes on as without the callback.")
            return
        session.start(self._run, self._recorder.step, resumed)
        if resumed and any(snapshot.step == self._recorder.step for snapshot in directory.ledger.snapshots()):
            self._start_interval()  # that snapshot was taken after the checkpoint was saved
        self._watch = StepWatch(trainer.optimizers, self._recorder)
        self._session = session

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the epoch."""
        self._epoch = trainer.current_epoch + 1

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Expect a step; its learning rates count once the optimizer has made it, which a scaler of gradients may skip."""
        if self._session is not None and self._watch is not None:
            self._session.keep_unfrozen(self._recorder.step)
            self._watch.expect(unwrapped(optimizer))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the samples, and snapshot if optimizer steps are what is counted."""
        if self._session is None:
            return
        self._recorder.see(_samples_in_batch(trainer.train_dataloader, batch, batch_idx) * trainer.world_size)
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
        """Take the last snapshot, compute what is due, log and write the results."""
        if self._session is None:
            return
        self._snapshot(self._session)
        if self._recorder.step == 0:
            rank_zero_warn(
                "TracInCallback noticed no optimizer step, so there are no snapshots and no influence. Under manual "
                "optimization, step the optimizers that `self.optimizers()` gives, not the torch optimizers within them."
            )
        self._session.finish()
        self._end()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so where a resumed fit had nothing left to do, so that nothing was computed either."""
        if not self._began:
            rank_zero_warn(
                f"The fit made no step, so TracInCallback did nothing in {self.dirpath}. To compute what an interrupted run "
                "still lacks, resume with a `ckpt_path` from before the last step."
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let other processes have the run directory: the fit has ended without `on_train_end`."""
        self._end()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let other processes have the run directory, however the fit ended."""
        self._end()

    def _take_lock(self, trainer: Trainer, dirpath: Path) -> None:
        """Keep other processes out of the run directory."""
        self._end()
        self._lock = acquired(dirpath, TrainerEnvironment(trainer, trainer.lightning_module))

    def _end(self) -> None:
        self._session = None
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _snapshot(self, session: Session) -> None:
        """Take a snapshot, unless there is one of this step."""
        if self._recorder.step != self._last_step:
            session.snapshot(self._recorder, self._epoch)
            self._start_interval()

    def _start_interval(self) -> None:
        self._recorder.start_interval()
        self._last_step = self._recorder.step


def _samples_in_batch(loader: Any, batch: Any, batch_idx: int) -> int:
    """How many samples a batch holds, by the loader's own count; looked up in the batch where it has none."""
    if loader.batch_size is None or not hasattr(loader.sampler, "__len__"):
        return extract_batch_size(batch)
    return int(min(loader.batch_size, len(loader.sampler) - batch_idx * loader.batch_size))


def _may_swap_weights(trainer: Trainer, module: LightningModule, watcher: TracInCallback) -> bool:
    """Whether code that is not Lightning's own runs between the end of an epoch and the end of the fit."""
    others = [other for other in getattr(trainer, "callbacks", []) if other is not watcher]
    own = any(not type(other).__module__.startswith(("pytorch_lightning.", "lightning.")) for other in others)
    return own or is_overridden("on_train_epoch_end", module) or averaging_callback(others) is not None


def _skipped(trainer: Trainer) -> bool:
    return bool(getattr(trainer, "fast_dev_run", False)) or trainer.barebones


def _default_directory(trainer: Trainer) -> Path:
    """Beside the files of the first logger, else under `default_root_dir`."""
    if not trainer.loggers:
        return place(trainer.default_root_dir) / "tracin"
    logger = trainer.loggers[0]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return place(logger.save_dir or trainer.default_root_dir) / str(logger.name) / version / "tracin"
