"""What each train sample contributed by itself: the part of its group's contribution that its own gradients account for.

In the step that a sample's gradient g goes into, its part of the update is - scale * g (elementwise, times the share of the
moment that the step applies), so that its credit for a probe group with mean gradient Q is < g, Q * scale >. The forms in which
the backward pass gives the gradients are kept until the step has been made, because its scale is known only then: that of the
step before would not do, since Adam's is lr / eps where an element has had no gradient yet.

What the moment carries into later steps follows at once as a number: the same credit again in each step, times what the moment
keeps, and times how the typical scale has changed. So no vector is kept for a sample.

Two things are approximate: Q is taken where the window begins, instead of on the way through it, and that of a carried credit is
as it was in its own step. When a window ends, the contribution of each train group is known, and what the credits of its samples
lack of it is shared out by visits: each gets as much as it took part in the window, in full or through the moment. So the credits
of a group's samples add up to what the account says of the group. Parameters without samples' own gradients (those that are split
by repeating the backward pass of the module around them, or undivided ones) enter only through this correction.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lightning_tracin.attribution.update_rules import LinearStep
from lightning_tracin.gradients.forms import Form, Rows
from lightning_tracin.gradients.group_vectors import GroupVectors, TouchedRows
from lightning_tracin.gradients.vector_products import written_products

#: The name of a probe group's mean gradient in its vectors.
QUERY = "query"

#: A visit that its optimizer's moment keeps less of is not followed any more.
_LEAST = 1e-6


@dataclass(frozen=True)
class Scale:
    """By what a step multiplies the gradients that came from the backward pass.

    Attributes:
        step: the optimizer's step, whose scale may be confined to the rows that were touched.
        factor: what unscaling and clipping did to the gradients; a number, or a tensor of the parameter's shape.
        touched: those rows; None if the scale is of the whole parameter.
    """

    step: LinearStep
    factor: Tensor | float = 1.0
    touched: TouchedRows | None = None

    @property
    def along(self) -> Tensor | float:
        """The scale that moment and gradient have in common."""
        return self.step.scale * self.step.gain if isinstance(self.step.gain, Tensor) else self.step.scale

    @property
    def shares(self) -> tuple[float, float]:
        """What the step applies of the gradient times `along`: in all, and through the moment, which may carry it on."""
        step = self.step
        carried = step.of_moment * (1.0 if isinstance(step.gain, Tensor) else step.gain)
        return carried + step.of_gradient, carried

    def whole(self, vector: Tensor) -> Tensor:
        """A vector of the parameter's shape times the scale."""
        for one in (self.along, self.factor):
            vector = vector * (one.to(vector) if isinstance(one, Tensor) else one)
        return vector

    def at_rows(self, rows: Tensor, values: Tensor) -> Tensor:
        """Values at rows of the parameter times the scale."""
        for one, is_compact in ((self.along, self.touched is not None), (self.factor, False)):
            if isinstance(one, Tensor):
                places = self.touched.places(rows.to(one.device)) if is_compact and self.touched else rows.to(one.device)
                values = values * one[places].to(values)
            else:
                values = values * one
        return values

    def typical(self) -> Tensor | float:
        """The harmonic mean of what multiplies the moment, which elements without gradients so far do not dominate."""
        one = self.step.scale * self.step.of_moment if self.step.has_moment else self.step.scale
        if not isinstance(one, Tensor):
            return abs(one)
        return one.detach().abs().reciprocal().mean(dtype=torch.float64).reciprocal()


@dataclass
class _Visits:
    """Samples of one step, with what they have contributed since the window began.

    Attributes:
        samples: [visits] positions in the dataset.
        groups: [visits] numbers of their groups.
        given: [visits, probe groups] credits of this window so far.
        carried: [visits, probe groups] what the moment adds in each later step, for a scale of 1.
        part: how much of a visit this window has, in steps.
        kept: what the moment keeps of it.
    """

    samples: Tensor
    groups: Tensor
    given: Tensor
    carried: Tensor
    part: float
    kept: float


@dataclass
class _Batch:
    """A batch since the last step."""

    samples: Tensor
    names: list[str]
    now: Tensor | float = 0.0  # [samples, probe groups]
    carried: Tensor | float = 0.0


@dataclass
class _OfOptimizer:
    """What is known of one optimizer.

    Attributes:
        visits: those that its moment still keeps.
        sizes: typical scale of each parameter, and its number of elements.
        keeps: what the moments keep in the step that is being made, and number of elements.
    """

    visits: list[_Visits] = field(default_factory=list)
    sizes: dict[str, tuple[Tensor | float, int]] = field(default_factory=dict)
    keeps: list[tuple[float, int]] = field(default_factory=list)
    shares: tuple[float, float] = (1.0, 0.0)

    def size(self) -> float:
        """The typical scale of all parameters: the geometric mean of those that are not zero."""
        new = {name: size for name, (size, _) in self.sizes.items() if isinstance(size, Tensor)}
        if new:
            device = next(iter(new.values())).device
            read = torch.stack([size.to(device) for size in new.values()]).tolist()  # at once: the accelerator is waited for
            self.sizes.update({name: (size, self.sizes[name][1]) for name, size in zip(new, read, strict=True)})
        sizes = ((float(size), count) for size, count in self.sizes.values())
        known = [(size, count) for size, count in sizes if 0 < size < math.inf]
        elements = sum(count for _, count in known)
        return math.exp(sum(math.log(size) * count for size, count in known) / elements) if elements else 0.0

    def keep(self) -> float:
        """What the moments keep, on average over elements."""
        return sum(keep * count for keep, count in self.keeps) / max(1, sum(count for _, count in self.keeps))


