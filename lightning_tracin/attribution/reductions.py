"""How a `training_step` reduces its samples' losses to one number, seen while it runs.

A step ends in a few reductions: `F.cross_entropy(...)` with its default `reduction="mean"`, or a `mean()` or `sum()` over a
tensor with one or more rows for each sample. A `TorchFunctionMode` records each of them with what every sample weighs in
it. That is enough to say, for every batch and without another forward pass, whether the step's loss is

- a mean: every sample weighs the same,
- a weighted mean: samples with rare classes, or with more labelled tokens, weigh more, or
- a sum,

and to get each sample's own loss, which is the loss of a batch with this sample only. What was not recorded (a loss computed
in another way) is not guessed: the caller evaluates the samples one at a time.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

from lightning_tracin.attribution.selected_rows import SelectedRows

#: Loss functions of classes, where a sample weighs as much as its labels do.
_BY_CLASS = (F.cross_entropy, F.nll_loss)

#: Loss functions whose "mean" is over all elements, so that samples with equally many elements weigh the same.
_ELEMENTWISE = (
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.cosine_embedding_loss,
    F.gaussian_nll_loss,
    F.hinge_embedding_loss,
    F.huber_loss,
    F.kl_div,
    F.l1_loss,
    F.margin_ranking_loss,
    F.mse_loss,
    F.multi_margin_loss,
    F.multilabel_margin_loss,
    F.multilabel_soft_margin_loss,
    F.poisson_nll_loss,
    F.smooth_l1_loss,
    F.soft_margin_loss,
    F.triplet_margin_loss,
)

_SUMS = (torch.sum, Tensor.sum)
_MEANS = (torch.mean, Tensor.mean)

#: Operations between the reductions and the loss, at most.
_TAIL = 100

#: Largest relative difference between two ways to compute one scalar. A larger one in float32 or float64 is looked at with
#: every step in float64, where rounding vanishes.
CLOSE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}

#: Differences below this are none: losses of samples that a model is certain of.
_TINY = 1e-9


@dataclass(frozen=True)
class Reduction:
    """One reduction over the samples of a batch.

    Attributes:
        name: of the function, such as `"cross_entropy"`.
        value: the scalar that the step got, part of the graph.
        weights: what each sample weighs, [samples]; `value = sum(losses()) / sum(weights)` for a mean, `sum(losses())` for a sum.
        losses: computes each sample's weighted loss, [samples], part of the graph.
        is_sum: whether it is a sum.
        by_label: whether the weights count labels (or selected rows), so that samples may weigh differently.
        is_of_samples: whether it is a loss function of torch's, and no plain sum or mean, which may be over anything.
    """

    name: str
    value: Tensor
    weights: Tensor
    losses: Callable[[], Tensor]
    is_sum: bool = False
    by_label: bool = False
    is_of_samples: bool = False


class Reductions(TorchFunctionMode):
    """Records the reductions over the samples of one batch while a step runs.

    Example:
        >>> logits, labels = torch.zeros(3, 2, requires_grad=True), torch.tensor([0, 1, 0])
        >>> with Reductions(samples=3) as seen:
        ...     loss = F.cross_entropy(logits, labels, weight=torch.tensor([1.0, 20.0]))
        >>> [(one.name, one.weights.tolist()) for one in seen.found]
        [('cross_entropy', [1.0, 20.0, 1.0])]
    """

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.samples = samples
        self.found: list[Reduction] = []
        self.totals: list[tuple[Tensor, Tensor]] = []  # sums without a gradient: the scalar, and each sample's part [samples]
        self._selected = SelectedRows(samples)

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Call the function, and record it if it is a reduction."""
        kwargs = kwargs or {}
        value = func(*args, **kwargs)
        if isinstance(value, Tensor):
            if value.dim() == 0:
                known = len(self.found) + len(self.totals)
                self._record(func, args, kwargs, value)
                if len(self.found) + len(self.totals) > known:
                    return value.clone()  # a step may go on in place: `loss += ...`
            else:
                self._selected.note(func, args, kwargs, value)
        return value

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor) -> None:
        if func in _SUMS or func in _MEANS:
            self._record_plain(func, args[0] if args else kwargs["input"], value)
        elif func in _BY_CLASS or func in _ELEMENTWISE or func is F.ctc_loss:
            given = inspect.signature(func).bind(*args, **kwargs)
            given.apply_defaults()
            told = dict(given.arguments)
            reduction = told.get("reduction")
            legacy = any(told.get(name) is not None for name in ("size_average", "reduce"))
            if value.requires_grad and not legacy and reduction in ("mean", "sum", "batchmean"):
                self._record_loss(func, told, reduction, value)

    def _record_plain(self, func: Any, elements: Tensor, value: Tensor) -> None:
        owner = self._selected.owner(elements)
        if elements.dim() == 0 or (owner is None and (not elements.numel() or elements.shape[0] % self.samples)):
            return
        if not value.requires_grad:
            if func in _SUMS:
                part = self._by_sample(elements, owner).double()
                self.totals.append((value, part))
                if owner is None and not elements.is_floating_point():  # a mask of what is left out
                    size = elements.numel() / self.samples
                    self.totals.append((elements.numel() - value, size - part))
            return
        weights = self._by_sample(torch.ones_like(elements), owner)
        losses = partial(self._by_sample, elements, owner)
        self.found.append(Reduction(func.__name__, value, weights, losses, func in _SUMS, owner is not None))

    def _record_loss(self, func: Any, told: dict[str, Any], reduction: str, value: Tensor) -> None:
        target = told.get("target")
        by_class = func in _BY_CLASS and not told["target"].is_floating_point()
        if by_class:
            shape = told["target"].shape
        elif func in _BY_CLASS:  # class probabilities: one loss for each row
            shape = told["target"].shape[:1] + told["target"].shape[2:]
        else:
            with torch.no_grad():
                shape = func(**{**told, "reduction": "none"}).shape
        owner = self._selected.owner(told.get("input")) if (of_target := self._selected.owner(target)) is None else of_target
        rows = math.prod(shape)
        if owner is None and (not rows or (shape[0] if shape else 1) % self.samples):
            return
        weights = self._by_sample(torch.ones(shape, device=value.device), owner)
        if by_class:
            live = told["target"] != told["ignore_index"]
            weight = told["weight"]
            heavy = live.double() if weight is None else weight.double()[told["target"].where(live, 0)] * live
            weights = self._by_sample(heavy, owner)
        elif reduction == "batchmean":
            weights = torch.full((self.samples,), (shape[0] if shape else 1) / self.samples, device=value.device)

        def losses() -> Tensor:
            unreduced = func(**{**told, "reduction": "none"})
            if func is F.ctc_loss and reduction == "mean":
                unreduced = unreduced / told["target_lengths"].to(unreduced).clamp_min(1)
            return self._by_sample(unreduced, owner)

        self.found.append(
            Reduction(func.__name__, value, weights, losses, reduction == "sum", by_class or owner is not None, True)
        )

    def _by_sample(self, elements: Tensor, owner: Tensor | None = None) -> Tensor:
        """The sum of each sample's elements: [samples].

        Args:
            elements: [rows, ...], sample by sample.
            owner: the sample of each row, if rows were selected. None: each sample has as many.
        """
        if owner is None:
            return elements.reshape(self.samples, -1).sum(1)
        rows = elements.flatten(1).sum(1) if elements.dim() > 1 else elements
        return rows.new_zeros(self.samples).index_add(0, owner, rows)


