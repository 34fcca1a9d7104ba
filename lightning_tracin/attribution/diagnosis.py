"""Why the loss of a batch is not made of its samples' own losses, found by a few evaluations more.

A batch is evaluated twice (randomness), in another order, and each of its samples alone with the batch's padding. What the step
does meanwhile (`watching`), and what its loss has beside its samples' losses, tells the other reasons apart.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_tracin.attribution import reasons
from lightning_tracin.attribution.closeness import deviation
from lightning_tracin.attribution.reductions import Reductions
from lightning_tracin.attribution.step_terms import last_reductions
from lightning_tracin.attribution.watching import Watched, Watching
from lightning_tracin.gradients import can_double, in_double
from lightning_tracin.gradients.freezing import uncompiled

#: Evaluates the loss of a batch with this number of samples, as a scalar.
Evaluate = Callable[[Any, int], Tensor]

#: Largest relative difference of two losses that is taken for none: above rounding in float32.
_NONE = 1e-5

_ROUTERS = ("router", "expert", "moe")


@dataclass(frozen=True)
class Probed:
    """A real batch on which a loss is checked, and its samples one by one."""

    batch: Any
    alone: Sequence[Any]  # for each sample, a collated batch of it alone
    kind: str  # "train samples" or "probes", for messages
    collate: Callable[[Sequence[int]], Any] | None = None  # collates some of the samples again, by position


class _Beside(NamedTuple):
    """What a loss has beside its samples' losses, and the loss."""

    value: float
    loss: float
    of_matrices: bool  # whether it is computed from weight matrices; learned weights of losses are not

    @property
    def is_none(self) -> bool:
        return abs(self.value) <= _NONE * abs(self.loss)


def diagnosed(module: nn.Module, evaluate: Evaluate, checks: Sequence[Probed]) -> str | None:
    """The reason, with its remedy; None if no evaluation shows one.

    Args:
        module: in evaluation mode.
        evaluate: of the module.
        checks: real batches.

    Example:
        >>> module = nn.BatchNorm1d(2, track_running_stats=False).eval()
        >>> batch = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
        >>> print(diagnosed(module, lambda batch, _: module(batch).sum(), [Probed(batch, [batch[:1], batch[1:]], "probes")])[:30])
        a BatchNorm uses the statistic
    """
    several = [check for check in checks if len(check.alone) > 1]
    with uncompiled(module), torch.enable_grad():
        if can_double(module):
            with suppress(NotImplementedError, RuntimeError), in_double(module):  # a kernel may have no float64
                return _first_reason(module, evaluate, several)
        return _first_reason(module, evaluate, several)


def _first_reason(module: nn.Module, evaluate: Evaluate, checks: Sequence[Probed]) -> str | None:
    reasons = chain(
        (_of_one_batch(module, evaluate, check) for check in checks),
        (_of_remainders(module, [_remainders(evaluate, check) for check in checks]) for _ in range(1)),
        (_of_padding(module, evaluate, check) for check in checks),
    )
    return next((reason for reason in reasons if reason is not None), None)


def penalty(evaluate: Evaluate, checks: Sequence[Probed]) -> str | None:
    """The reason, if the loss has a term that depends on the weights alone: a mean over samples does not show it."""
    with torch.enable_grad():
        found = [one for check in checks if len(check.alone) > 1 for one in _remainders(evaluate, check)]
    return reasons.PENALTY.format(value=found[0].value) if _is_penalty(found) else None