class SampleCredits:
    """The contributions of single train samples; see the module.

    Args:
        samples: number of train samples.
        probe_groups: number of probe groups.
        number: the number of a train group's name.
        every: one of this many steps is accounted.
        exchange: returns what each of several processes gives it; None for a single process.

    Attributes:
        total: [train samples, probe groups] float64, of all windows that have ended.
        left: [probe groups] contributions of groups that no visit took part in, which no sample has.
    """

    def __init__(
        self,
        samples: int,
        probe_groups: int,
        number: Callable[[str], int],
        every: int = 1,
        exchange: Callable[[Any], list[Any]] | None = None,
    ) -> None:
        self.total = torch.zeros(samples, probe_groups, dtype=torch.float64)
        self.left = torch.zeros(probe_groups, dtype=torch.float64)
        self._number, self._every, self._exchange = number, every, exchange
        self._queries: Mapping[str, Sequence[GroupVectors]] = {}
        self._held: dict[str, list[tuple[Tensor, Sequence[Form]]]] = defaultdict(list)
        self._batches: list[_Batch] = []
        self._optimizers: dict[int, _OfOptimizer] = defaultdict(_OfOptimizer)
        self._ended: list[_Visits] = []  # of this window, but no moment keeps them

    # -- while a step's gradients arrive

    def begin(self, samples: Tensor, names: Sequence[str]) -> None:
        """Credit the samples of a batch that is about to be computed.

        Args:
            samples: [samples] int64, their positions in the dataset; the same object goes to `GroupSplit.begin`.
            names: of their groups.
        """
        self._batches.append(_Batch(samples, list(names)))

    def forget(self) -> None:
        """No step needs the batches so far any more."""
        self._batches.clear()

    def arrived(self, name: str, samples: Tensor, forms: Sequence[Form]) -> None:
        """Keep samples' own gradients of a parameter until its step; see `gradients.group_split.SampleWatch`."""
        if name in self._queries:
            self._held[name].append((samples, forms))

    def dropped(self, name: str) -> None:
        """Forget what came before the fit's optimizer set a parameter's gradient to zero."""
        self._held.pop(name, None)

    # -- when a step has been made

    def stepped(self, optimizer: int, name: str, scale: Scale) -> None:
        """Credit a parameter's step.

        Args:
            optimizer: its number.
            name: of the parameter.
            scale: of the step.
        """
        mine, queries = self._optimizers[optimizer], self._queries.get(name)
        elements = 1 if queries is None else math.prod(queries[0].shape)
        mine.sizes[name] = scale.typical(), elements
        mine.keeps.append((scale.step.keep if scale.step.has_moment else 0.0, elements))
        mine.shares = now, carried = scale.shares
        held = self._held.pop(name, [])
        for samples, forms in held if queries is not None else ():
            batch = next((one for one in self._batches if one.samples is samples), None)
            if batch is not None and queries is not None:
                credit = _credits(forms, queries, scale) * float(scale.step.sign * self._every)
                batch.now, batch.carried = batch.now + now * credit, batch.carried + carried * credit

    def step_ended(self, optimizer: int, is_split: bool) -> None:
        """Carry earlier visits on, and begin those of the step; every process has to call it for the same step.

        Args:
            optimizer: its number.
            is_split: whether the step is accounted.
        """
        mine = self._optimizers[optimizer]
        size, keep = mine.size(), mine.keep()
        going: list[_Visits] = []
        for visits in mine.visits:
            visits.kept *= keep
            visits.carried *= keep
            visits.given += visits.carried * size
            visits.part += visits.kept
            (going if visits.kept > _LEAST else self._ended).append(visits)
        mine.visits, mine.keeps = going, []
        for batch in self._of_all_processes() if is_split else ():
            now, carried = (_filled(one, len(batch.samples), self.total.shape[1]) for one in (batch.now, batch.carried))
            groups = torch.tensor([self._number(name) for name in batch.names], dtype=torch.int64)
            part, kept = mine.shares
            fresh = _Visits(batch.samples, groups, now, carried / size if size else carried * 0, part, kept)
            (mine.visits if kept > _LEAST else self._ended).append(fresh)
        for batch in self._batches:
            batch.now = batch.carried = 0.0

    def _of_all_processes(self) -> Iterable[_Batch]:
        own = [replace(one, now=_on_cpu(one.now), carried=_on_cpu(one.carried)) for one in self._batches]
        if self._exchange is None:
            return own
        each = self._exchange([(one.samples, one.names, one.now, one.carried) for one in own])
        ranks = len(each)  # the fit's gradient is the mean over them
        return [
            _Batch(samples, names, now / ranks, carried / ranks) for theirs in each for samples, names, now, carried in theirs
        ]

    # -- windows

    def begin_window(self, queries: Mapping[str, Sequence[GroupVectors]]) -> None:
        """Take the mean gradients of the probe groups where a window begins.

        Args:
            queries: parameter -> a vector `QUERY` for each probe group.
        """
        self._queries = queries

    def end_window(self, exact: Tensor) -> None:
        """Correct the credits of a window, and add them to the totals.

        Args:
            exact: [train groups, probe groups] float64, what the account says of the window.
        """
        groups, probe_groups = exact.shape
        window = [*self._ended, *(visits for one in self._optimizers.values() for visits in one.visits)]
        sums, parts = torch.zeros(groups, probe_groups, dtype=torch.float64), torch.zeros(groups, dtype=torch.float64)
        for visits in window:
            sums.index_add_(0, visits.groups, visits.given)
            parts.index_add_(0, visits.groups, torch.full((len(visits.groups),), visits.part, dtype=torch.float64))
        is_visited = parts > 0
        self.left += exact[~is_visited].sum(0)
        lacking = torch.where(is_visited[:, None], (exact - sums) / parts.where(is_visited, torch.ones(()))[:, None], 0.0)
        for visits in window:
            self.total.index_add_(0, visits.samples, visits.given + visits.part * lacking[visits.groups])
            visits.given, visits.part = torch.zeros_like(visits.given), 0.0
        self._ended = []

    # -- facts and state

    @property
    def nbytes(self) -> int:
        """Memory of the credits and of the probe groups' gradients."""
        vectors = (one for mine in self._queries.values() for one in mine)
        return self.total.nbytes + sum(one.nbytes for one in vectors)

    def state(self) -> dict[str, Any]:
        """What a fit needs to go on, as plain types and tensors."""
        return {
            "total": self.total.clone(),
            "left": self.left.clone(),
            "queries": {name: [one.state() for one in mine] for name, mine in self._queries.items()},
            "ended": [_kept(one) for one in self._ended],
            "optimizers": {
                number: {"visits": [_kept(one) for one in mine.visits], "sizes": dict(mine.sizes)}
                for number, mine in self._optimizers.items()
            },
        }

    def load(self, state: Mapping[str, Any], vectors: Callable[[str], GroupVectors]) -> None:
        """Restore what `state` returned.

        Args:
            state: is copied.
            vectors: new ones of a parameter.
        """
        self.total, self.left = state["total"].clone(), state["left"].clone()
        queries: dict[str, list[GroupVectors]] = {}
        for name, mine in state["queries"].items():
            queries[name] = [vectors(name) for _ in mine]
            for one, kept in zip(queries[name], mine, strict=True):
                one.load(kept)
        self._queries = queries
        self._ended = [_Visits(**_kept(one)) for one in state["ended"]]
        self._optimizers.clear()
        for number, kept in state["optimizers"].items():
            self._optimizers[number].visits = [_Visits(**_kept(one)) for one in kept["visits"]]
            self._optimizers[number].sizes = {name: tuple(size) for name, size in kept["sizes"].items()}