#: How one recorded reduction enters the loss: "mean" and "sum" by itself; a recorded sum divided by the number of samples
#: ("sum / samples"), by what its labels weigh ("sum / labels", or one more a sample where a causal model's first label counts:
#: "sum / labels + 1"), or by the n-th recorded total ("sum / total n").
Rule = str


@dataclass(frozen=True)
class Term:
    """One reduction that a step's loss is made of, as the batches that were checked show it.

    Attributes:
        name: of the function.
        rule: how it adds up samples, see `Reduced.possible`.
        coefficient: its factor, the same in every batch.
    """

    name: str
    rule: Rule
    coefficient: float


@dataclass(frozen=True)
class Reduced:
    """A step's loss and how it is made of its samples' losses.

    Attributes:
        loss: what the step returned.
        used: the reductions that it is a linear combination of, with the factor of each.
        totals: see `Reductions`.
        samples: of the batch.
    """

    loss: Tensor
    used: tuple[tuple[Reduction, float], ...]
    totals: tuple[tuple[float, Tensor], ...]
    samples: int

    @property
    def dtype(self) -> torch.dtype:
        """The least precise data type of the loss and its reductions."""
        return _coarsest([self.loss, *(reduction.value for reduction, _ in self.used)])

    @property
    def names(self) -> tuple[str, ...]:
        """The functions that reduced it."""
        return tuple(reduction.name for reduction, _ in self.used)

    def possible(self, position: int) -> dict[Rule, float]:
        """The rules that one reduction may follow, each with the coefficient that has to be the same in every batch."""
        reduction, factor = self.used[position]
        if not reduction.is_sum:
            return {"mean": factor}
        found = {f"sum / total {index}": factor * total for index, (total, _) in enumerate(self.totals)}
        if reduction.by_label:
            weights = float(reduction.weights.sum())
            found |= {"sum / labels": factor * weights, "sum / labels + 1": factor * (weights + self.samples)}
        return {**found, "sum": factor, "sum / samples": factor * self.samples}

    def follows(self, terms: Sequence[Term]) -> bool:
        """Whether the loss is made of these terms, with the same coefficients; where nothing has a label, they do not show."""
        if self.names != tuple(term.name for term in terms):
            return False
        for position, term in enumerate(terms):
            here = self.possible(position).get(term.rule)
            if here is None:
                return False
            is_empty = not math.isfinite(float(self.loss.detach())) and not bool(self.weights(position, term.rule).any())
            if not is_empty and not same(here, term.coefficient, self.dtype):
                return False
        return True

    def weights(self, position: int, rule: Rule) -> Tensor:
        """What each sample weighs in one reduction under a rule: [samples]."""
        reduction, _ = self.used[position]
        if rule in ("mean", "sum / labels"):
            return reduction.weights
        if rule == "sum / labels + 1":
            return reduction.weights + 1
        if rule.startswith("sum / total "):
            return self.totals[int(rule.split()[-1])][1]
        return torch.ones(self.samples, device=self.loss.device)

    def counts_tokens(self, position: int, rule: Rule) -> bool:
        """Whether a sample's weight in one reduction is that of its tokens or labels, and not the same for all samples."""
        return rule.startswith(("sum / labels", "sum / total ")) or (rule == "mean" and self.used[position][0].by_label)

    def own_losses(self, terms: Sequence[Term], by_token: bool = False) -> Tensor:
        """Each sample's own loss, part of the graph: [samples]. What has no label that counts has the loss 0.

        Args:
            terms: what the loss is made of.
            by_token: the sum over a sample's tokens of what each weighs, instead of their (weighted) mean.
        """
        found = []
        for position, term in enumerate(terms):
            losses = self.used[position][0].losses()
            if not by_token or not self.counts_tokens(position, term.rule):
                weights = self.weights(position, term.rule).to(losses)
                losses = torch.where(weights > 0, losses / weights.where(weights > 0, 1), 0)
            found.append(term.coefficient * losses)
        return torch.stack(found).sum(0)

    def weigh_the_same(self, terms: Sequence[Term]) -> bool:
        """Whether every sample weighs the same in every reduction, and something at all."""
        weights = torch.stack([self.weights(position, term.rule).double() for position, term in enumerate(terms)])
        return bool(((weights == weights[:, :1]) & (weights > 0)).all())


