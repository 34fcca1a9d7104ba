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
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

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
    """

    name: str
    value: Tensor
    weights: Tensor
    losses: Callable[[], Tensor]
    is_sum: bool = False


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

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Call the function, and record it if it is a reduction."""
        kwargs = kwargs or {}
        value = func(*args, **kwargs)
        if isinstance(value, Tensor) and value.dim() == 0:
            self._record(func, args, kwargs, value)
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
        if elements.dim() == 0 or elements.shape[0] % self.samples or not elements.numel():
            return
        if not value.requires_grad:
            if func in _SUMS:
                self.totals.append((value, self._by_sample(elements).double()))
            return
        weights = torch.full((self.samples,), elements.numel() / self.samples, device=elements.device)
        self.found.append(Reduction(func.__name__, value, weights, lambda: self._by_sample(elements), func in _SUMS))

    def _record_loss(self, func: Any, told: dict[str, Any], reduction: str, value: Tensor) -> None:
        by_class = func in _BY_CLASS and not told["target"].is_floating_point()
        if by_class:
            shape = told["target"].shape
        elif func in _BY_CLASS:  # class probabilities: one loss for each row
            shape = told["target"].shape[:1] + told["target"].shape[2:]
        else:
            with torch.no_grad():
                shape = func(**{**told, "reduction": "none"}).shape
        rows = math.prod(shape)
        if not shape or not rows or shape[0] % self.samples:
            return
        weights = torch.full((self.samples,), rows / self.samples, device=value.device)
        if by_class:
            target = told["target"]
            live = target != told["ignore_index"]
            weight = told["weight"]
            heavy = live.double() if weight is None else weight.double()[target.where(live, 0)] * live
            weights = self._by_sample(heavy)
        elif reduction == "batchmean":
            weights = torch.full((self.samples,), shape[0] / self.samples, device=value.device)

        def losses() -> Tensor:
            unreduced = func(**{**told, "reduction": "none"})
            if func is F.ctc_loss and reduction == "mean":
                unreduced = unreduced / told["target_lengths"].to(unreduced).clamp_min(1)
            return self._by_sample(unreduced)

        self.found.append(Reduction(func.__name__, value, weights, losses, reduction == "sum"))

    def _by_sample(self, elements: Tensor) -> Tensor:
        """The sum of each sample's elements: [samples]."""
        return elements.reshape(self.samples, -1).sum(1)


#: How one recorded reduction enters the loss: "mean" and "sum" by itself; a recorded sum divided by the number of samples
#: ("sum / samples"), or by the n-th recorded total ("sum / total n").
Rule = str


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
    def names(self) -> tuple[str, ...]:
        """The functions that reduced it."""
        return tuple(reduction.name for reduction, _ in self.used)

    def possible(self, position: int) -> dict[Rule, float]:
        """The rules that one reduction may follow, each with the coefficient that has to be the same in every batch."""
        reduction, factor = self.used[position]
        if not reduction.is_sum:
            return {"mean": factor}
        totals = {f"sum / total {index}": factor * total for index, (total, _) in enumerate(self.totals)}
        return {"sum": factor, "sum / samples": factor * self.samples, **totals}

    def weights(self, position: int, rule: Rule) -> Tensor:
        """What each sample weighs in one reduction under a rule: [samples]."""
        reduction, _ = self.used[position]
        if rule == "mean":
            return reduction.weights
        if rule.startswith("sum / total "):
            return self.totals[int(rule.split()[-1])][1]
        return torch.ones(self.samples, device=self.loss.device)

    def own_losses(self, rules: Sequence[Rule]) -> Tensor:
        """Each sample's own loss, part of the graph: [samples]."""
        terms = []
        for position, rule in enumerate(rules):
            losses = self.used[position][0].losses()
            terms.append(self.possible(position)[rule] * losses / self.weights(position, rule).to(losses))
        return torch.stack(terms).sum(0)

    def weigh_the_same(self, rules: Sequence[Rule]) -> bool:
        """Whether every sample weighs the same in every reduction."""
        weights = torch.stack([self.weights(position, rule).double() for position, rule in enumerate(rules)])
        return bool((weights == weights[:, :1]).all())


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
    last = _last(loss, seen.found)
    if not last:
        return loss, None
    factors = torch.autograd.grad(loss, [one.value for one in last], retain_graph=True)
    numbers = [loss, *(one.value for one in last), *factors, *(total for total, _ in seen.totals)]
    whole, *rest = torch.stack([number.detach().double() for number in numbers]).tolist()
    values, by, totals = rest[: len(last)], rest[len(last) : 2 * len(last)], rest[2 * len(last) :]
    products = [value * factor for value, factor in zip(values, by, strict=True)]
    if not same(whole, sum(products), loss.dtype, sum(map(abs, products))):
        return loss, None
    by_sample = [each for _, each in seen.totals]
    return loss, Reduced(loss, tuple(zip(last, by, strict=True)), tuple(zip(totals, by_sample, strict=True)), samples)


def _last(loss: Tensor, found: Sequence[Reduction]) -> list[Reduction]:
    """The reductions from which the loss is computed; none if it also depends on something else that has a gradient.

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