def _credits(forms: Sequence[Form], queries: Sequence[GroupVectors], scale: Scale) -> Tensor:
    """Inner products of samples' gradients with each probe group's mean gradient times a scale: [samples, probe groups]."""
    found: Tensor | float = 0.0
    dense: Tensor | None = None
    for form in forms:
        if isinstance(form, Rows):
            values = scale.at_rows(form.row, form.values)
            each = [(values * one.at_rows(QUERY, form.row).to(values)).sum(1).double() for one in queries]
            zeros = torch.zeros(form.samples, len(queries), dtype=torch.float64, device=values.device)
            found = found + zeros.index_add_(0, form.sample, torch.stack(each, 1))
            continue
        if dense is None:
            like = form.left if hasattr(form, "left") else form.values
            dense = torch.stack([scale.whole(one.dense(QUERY).to(like)).reshape(-1) for one in queries])
        found = found + written_products(form, dense).double()
    assert isinstance(found, Tensor)
    return found


def _filled(values: Tensor | float, rows: int, columns: int) -> Tensor:
    return values if isinstance(values, Tensor) else torch.full((rows, columns), values, dtype=torch.float64)


def _on_cpu(values: Tensor | float) -> Tensor | float:
    return values.cpu() if isinstance(values, Tensor) else values


def _kept(visits: _Visits | Mapping[str, Any]) -> dict[str, Any]:
    """A copy of what is known of visits."""
    values = visits if isinstance(visits, Mapping) else vars(visits)
    return {name: one.clone() if isinstance(one, Tensor) else one for name, one in values.items()}