def reduced(step: Callable[[], Tensor], samples: int) -> tuple[Tensor, Reduced | None]:
    """Run a step and see how its loss is made of its samples' losses.

    Args:
        step: returns the loss of a batch, a scalar.
        samples: of the batch.

    Returns:
        The loss, and how it is reduced; None where it is no linear combination of recorded reductions.

    Example:
        >>> logits, labels = torch.zeros(2, 3, requires_grad=True), torch.tensor([0, 2])
        >>> weight = torch.tensor([1.0, 1.0, 3.0])
        >>> loss, found = reduced(lambda: 0.5 * F.cross_entropy(logits, labels, weight), samples=2)
        >>> found.names, round(found.used[0][1], 3), found.weights(0, "mean").tolist()
        (('cross_entropy',), 0.5, [1.0, 3.0])
    """
    with Reductions(samples) as seen:
        loss = step()
    last = last_reductions(loss, seen.found)
    if not last:
        return loss, None
    factors = torch.autograd.grad(loss, [one.value for one in last], retain_graph=True)
    numbers = [loss, *(one.value for one in last), *factors, *(total for total, _ in seen.totals)]
    whole, *rest = torch.stack([number.detach().double() for number in numbers]).tolist()
    values, by, totals = rest[: len(last)], rest[len(last) : 2 * len(last)], rest[2 * len(last) :]
    products = [value * factor for value, factor in zip(values, by, strict=True)]
    is_empty = not math.isfinite(whole) and any(not bool(one.weights.any()) or 0 in totals for one in last)  # 0 / 0
    if not is_empty and not same(whole, sum(products), _coarsest([loss, *(one.value for one in last)]), sum(map(abs, products))):
        return loss, None
    by_sample = [each for _, each in seen.totals]
    return loss, Reduced(loss, tuple(zip(last, by, strict=True)), tuple(zip(totals, by_sample, strict=True)), samples)


