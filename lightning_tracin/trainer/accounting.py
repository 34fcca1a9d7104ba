"""What ContributionCallback does during one fit: splits steps by train group, and looks at the probes where windows meet.

The callback decides when. An accounting lasts from `on_train_start` to `on_train_end`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from humanize import naturalsize
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from lightning_tracin.attribution.account_memory import account_memory
from lightning_tracin.attribution.accounts import DECAY, MOMENTUM, Account
from lightning_tracin.attribution.batch_groups import BatchGroups, GroupNames
from lightning_tracin.attribution.prepare import GivenLanguages
from lightning_tracin.attribution.processes import on_rank_zero
from lightning_tracin.attribution.window_length import is_accounted, window_length
from lightning_tracin.config import ContributionOptions
from lightning_tracin.errors import TracInError
from lightning_tracin.gradients.group_split import UNDIVIDED, GroupSplit
from lightning_tracin.storage.account import OTHER_SOURCES, AccountRecord, AccountStore, WindowRecord
from lightning_tracin.storage.records import package_versions
from lightning_tracin.trainer.account_probes import AccountProbes
from lightning_tracin.trainer.account_results import AccountResults
from lightning_tracin.trainer.account_samples import AccountSamples
from lightning_tracin.trainer.environment import Environment
from lightning_tracin.trainer.joined_gradients import JoinedGradients, joined_counts
from lightning_tracin.trainer.learning_rates import unwrapped
from lightning_tracin.trainer.loader_watch import LoaderWatch

#: The sources that are no group of train samples, by their names in tables.
_OTHERS = dict(zip(OTHER_SOURCES, (DECAY, MOMENTUM, UNDIVIDED), strict=True))


@dataclass
class _Window:
    """The window that the fit is in.

    Attributes:
        begin: the trainable parameters where it began, by name.
        losses: of the probes there.
        first: its first step.
        length: in steps; None until the first batch shows how many samples a step has.
        number: from 1.
        accounted: steps of it that were split.
        samples: of each group in these.
    """

    begin: dict[str, Tensor]
    losses: Tensor
    first: int
    length: int | None
    number: int = 1
    accounted: int = 0
    samples: Counter[str] = field(default_factory=Counter)


class Accounting:
    """The account of one fit.

    Args:
        options: the callback's.
        probes: loaders of the probes. None: the Trainer's validation loaders.
        languages: given to the callback.
        store: the account's files.
        trainer: the fit's Trainer.
        module: the module being fitted.
        watch: knows the samples of each batch.

    Attributes:
        account: the sources' parts of the updates.
        names: of the train groups.

    Raises:
        TracInError: the train samples' groups are not known, or the probes cannot be evaluated.
    """

    def __init__(
        self,
        options: ContributionOptions,
        probes: Any,
        languages: GivenLanguages,
        store: AccountStore,
        trainer: Trainer,
        module: LightningModule,
        watch: LoaderWatch,
    ) -> None:
        self._options, self._store, self._trainer, self._watch = options, store, trainer, watch
        self._given = languages.train
        self._environment = Environment(module, trainer.strategy)
        self._results = AccountResults(store, trainer, self._environment)
        self._has_stopped = False  # because a window could not be stored
        self._read_at = (watch.loader, watch.loader.passes)
        self._groups = BatchGroups(watch.loader.dataset, options, languages.train)
        self.names = GroupNames(self._groups.names)
        self._probes = AccountProbes(options, probes, languages, trainer, module, watch.loader)
        split = GroupSplit(module, self._probes.ways, None if options.device is None else torch.device(options.device))
        optimizers = [unwrapped(optimizer) for optimizer in trainer.optimizers]
        join = JoinedGradients(split, self.names) if trainer.world_size > 1 else None
        self._is_split = False
        self._samples: AccountSamples | None = None
        if options.samples:

            def number(name: str) -> int:
                return self.names.number(name)

            self._samples = AccountSamples(self._probes, split, options, store, number, trainer.world_size)
        self.account = Account(module, split, optimizers, join, options.every_n_steps, is_split_now=lambda: self._is_split)
        self._seconds = 0.0
        self._began = time.perf_counter()
        self._epoch = 1
        self._of_batch: list[str] = []  # group of each sample of the batch
        self._waiting: Counter[str] = Counter()  # samples of the batches since the last step
        self._counted = 0  # steps whose samples have been counted
        self._window: _Window | None = None

    @property
    def step(self) -> int:
        """Optimizer steps that the fit has made; with several optimizers, of the one with the most."""
        return max(self.account.steps.values(), default=0)

    # -- the life of an account

    def start(self, account: str, state: Mapping[str, Any] | None, step: int) -> None:
        """Begin the account, or go on with it.

        Args:
            account: its identity.
            state: what `state` returned. None begins a new account.
            step: optimizer steps that the fit has made before.
        """
        if state is None:
            self.account.steps = dict.fromkeys(range(len(self.account.optimizers)), step)
            if self._trainer.is_global_zero:
                self._store.write(self._record(account, step))
                if self._samples is not None:
                    self._store.write_train(self._probes.train_table)
            losses = self._probes.losses(self._epoch, of_all=True)
            self._window = _Window(self._weights(), losses, step + 1, self._options.window)
            if self._samples is not None:
                self._samples.begin_window(self._epoch)
        else:
            on_rank_zero(self._environment, lambda: self._store.refuse_other(self._record(account, step)))
            self.names = GroupNames(state["names"])
            self.account.load(state["account"])
            if self.account.join is not None:
                self.account.join = JoinedGradients(self.account.split, self.names)
            kept = state["window"]
            length = self._options.window or kept["length"]
            if (self._samples is None) != (state.get("samples") is None):
                raise TracInError(
                    f"The account in {self._store.folder} was begun with samples={self._samples is None}; resume it with the "
                    "same option, or choose another `dirpath` for an account that begins here."
                )
            if self._samples is not None:
                self._samples.load(state["samples"])
            self._window = window = _Window(**{**kept, "length": length, "samples": Counter(kept["samples"])})
            on_rank_zero(self._environment, lambda: self._go_on(window.number - 1))
        self._counted = self.step
        if self._samples is not None:
            self.account.credits = self._samples.credits
        rank_zero_info(self._announced())
        self._warn(self.account.approximate)

    def _go_on(self, windows: int) -> None:
        self._store.cut_back(windows)
        self._store.write(self._store.record().model_copy(update={"ended": False}))

    def _record(self, account: str, step: int) -> AccountRecord:
        elements = {name: parameter.numel() for name, parameter in self.account.split.parameters.items()}
        return AccountRecord(
            account=account,
            by=self._options.by,
            groups=self._probes.measured.table.language,
            items=self._probes.measured.table.item,
            queries=tuple(self._probes.queries),
            every_n_steps=self._options.every_n_steps,
            loss=self._probes.loss.name,
            approximate=self.account.approximate,
            undivided={name: elements[name] for name in sorted(self._probes.ways.undivided)},
            began_at=step,
            versions=package_versions(),
        )

    def _announced(self) -> str:
        """The line before the fit: memory, and what is split in which way."""
        split, ways = self.account.split, self._probes.ways
        trainable = {name: one for name, one in split.parameters.items() if one.requires_grad}
        memory = account_memory(split, self.account.optimizers).described(self.names.known)
        line = f"TracIn: the account in {self._store.folder} keeps {memory}."
        repeated = [name for name in ways.around if name in trainable]
        if repeated:
            elements = sum(trainable[name].numel() for name in repeated)
            line += (
                f" {len(repeated)} parameters ({elements:,} elements, such as {repeated[0]}) have no rule: the backward pass of "
                "the module around each is repeated for each group of a batch."
            )
        undivided = [name for name in ways.undivided if name in trainable]
        if undivided:
            elements = sum(trainable[name].numel() for name in undivided)
            line += (
                f" {len(undivided)} parameters ({elements:,} elements, such as {undivided[0]}) cannot be split by group; their "
                'part of the change is the row "undivided".'
            )
        return line if self._samples is None else line + self._samples.announced()

    def _warn(self, message: str | None) -> None:
        if message is not None:
            rank_zero_warn(f"TracIn: {message}")

    # -- batches and steps

    def batch_starts(self, epoch: int, batch_idx: int) -> None:
        """Split the gradients of the batch that the fit has taken, if its step is accounted."""
        if self._has_stopped:
            return
        self._epoch = epoch
        trainer = self._trainer
        if trainer.lightning_module.automatic_optimization and batch_idx % trainer.accumulate_grad_batches == 0:
            self._forget_batches()  # of an epoch that was broken off: the fit sets their gradients to zero
        facts, loader = self._watch.taken(), self._watch.loader
        if self._read_at != (loader, loader.passes):  # samples may change by epoch, and the whole dataset, too
            self._read_at = (loader, loader.passes)
            self._groups = BatchGroups(loader.dataset, self._options, self._given)
        self._of_batch = names = self._groups.of(facts, self.step + 1)
        window = self._current
        if window.length is None:
            accumulated, batches = self._trainer.accumulate_grad_batches, self._trainer.num_training_batches
            a_step, every = len(names) * self._trainer.world_size * accumulated, self._options.every_n_steps
            window.length = window_length(len(self._probes.queries), a_step, batches, accumulated, every)
        for name, one in self.account.split.parameters.items():
            if one.requires_grad and name not in window.begin:  # it has just been unfrozen
                window.begin[name] = one.detach().clone()
        self._is_split = is_accounted(self.step + 1, self._options.every_n_steps)
        if self._is_split:
            samples = None if self._samples is None else self._samples.begin(facts, names)
            self.account.split.begin(torch.tensor([self.names.number(name) for name in names]), samples)
        else:
            self.account.split.pause()

    def batch_ends(self) -> None:
        """Count the steps that were made, and end the window if it is long enough."""
        if self._has_stopped:
            return
        self.account.split.pause()
        window = self._current
        if self._is_split:
            self._waiting.update(self._of_batch)
        if self.step == self._counted:
            return
        self._counted = self.step
        if self._is_split:
            window.accounted += 1
            window.samples.update(joined_counts(self._waiting) if self.account.join is not None else self._waiting)
        self._forget_batches()
        if window.length is not None and self.step - window.first + 1 >= window.length:
            self._end_window()

    def _forget_batches(self) -> None:
        self._waiting.clear()
        if self._samples is not None:
            self._samples.credits.forget()

    @property
    def _current(self) -> _Window:
        assert self._window is not None
        return self._window

    def _weights(self) -> dict[str, Tensor]:
        """A copy of the trainable parameters."""
        return {name: one.detach().clone() for name, one in self.account.split.parameters.items() if one.requires_grad}

    def _end_window(self, is_last: bool = False) -> None:
        window, started = self._current, time.perf_counter()
        totals = self.account.totals()
        names = self.names.known
        others = {name: number for name, number in _OTHERS.items() if any(number in mine for mine in totals.values())}
        sources = [*range(len(names)), *others.values()]
        losses = self._probes.losses(self._epoch, of_all=is_last)
        nats = self._probes.contributions(
            window.begin, totals, sources, self._epoch, self.step - window.first + 1, (window.losses, losses)
        )
        record = WindowRecord(
            number=window.number,
            first_step=window.first,
            last_step=self.step,
            accounted=window.accounted,
            epoch=self._epoch,
            sources=(*names, *others),
            is_group=(*(True for _ in names), *(False for _ in others)),
            samples=(*(window.samples[name] for name in names), *(0 for _ in others)),
        )
        if not self._results.add(record, {"nats": nats, "before": window.losses, "after": losses}):
            self._has_stopped = True
            self.close()
            return
        if self._samples is not None:
            self._samples.end_window(nats[:, : len(names)])
        self.account.start_window()
        begin = {} if is_last else self._weights()
        self._window = _Window(begin, losses, self.step + 1, window.length, window.number + 1)
        if self._samples is not None and not is_last:
            self._samples.begin_window(self._epoch)
        self._seconds += time.perf_counter() - started

    def finish(self) -> None:
        """End the last window and the account."""
        if self._has_stopped:
            pass
        elif self.step >= self._current.first:
            self._end_window(is_last=True)
        else:  # the last step was the last one of its window
            losses = self._probes.losses(self._epoch, of_all=True)
            if self._trainer.is_global_zero:
                self._store.measured_after(losses)
        self._warn(self.account.approximate)
        if self._samples is not None and not self._has_stopped:
            self._warn(on_rank_zero(self._environment, self._samples.write))
        if self.account.remainders:
            name, steps = max(self.account.remainders.items(), key=lambda item: item[1])
            self._warn(
                f"the gradients of {len(self.account.remainders)} parameters (such as {name}, in {steps} steps) were not the "
                'sum of their parts by group; the rest is in the row "undivided".'
            )
        self._results.finish(self.account.approximate, not self._has_stopped)
        part = self._seconds / max(time.perf_counter() - self._began, 1e-9)
        rank_zero_info(
            f"TracIn: the probes' loss is accounted for in {self._store.folder}; looking at them took {part:.0%} of the fit, and "
            f"the vectors {naturalsize(self.account.most_bytes)}, of which {naturalsize(self.account.most_of_rows)} were rows of "
            "embeddings."
        )

    def close(self) -> None:
        """Remove all hooks."""
        self.account.close()

    def state(self) -> dict[str, Any]:
        """What a fit needs to go on with the account in the middle of a window, as plain types and tensors."""
        window = {**vars(self._current), "samples": dict(self._current.samples)}
        samples = None if self._samples is None else self._samples.credits.state()
        return {"names": self.names.known, "account": self.account.state(), "window": window, "samples": samples}