def _of_one_batch(module: nn.Module, evaluate: Evaluate, check: Probed) -> str | None:
    count = len(check.alone)
    order = list(range(count))
    if check.collate is not None and not _equal(check.batch, check.collate(order)):
        return (
            "the collate function (or a hook that moves the batch) gives the same samples another batch each "
            "time: random masking or "
            "augmentation. Draw it once for each sample in the dataset, or from a generator that is seeded by the sample."
        )
    with Watching(module, count) as watching:
        first = float(evaluate(check.batch, count).detach())
    seen = watching.seen
    if _apart(first, float(evaluate(check.batch, count).detach())):
        return _of_randomness(module, seen)
    if seen.batch_norm:
        return reasons.BATCH_NORM
    if seen.gradient:
        return reasons.INNER_GRADIENT
    random.Random(0).shuffle(order)  # noqa: S311 - an order, not a secret
    if order == sorted(order):
        order.reverse()
    mixed = check.collate(order) if check.collate is not None else rows_of(check.batch, count, order)
    if mixed is not None and _apart(first, float(evaluate(mixed, count).detach())):
        change = "the loss changes when the same samples come in another order"
        return reasons.CAPACITY.format(change=change) if _has_router(module) else reasons.ORDER
    if not seen.pairs or count < 3:
        return None
    fewer = check.collate(order[1:]) if check.collate is not None else rows_of(check.batch, count, order[1:])
    with Watching(module, count - 1) as watching:
        evaluate(fewer, count - 1)
    return reasons.PAIRS if watching.seen.pairs else None


def _of_randomness(module: nn.Module, seen: Watched) -> str:
    evaluated = "the same batch has another loss when it is evaluated again: "
    training = seen.training or tuple(name or "the module" for name, one in module.named_modules() if one.training)
    if training:
        return (
            f"{evaluated}the step puts {training[0]!r} into training mode, so dropout is on. Leave `.train()` out "
            "of `training_step` "
            "(Lightning calls it), or put it under `if self.training:`."
        )
    if seen.dropout:
        return (
            f"{evaluated}dropout is called by hand and is on in evaluation mode, too. Write `F.dropout(x, p, "
            "training=self.training)`,"
            " or use `nn.Dropout`."
        )
    drawn = f" ({', '.join(seen.draws)})" if seen.draws else ""
    return (
        f"{evaluated}the step draws random numbers{drawn}: masking, augmentation, noise or sampling. Draw only under "
        "`if self.training:`, or once for each sample in the dataset."
    )


def _of_remainders(module: nn.Module, batches: Sequence[Sequence[_Beside]]) -> str | None:
    """The reason that what a loss has beside its samples' losses shows.

    Args:
        module: see `diagnosed`.
        batches: for each batch: of the batch, then of each of its samples alone.
    """
    found = [one for batch in batches for one in batch]
    if _is_penalty(found):
        return reasons.PENALTY.format(value=found[0].value)
    if not any(_depends_on_the_batch(*batch) for batch in batches if batch):
        return None
    low, high = min(one.value for one in found), max(one.value for one in found)
    return reasons.ROUTER.format(value=high) if _has_router(module) else reasons.TERM.format(low=low, high=high)


def _depends_on_the_batch(together: _Beside, *alone: _Beside) -> bool:
    """Whether it is neither the mean nor the sum of what single samples have."""
    total, least = sum(one.value for one in alone), _NONE * abs(together.loss)
    return min(abs(together.value - total / len(alone)), abs(together.value - total)) > least


def _is_penalty(found: Sequence[_Beside]) -> bool:
    if len(found) < 2 or any(one.is_none or not one.of_matrices for one in found):
        return False
    values = [one.value for one in found]
    return max(values) - min(values) <= min(_NONE * max(abs(one.loss) for one in found), 0.01 * min(map(abs, values)))


def _of_padding(module: nn.Module, evaluate: Evaluate, check: Probed) -> str | None:
    for position, one in enumerate(check.alone):
        line = rows_of(check.batch, len(check.alone), [position])
        if line is None:
            return None
        alone, padded = float(evaluate(one, 1).detach()), float(evaluate(line, 1).detach())
        if _apart(alone, padded):
            if _has_router(module):
                return reasons.CAPACITY.format(change="a sample's loss changes with the padding of its batch")
            return reasons.PADDING.format(alone=alone, padded=padded)
    return None