def last_reductions(loss: Tensor, found: Sequence[Reduction]) -> list[Reduction]:
    """The reductions from which a loss is computed; none if it also depends on something else that has a gradient.

    The graph is followed from the loss back to the reductions, and no further: hooks on the model's layers are not reached.
    """
    nodes = {one.value.grad_fn: position for position, one in enumerate(found)}
    waiting: list[Node | None] = [loss.grad_fn]
    seen: set[Node] = set()
    last: set[int] = set()
    while waiting:
        node = waiting.pop()
        if node in nodes:
            last.add(nodes[node])
        elif node is None or node in seen:
            pass
        elif not node.next_functions or len(seen) > _TAIL:
            return []
        else:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions if following is not None]
    return [found[position] for position in sorted(last)]


def _coarsest(tensors: Sequence[Tensor]) -> torch.dtype:
    return max((one.dtype for one in tensors), key=lambda dtype: torch.finfo(dtype).eps)


def same(got: float, want: float, dtype: torch.dtype, scale: float = 0.0) -> bool:
    """Whether two numbers of one type differ by rounding at most."""
    return deviation(got, want, scale) <= CLOSE.get(dtype, CLOSE[torch.float32])


def deviation(got: float, want: float, scale: float = 0.0) -> float:
    """The difference of two numbers, relative to the larger of them and of a scale; 0 if it is tiny, NaN if one of them is.

    Example:
        >>> deviation(1.0, 1.5), deviation(0.0, 0.5, scale=2.0), deviation(0.0, 1e-12)
        (0.3333333333333333, 0.25, 0.0)
    """
    apart = abs(got - want)
    if apart <= _TINY:
        return 0.0
    return apart / max(abs(got), abs(want), scale)
