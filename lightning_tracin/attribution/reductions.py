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
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
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


@dataclass(frozen=True)
class Positions:
    """The positions (tokens) of the samples that one reduction is over; one position where a sample has a single loss.

    Attributes:
        losses: computes each position's weighted loss, [samples, positions], part of the graph.
        counted: whether each position counts, [samples, positions]; None where that is not known of each.
        targets: the classes that the model should answer, [samples, positions]; None without classes.
        classes: among how many.
    """

    losses: Callable[[], Tensor]
    counted: Tensor | None = None
    targets: Tensor | None = None
    classes: int = 0


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
        is_log_probability: whether each label's loss is -log of its probability: of classes, unweighted and not smoothed.
        positions: sees the loss position by position; None where the samples have different numbers of positions.
    """

    name: str
    value: Tensor
    weights: Tensor
    losses: Callable[[], Tensor]
    is_sum: bool = False
    by_label: bool = False
    is_of_samples: bool = False
    is_log_probability: bool = False
    positions: Callable[[], Positions | None] = lambda: None


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
        samples = self.samples  # what is recorded refers to the batch's graph, so it must not refer back to `self`
        owner = self._selected.owner(elements)
        if elements.dim() == 0 or (owner is None and (not elements.numel() or elements.shape[0] % samples)):
            return
        if not value.requires_grad:
            if func in _SUMS:
                part = _by_sample(samples, elements, owner).double()
                self.totals.append((value, part))
                if owner is None and not elements.is_floating_point():  # a mask of what is left out
                    size = elements.numel() / samples
                    self.totals.append((elements.numel() - value, size - part))
            return
        weights = _by_sample(samples, torch.ones_like(elements), owner)
        losses = partial(_by_sample, samples, elements, owner)

        def positions() -> Positions | None:
            return Positions(partial(_by_position, samples, elements)) if _have_as_many(samples, len(elements), owner) else None

        name, is_sum = func.__name__, func in _SUMS
        self.found.append(Reduction(name, value, weights, losses, is_sum, owner is not None, positions=positions))

    def _record_loss(self, func: Any, told: dict[str, Any], reduction: str, value: Tensor) -> None:
        samples = self.samples
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
        if owner is None and (not rows or (shape[0] if shape else 1) % samples):
            return
        weights = _by_sample(samples, torch.ones(shape, device=value.device), owner)
        if by_class:
            live = told["target"] != told["ignore_index"]
            weight = told["weight"]
            heavy = live.double() if weight is None else weight.double()[told["target"].where(live, 0)] * live
            weights = _by_sample(samples, heavy, owner)
        elif reduction == "batchmean":
            weights = torch.full((samples,), (shape[0] if shape else 1) / samples, device=value.device)

        def unreduced() -> Tensor:
            each: Tensor = func(**{**told, "reduction": "none"})
            if func is F.ctc_loss and reduction == "mean":
                each = each / told["target_lengths"].to(each).clamp_min(1)
            return each

        def losses() -> Tensor:
            return _by_sample(samples, unreduced(), owner)

        def positions() -> Positions | None:
            if func not in _BY_CLASS:  # such as the classes of one sample: no tokens
                return Positions(lambda: losses()[:, None])
            if not _have_as_many(samples, shape[0] if shape else 1, owner):
                return None
            each = partial(_by_position, samples, unreduced())
            if not by_class:
                return Positions(each)
            classes = told["input"].shape[1 if told["input"].dim() > 1 else 0]
            return Positions(each, _by_position(samples, heavy) > 0, _by_position(samples, told["target"]), classes)

        self.found.append(
            Reduction(
                func.__name__,
                value,
                weights,
                losses,
                is_sum=reduction == "sum",
                by_label=by_class or owner is not None,
                is_of_samples=True,
                is_log_probability=by_class and told["weight"] is None and not told.get("label_smoothing"),
                positions=positions,
            )
        )


def _by_sample(samples: int, elements: Tensor, owner: Tensor | None = None) -> Tensor:
    """The sum of each sample's elements: [samples].

    Args:
        samples: number of samples.
        elements: [rows, ...], sample by sample.
        owner: the sample of each row, if rows were selected. None: each sample has as many.
    """
    if owner is None:
        return elements.reshape(samples, -1).sum(1)
    rows = elements.flatten(1).sum(1) if elements.dim() > 1 else elements
    return rows.new_zeros(samples).index_add(0, owner, rows)


def _have_as_many(samples: int, rows: int, owner: Tensor | None) -> bool:
    """Whether every sample has equally many rows."""
    return owner is None or bool((owner.bincount(minlength=samples) * samples == rows).all())


def _by_position(samples: int, elements: Tensor) -> Tensor:
    """The sum of each position's elements: [samples, positions], where samples have equally many positions."""
    if elements.dim() == 0:
        return elements.reshape(1, 1)
    if elements.shape[0] == samples and elements.dim() > 1:
        return elements.flatten(2).sum(2) if elements.dim() > 2 else elements
    rows = elements.flatten(1).sum(1) if elements.dim() > 1 else elements
    return rows.reshape(samples, -1)
