"""The probes of an account: which they are, and what is seen of them at the fit's weights of a moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import IterableDataset

from lightning_tracin.attribution.batching import Job, Target, free_share
from lightning_tracin.attribution.checks import checked_loss
from lightning_tracin.attribution.losses import SummedLoss
from lightning_tracin.attribution.prepare import GivenLanguages, verify
from lightning_tracin.attribution.probe_pass import mean_gradients, probe_losses, slopes
from lightning_tracin.attribution.probes import chosen_probes, probes_from_loaders, some_of_each_language
from lightning_tracin.attribution.samples import SampleSet, from_loader
from lightning_tracin.attribution.window_length import is_close, rules
from lightning_tracin.config import ContributionOptions, SampleColumns
from lightning_tracin.errors import TracInError
from lightning_tracin.gradients import plan_coverage
from lightning_tracin.gradients.freezing import uncompiled
from lightning_tracin.gradients.group_split import GroupSplit, Ways
from lightning_tracin.gradients.group_vectors import TOTAL, GroupVectors
from lightning_tracin.gradients.partition import parts_of
from lightning_tracin.gradients.settled_ways import settled_ways
from lightning_tracin.storage.sample_table import SampleTable
from lightning_tracin.storage.snapshots import trainable_names
from lightning_tracin.trainer.environment import Environment
from lightning_tracin.trainer.fit_facts import users_objects, validation_loaders
from lightning_tracin.trainer.isolation import discard, isolated_copy, set_moment, untouched_process

#: Number of the source that is the whole way through a window.
_WHOLE = -4

#: Samples of the batch on which the ways of splitting gradients are found.
_SAMPLES = 4


class AccountProbes:
    """The probes of an account.

    Args:
        options: the callback's.
        loaders: of the probes. None: the Trainer's validation loaders.
        languages: each sample's group, instead of a column.
        trainer: the fit's.
        module: the module being fitted.
        train_loader: the train loader, some of whose samples are looked at.

    Attributes:
        measured: the probes whose losses are measured.
        queries: those of them whose losses are split, as positions.
        groups: of the measured probes, in alphabetical order.
        loss: the loss of a probe.
        ways: how the fit's gradients are split.

    Raises:
        TracInError: the probes cannot be read, or their loss is not made of their own losses.
    """

    def __init__(
        self,
        options: ContributionOptions,
        loaders: Any,
        languages: GivenLanguages,
        trainer: Trainer,
        module: LightningModule,
        train_loader: Any,
    ) -> None:
        self._options, self._trainer, self._module = options, trainer, module
        self._environment = Environment(module, trainer.strategy)
        self._dtype: torch.dtype = getattr(torch, options.dtype)
        columns = SampleColumns(
            **{**{name: getattr(options, name) for name in SampleColumns.model_fields}, "language_column": options.group_columns}
        )
        if len(options.group_columns) == 1:
            columns = columns.but(language_column=options.group_columns[0])
        with untouched_process(*users_objects(trainer)):
            found = probes_from_loaders(
                validation_loaders(trainer) if loaders is None else loaders, columns, languages.probes, self._environment
            )
            self.measured = chosen_probes(found, options)
            self.queries = some_of_each_language(self.measured.table, options.probes_per_language)
            self._asked = self.measured.take(self.queries)
            self.groups = sorted(set(self.measured.table.language))
            self.train = _train_samples(train_loader, columns, languages.train) if options.samples else None
            copy = isolated_copy(module, self._dtype)
            prepared = self._environment.prepared(copy, self._dtype)
            with uncompiled(copy):
                loss: Any = checked_loss(copy, None, self.measured, prepared)
                self.loss: SummedLoss = loss
                names = trainable_names(module)
                verified = verify(copy, names, self.loss, None, self._asked, prepared, "before the fit")
            self._decisions = verified.coverage.decisions
            self.ways = self._settled(copy, prepared)
            self.loss = replace(loss, module=module)  # the copy is not kept
            discard(copy, module)

    @property
    def train_table(self) -> SampleTable:
        """The train samples, with `samples=True`."""
        assert self.train is not None
        return self.train.table

    def _settled(self, copy: LightningModule, prepared: Callable[[Any], Any]) -> Ways:
        """How the gradients of a batch are split, found on a few probes of one source."""
        sizes, source = self.measured.sizes, self.measured.source(0)
        mine = [index for index in range(len(self.measured)) if self.measured.source(index) == source]
        longest = max(mine, key=lambda index: sizes[index])
        chosen = [longest, *[index for index in mine if index != longest]][:_SAMPLES]
        if len(chosen) < 2 or self.loss.is_of_one:
            return Ways(undivided=frozenset(dict(copy.named_parameters())) if self.loss.is_of_one else frozenset())

        def loss(order: Sequence[int]) -> Tensor:
            return self.loss(prepared(self.measured.batch([chosen[place] for place in order])), len(order))

        return settled_ways(copy, loss, len(chosen))

    def losses(self, epoch: int, of_all: bool) -> Tensor:
        """The probes' losses at the weights that the fit has now: [measured probes], float64; NaN for those left out.

        Args:
            epoch: of the fit, from 1.
            of_all: whether to measure all probes, and not only the queries.
        """
        found = torch.full((len(self.measured),), torch.nan, dtype=torch.float64)
        with self._evaluated(epoch) as (target, loss):
            probes, places = (self.measured, range(len(self.measured))) if of_all else (self._asked, self.queries)
            found[list(places)] = probe_losses(target, self._job(target, loss, probes))
        return found

    def contributions(
        self,
        begin: Mapping[str, Tensor],
        updates: Mapping[str, Mapping[int, GroupVectors]],
        sources: Sequence[int],
        epoch: int,
        steps: int,
        losses: tuple[Tensor, Tensor],
    ) -> Tensor:
        """By how much each source lowered the loss of each query in a window: [queries, sources], float64.

        This is minus the inner product of the source's updates with the query's mean gradient on the straight way from the
        weights where the window began to those that the fit has now. How well that gradient is known shows in the whole way's
        product, which is the measured change: where it is not, the gradient is computed at more points.

        Args:
            begin: the trainable parameters where the window began, by name.
            updates: parameter -> source -> vectors with the sum of its updates.
            sources: the columns.
            epoch: of the fit, from 1.
            steps: in the window.
            losses: of the probes at the window's beginning and end, see `losses`.
        """
        found = torch.zeros(0)
        with self._evaluated(epoch) as (target, loss):
            parameters = {name: one for name, one in target.model.named_parameters() if name in begin}
            ends = {name: one.detach().clone() for name, one in parameters.items()}
            moved = {name: dict(updates.get(name, {})) for name in {*updates, *ends}}
            for name, end in ends.items():
                moved[name][_WHOLE] = way = GroupVectors(end.shape, end.dtype, end.device, is_table=False)
                way.add(TOTAL, end - begin[name].to(end))
            for rule in rules(steps):
                found = torch.zeros(len(self.queries), len(sources) + 1, dtype=torch.float64)
                for place, weight in rule:
                    with torch.no_grad():
                        for name, one in parameters.items():
                            one.copy_(torch.lerp(begin[name].to(one), ends[name], place))
                    found -= weight * slopes(target, self._job(target, loss, self._asked), moved, [*sources, _WHOLE])
                if self._is_close(losses, found[:, -1]):
                    break
        return found[:, :-1]

    def _is_close(self, losses: tuple[Tensor, Tensor], found: Tensor) -> bool:
        """Whether the changes that a rule has found, [queries], are those that were measured, for each probe group."""
        before, after = (one[self.queries] for one in losses)
        for group in self.groups:
            mine = torch.tensor([name == group for name in self._asked.table.language])
            fall, loss = float((before - after)[mine].mean()), float(before[mine].mean())
            if not is_close(fall, float(found[mine].mean()), loss):
                return False
        return True

    def mean_gradients(self, split: GroupSplit, device: torch.device | None, epoch: int) -> dict[str, list[GroupVectors]]:
        """The mean gradient of the queries of each probe group, at the weights that the fit has now: see `probe_pass`.

        Args:
            split: of the fit's gradients.
            device: see `vectors`.
            epoch: of the fit, from 1.
        """
        groups = [self.groups.index(self._asked.table.language[index]) for index in range(len(self._asked))]
        with self._evaluated(epoch) as (target, loss):
            return mean_gradients(
                target, self._job(target, loss, self._asked), groups, lambda name: self.vectors(name, split, device)
            )

    def vectors(self, name: str, split: GroupSplit, device: torch.device | None) -> GroupVectors:
        """New vectors for the gradients of queries.

        Args:
            name: of a parameter.
            split: of the fit's gradients.
            device: where they are kept. None: where the parameter is.
        """
        parameter = split.parameters[name]
        dtype = torch.promote_types(self._dtype, torch.float32)
        return GroupVectors(parameter.shape, dtype, device or parameter.device, name in split.tables)

    @contextmanager
    def _evaluated(self, epoch: int) -> Iterator[tuple[Target, SummedLoss]]:
        """A copy of the module with the weights that the fit has now, and its loss."""
        with untouched_process(*users_objects(self._trainer)):
            copy = isolated_copy(self._module, self._dtype)
            set_moment(copy, epoch - 1, self._trainer.global_step)
            names = trainable_names(self._module)
            coverage = plan_coverage(copy, names, self._decisions)
            parts = parts_of(dict.fromkeys(names, 0), per_layer=False)
            known: Any = self.loss
            try:
                yield Target(f"step {self._trainer.global_step}", copy, coverage, parts), replace(known, module=copy)
            finally:
                discard(copy, self._module)

    def _job(self, target: Target, loss: SummedLoss, probes: SampleSet) -> Job:
        size = 1 if loss.is_of_one else self._options.batch_size
        model: Any = target.model
        budget = free_share(next(model.parameters()).device)
        return Job(probes, probes, loss, self._environment.prepared(model, self._dtype), size, budget)


def _train_samples(loader: Any, columns: SampleColumns, languages: Sequence[Any] | None) -> SampleSet:
    if isinstance(loader.dataset, IterableDataset):
        raise TracInError(
            f"samples=True keeps what each train sample contributed, but the train samples come from "
            f"{type(loader.dataset).__name__}, a stream, whose samples have no position; leave it out (groups of a stream are "
            "accounted for without it), or use a map-style dataset."
        )
    return from_loader(loader, columns, "train samples", languages)