def _remainders(evaluate: Evaluate, check: Probed) -> list[_Beside]:
    """What the loss has beside its samples' losses, in a batch and in each of its samples; empty if these are not seen."""
    runs = []
    for batch, count in ((check.batch, len(check.alone)), *((one, 1) for one in check.alone)):
        with Reductions(count) as seen:
            loss = evaluate(batch, count)
        if not loss.requires_grad:
            return []
        runs.append((loss, seen.found))
    if all(any(one.is_of_samples for one in found) for _, found in runs):
        lasts = [last_reductions(loss, found) for loss, found in runs]
        if all(last and all(one.is_of_samples for one in last) for last in lasts):
            return []  # the loss is a function of them alone, such as their root
        return _besides([(loss, [one.value for one in found if one.is_of_samples]) for loss, found in runs])
    # A loss by hand. A sum of weights has the same value in every batch, and reductions of samples have not.
    shared = set.intersection(*({_digits(one.value) for one in found} for _, found in runs))
    found = _besides([(loss, [one.value for one in some if _digits(one.value) not in shared]) for loss, some in runs])
    return found if _is_penalty(found) else []


def _besides(runs: Sequence[tuple[Tensor, Sequence[Tensor]]]) -> list[_Beside]:
    """What each loss has beside some values that it is computed from; empty if it is computed from none."""
    found = []
    for loss, values in runs:
        factors: Sequence[Tensor | None] = torch.autograd.grad(loss, values, allow_unused=True) if values else ()
        made_of = [float(value.detach() * by) for value, by in zip(values, factors, strict=True) if by is not None]
        if not made_of:
            return []
        found.append(_Beside(float(loss.detach()) - sum(made_of), float(loss.detach()), _of_matrices(loss, values)))
    return found


def _of_matrices(loss: Tensor, values: Sequence[Tensor]) -> bool:
    """Whether a loss is computed from parameters of two dimensions or more, other than through some values."""
    seen = {value.grad_fn for value in values}
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor) and leaf.dim() > 1:
            return True
        waiting += [following for following, _ in node.next_functions]
    return False


def _digits(value: Tensor) -> str:
    return f"{float(value.detach()):.5e}"


def _has_router(module: nn.Module) -> bool:
    return any(word in f"{name} {type(part).__name__}".lower() for name, part in module.named_modules() for word in _ROUTERS)


def _apart(one: float, other: float) -> bool:
    return not deviation(one, other) <= _NONE


def rows_of(batch: Any, samples: int, rows: Sequence[int]) -> Any:
    """Some samples of a collated batch, with its padding; None if it has anything but one row for each sample.

    Example:
        >>> rows_of({"ids": torch.tensor([[1, 2], [3, 0]])}, 2, [1])
        {'ids': tensor([[3, 0]])}
        >>> rows_of({"ids": torch.zeros(2, 1), "count": 3}, 2, [1]) is None
        True
    """
    try:
        return _rows(batch, samples, list(rows))
    except ValueError:
        return None


def _rows(batch: Any, samples: int, rows: list[int]) -> Any:
    if isinstance(batch, Tensor) and batch.dim() and len(batch) == samples:
        return batch[rows]
    if isinstance(batch, Mapping):
        return {name: _rows(value, samples, rows) for name, value in batch.items()}
    if isinstance(batch, (list, tuple)) and batch:
        if any(isinstance(one, (Tensor, Mapping, list, tuple)) for one in batch):
            values = [_rows(one, samples, rows) for one in batch]
            return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
        if len(batch) == samples:
            return type(batch)(batch[row] for row in rows)
    if batch is None or isinstance(batch, (str, bool)):
        return batch
    raise ValueError


def _equal(one: Any, other: Any) -> bool:
    """Whether two batches have the same tensors."""
    if isinstance(one, Tensor):
        same = isinstance(other, Tensor) and one.shape == other.shape
        return same and bool(torch.equal(one.nan_to_num(), other.nan_to_num()))
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and all(name in other and _equal(value, other[name]) for name, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return True
