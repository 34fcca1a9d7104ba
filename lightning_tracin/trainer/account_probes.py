"""The probes of an account: which they are, and what is seen of them at the fit's weights of a moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from lightning_tracin.attribution.batching import Job, Target, free_share
from lightning_tracin.attribution.checks import checked_loss
from lightning_tracin.attribution.losses import SummedLoss
from lightning_tracin.attribution.prepare import verify
from lightning_tracin.attribution.probe_pass import Slopes, contributions, probe_losses, slopes
from lightning_tracin.attribution.probes import chosen_probes, probes_from_loaders, some_of_each_language
from lightning_tracin.attribution.samples import SampleSet, from_loader
from lightning_tracin.attribution.window_length import look_cost
from lightning_tracin.config import ContributionOptions, SampleColumns
from lightning_tracin.gradients import plan_coverage
from lightning_tracin.gradients.freezing import uncompiled
from lightning_tracin.gradients.group_split import Ways
from lightning_tracin.gradients.group_vectors import GroupVectors
from lightning_tracin.gradients.partition import parts_of
from lightning_tracin.gradients.settled_ways import settled_ways
from lightning_tracin.storage.sample_table import SampleTable
from lightning_tracin.storage.snapshots import trainable_names
from lightning_tracin.trainer.environment import Environment
from lightning_tracin.trainer.fit_facts import users_objects, validation_loaders
from lightning_tracin.trainer.isolation import discard, isolated_copy, set_moment, untouched_process

#: Samples of the batch on which the ways of splitting gradients are found.
_SAMPLES = 4


@dataclass(frozen=True)
class Look:
    """What is seen of the probes at some weights.

    Attributes:
        losses: [measured probes], float64.
        slopes: of the queries.
    """

    losses: Tensor
    slopes: Slopes

    def state(self) -> dict[str, Any]:
        """As plain types and tensors."""
        gradients = {
            name: {group: (one.shape, one.state()) for group, one in mine.items()} for name, mine in self.slopes.gradients.items()
        }
        return {"losses": self.losses, "gradients": gradients}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Look:
        """Restore what `state` returned; products with the updates of an earlier window are not kept."""
        gradients = {
            name: {group: GroupVectors.of_state(*one) for group, one in mine.items()} for name, mine in state["gradients"].items()
        }
        return cls(state["losses"], Slopes(torch.zeros(0, 0, dtype=torch.float64), gradients))


class AccountProbes:
    """The probes of an account.

    Args:
        options: the callback's.
        loaders: of the probes. None: the Trainer's validation loaders.
        languages: each probe's group, instead of a column.
        trainer: the fit's.
        module: the module being fitted.
        train_loader: the train loader, some of whose samples are looked at.

    Attributes:
        measured: the probes whose losses are measured.
        queries: those of them whose losses are split, as positions.
        loss: the loss of a probe.
        ways: how the fit's gradients are split.

    Raises:
        TracInError: the probes cannot be read, or their loss is not made of their own losses.
    """

    def __init__(
        self,
        options: ContributionOptions,
        loaders: Any,
        languages: Sequence[Any] | None,
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
                validation_loaders(trainer) if loaders is None else loaders, columns, languages, self._environment
            )
            self.measured = chosen_probes(found, options)
            self.queries = some_of_each_language(self.measured.table, options.probes_per_language)
            self._asked = self.measured.take(self.queries)
            self._groups = {name: number for number, name in enumerate(sorted(set(self.measured.table.language)))}
            self.train = from_loader(train_loader, columns, "train samples") if options.samples else None
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

    @property
    def cost(self) -> float:
        """Of one look; see `look_cost`."""
        return look_cost(len(self.queries), len(self.measured))

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

    def look(self, updates: Mapping[str, Mapping[int, GroupVectors]], sources: Sequence[int], epoch: int, step: int) -> Look:
        """Look at the probes at the weights that the fit has now.

        Args:
            updates: parameter -> source -> vectors with the sum of its updates.
            sources: columns of the products.
            epoch: of the fit, from 1.
            step: optimizer steps so far.
        """
        with untouched_process(*users_objects(self._trainer)):
            copy = isolated_copy(self._module, self._dtype)
            set_moment(copy, epoch - 1, self._trainer.global_step)
            names = trainable_names(self._module)
            coverage = plan_coverage(copy, names, self._decisions)
            target = Target(f"step {step}", copy, coverage, parts_of(dict.fromkeys(names, 0), per_layer=False))
            found: Any = self.loss
            loss: SummedLoss = replace(found, module=copy)
            prepared = self._environment.prepared(copy, self._dtype)

            def job(probes: SampleSet) -> Job:
                size = 1 if loss.is_of_one else self._options.batch_size
                return Job(probes, probes, loss, prepared, size, free_share(next(copy.parameters()).device))

            losses = probe_losses(target, job(self.measured))
            groups = [self._groups[name] for name in self._asked.table.language]
            slopes_of = slopes(target, job(self._asked), groups, updates, sources)
            discard(copy, self._module)
        return Look(losses, slopes_of)

    def contributions(
        self, begin: Look, end: Look, updates: Mapping[str, Mapping[int, GroupVectors]], sources: Sequence[int]
    ) -> Tensor:
        """By how much each source lowered the loss of each query: [queries, sources], float64."""
        groups = [self._groups[name] for name in self._asked.table.language]
        return contributions(begin.slopes.gradients, end.slopes, groups, updates, sources)
