"""`ContributionCallback`: accounts, during the fit, for whose data lowered each language's loss."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from lightning_utilities.core.apply_func import apply_to_collection
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_tracin.attribution.batch_groups import BatchGroups
from lightning_tracin.attribution.prepare import GivenLanguages
from lightning_tracin.attribution.processes import acquired, on_rank_zero
from lightning_tracin.callbacks.directories import default_directory, placed_first, skipped
from lightning_tracin.config import ContributionOptions
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.account import AccountStore
from lightning_tracin.storage.filesystem import Place, place
from lightning_tracin.storage.lock import RunLock
from lightning_tracin.trainer.accounting import Accounting
from lightning_tracin.trainer.compat import CallbackBase
from lightning_tracin.trainer.environment import Environment, refuse_sharded
from lightning_tracin.trainer.fit_facts import users_objects
from lightning_tracin.trainer.isolation import untouched_process
from lightning_tracin.trainer.loader_watch import LoaderWatch


class ContributionCallback(CallbackBase):
    """Accounts for the loss of each probe language, step by step: by how many nats each train language lowered it.

    It needs no snapshots and no second pass over the train samples, so it works with streams and with data that change. The fit
    is the same as without it, bit for bit. It works alone or beside a `TracInCallback`, also in one directory.

    With `samples=True`, `run.top(by="contribution", group=...)` ranks the train samples by what each contributed itself; the
    samples of a language add up to what its language contributed. What a moment carries on and what the probes' gradients change
    within a window is followed approximately (`attribution.sample_credits` says how), least well in the first steps of Adam.
    Parameters of layers without a rule, which the line before the fit names, have no gradients of samples: what they contributed
    is shared by all samples of a language equally.

    Args:
        dirpath: the run directory; the account is in its folder `contributions`. Default: next to the first logger's files, or
            `tracin` in the Trainer's `default_root_dir`.
        probes: a DataLoader (or several) with the samples whose loss is accounted for. Default: the fit's validation loaders.
        languages: each train sample's language (or group), in dataset order. Default: read from the column.
        languages_of_probes: each probe's language (or group), in the order of the probe datasets. Default: read from the column.
        options: any field of `config.ContributionOptions`, by name.

    Attributes:
        accounting: the account of the fit that goes on; None outside a fit.

    Raises:
        TracInError: an option is invalid or does not exist.

    Example:
        >>> account = ContributionCallback("runs/xnli", language_column="lang", window=10)
        >>> account.options.window, account.options.every_n_steps
        (10, 1)

        Add it to a Trainer; skipped here, because it takes a fit.

        >>> Trainer(max_epochs=3, callbacks=[account]).fit(module, train_loader, val_loader)  # doctest: +SKIP
        >>> TracInRun.open("runs/xnli").contributions()  # doctest: +SKIP
    """

    def __init__(
        self,
        dirpath: Place | None = None,
        probes: DataLoader[Any] | list[DataLoader[Any]] | None = None,
        languages: Sequence[str | bool] | None = None,
        languages_of_probes: Sequence[str | bool] | None = None,
        **options: Any,
    ) -> None:
        self.options = ContributionOptions(**options)
        self.probes = probes
        self.languages = GivenLanguages(languages, languages_of_probes)
        self.dirpath = None if dirpath is None else place(dirpath)
        self._named = None if self.dirpath is None else self.dirpath.name
        self._account = ""
        self._ended: dict[str, Any] = {}  # the state of an account that has ended, for checkpoints that are saved later
        self._state: dict[str, Any] | None = None
        self._watch: LoaderWatch | None = None
        self.accounting: Accounting | None = None
        self._lock: RunLock | None = None

    @property
    def state_key(self) -> str:
        """The key of this callback's state in a checkpoint: what it accounts for, and its directory's name (a run may move)."""
        return self._generate_state_key(by=self.options.by, dirpath=self._named)

    def state_dict(self) -> dict[str, Any]:
        """The account in the middle of its window, as plain types and tensors."""
        if self.accounting is None:
            return self._ended
        return {"identity": self._account, **self.accounting.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with an account from a checkpoint."""
        self._state = state_dict or None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the directory, and stand where the Trainer sets up its train loader."""
        if stage != "fit" or skipped(trainer):
            return
        self._end()
        self._ended = {}
        refuse_sharded(trainer.strategy, "ContributionCallback", "use `strategy='ddp'` or a single device")
        others = placed_first(self, trainer)
        if self.dirpath is None:
            beside = (getattr(other, "dirpath", None) for other in others if type(other).__name__ == "TracInCallback")
            self.dirpath = place(trainer.strategy.broadcast(str(next(filter(None, beside), default_directory(trainer, 1)))))
        if any(isinstance(other, ContributionCallback) and other.dirpath == self.dirpath for other in others):
            raise TracInError(
                f"Two ContributionCallbacks of this Trainer write to {self.dirpath}; give each a `dirpath` of its own."
            )

        def columns(dataset: Any) -> Sequence[str]:
            return BatchGroups(dataset, self.options, self.languages.train).beside

        self._watch = LoaderWatch(trainer, columns)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the probes, look at them, and start the account."""
        if skipped(trainer):
            rank_zero_info("ContributionCallback does nothing in a `fast_dev_run` or `barebones` fit.")
            return
        assert self.dirpath is not None
        assert self._watch is not None
        store, environment = AccountStore(self.dirpath), Environment(pl_module, trainer.strategy)
        self._lock = acquired(store.folder, environment)
        state = self._state if trainer.global_step > 0 else None
        self._state = None
        on_rank_zero(environment, lambda: self._make_room(store, state))
        with untouched_process(*users_objects(trainer)):
            accounting = Accounting(self.options, self.probes, self.languages, store, trainer, pl_module, self._watch)
        self._account = str(trainer.strategy.broadcast(uuid.uuid4().hex)) if state is None else str(state["identity"])
        try:
            accounting.start(self._account, state, trainer.global_step // max(1, len(trainer.optimizers)))
        except BaseException:
            accounting.close()
            raise
        self.accounting = accounting

    def _make_room(self, store: AccountStore, state: dict[str, Any] | None) -> None:
        """Clear the folder of an account that may be replaced; refuse any other account than the one that goes on."""
        if state is None:
            if store.is_there and not self.options.overwrite and store.windows():
                raise TracInError(
                    f"{store.folder} holds another account ({len(store.windows())} windows). Choose another `dirpath`, replace "
                    "it with `overwrite=True`, or resume its fit with `ckpt_path`."
                )
            store.clear()
        elif not store.is_there or store.record().account != state["identity"]:
            raise TracInError(
                f"{store.folder} does not hold the account that the checkpoint belongs to; restore it, or choose another "
                "`dirpath` for an account that begins here."
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Split the gradients of this batch."""
        if self.accounting is not None:
            self.accounting.batch_starts(trainer.current_epoch + 1, batch_idx)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the steps, and end a window that is long enough."""
        if self.accounting is not None:
            self.accounting.batch_ends()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the account, write its results and log them."""
        if self.accounting is None:
            return
        if self.accounting.step == 0:
            rank_zero_warn(
                "ContributionCallback noticed no optimizer step, so there is nothing to account for. Under manual optimization, "
                "step the optimizers from `self.optimizers()`."
            )
        self._keep()
        self.accounting.finish()
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Release the directory: the fit ends without `on_train_end`."""
        if self.accounting is not None:
            self._keep()
        self._end()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Release the directory, however the fit ended."""
        self._end()

    def _keep(self) -> None:
        """Keep the state that the account has before it ends, off the accelerator."""
        self._ended = apply_to_collection(self.state_dict(), Tensor, lambda one: one.cpu())

    def _end(self) -> None:
        if self.accounting is not None:
            self.accounting.close()
            self.accounting = None
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None
