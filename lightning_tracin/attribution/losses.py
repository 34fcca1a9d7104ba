"""The loss of one sample: the module's `per_sample_loss`, or its `training_step` after a check on real batches.

The engine needs the *sum* of the losses of a batch's samples as one differentiable scalar: a `SummedLoss`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from lightning_tracin.attribution.fresh_batch import fresh
from lightning_tracin.attribution.no_collectives import no_collectives
from lightning_tracin.attribution.reductions import Reduced, Rule, reduced, same
from lightning_tracin.errors import TracInError
from lightning_tracin.gradients.freezing import uncompiled

_REMEDY = (
    "Add a method `per_sample_loss(self, batch) -> Tensor` to the LightningModule that returns one unreduced loss per sample "
    "(for example `F.cross_entropy(logits, labels, reduction='none')`)."
)


@dataclass(frozen=True)
class Summed:
    """The losses of a batch, added up.

    Attributes:
        total: their sum, a scalar, part of the graph.
        is_certain: whether this batch itself shows that it is the sum of its samples' own losses. Otherwise that is true of
            the batches that were checked, and has to be seen for this one by evaluating its samples one at a time.
        own: computes the losses one by one, [samples], part of the same graph; None if they are not known.
    """

    total: Tensor
    is_certain: bool
    own: Callable[[], Tensor | None] = lambda: None


class LastSum:
    """The losses of one batch, whose forward pass may be done several times; the last one counts.

    Args:
        forward: does the forward pass.
    """

    def __init__(self, forward: Callable[[], Summed]) -> None:
        self._forward = forward
        self.last: Summed | None = None

    def total(self) -> Tensor:
        """Do the forward pass; the sum of the losses."""
        self.last = self._forward()
        return self.last.total

    def own(self) -> Tensor | None:
        """The losses of the last forward pass one by one, [samples]; None if they are not known."""
        return None if self.last is None else self.last.own()


class SummedLoss(Protocol):
    """The sum of the losses of a batch's samples."""

    @property
    def name(self) -> str:
        """Name of the loss, for `loss_named`."""

    def summed(self, batch: Any, samples: int) -> Summed:
        """Forward pass of a batch with this number of samples."""

    def __call__(self, batch: Any, samples: int) -> Tensor:
        """`summed(...).total`."""


@dataclass(frozen=True)
class Probed:
    """A real batch on which a loss is checked, and its samples one by one."""

    batch: Any
    alone: Sequence[Any]  # for each sample, a collated batch of it alone
    kind: str  # "train samples" or "probes", for messages


@dataclass(frozen=True)
class PerSampleLoss:
    """The sum of `module.per_sample_loss(batch)`."""

    module: nn.Module
    name: str = "per_sample_loss"

    def summed(self, batch: Any, samples: int) -> Summed:
        """Forward pass of a batch with this number of samples."""
        with no_collectives():
            losses = self.module.per_sample_loss(fresh(batch))  # type: ignore[operator]
        if not isinstance(losses, Tensor) or losses.shape != (samples,):
            got = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise TracInError(
                f"`per_sample_loss` should return a tensor of shape [{samples}], one loss for each sample of the batch, but "
                f"returned {got}."
            )
        return Summed(losses.sum(), True, lambda: losses)

    def __call__(self, batch: Any, samples: int) -> Tensor:
        """`summed(...).total`."""
        return self.summed(batch, samples).total


@dataclass(frozen=True)
class Term:
    """One reduction that a step's loss is made of, as the batches that were checked show it.

    Attributes:
        name: of the function.
        rule: how it adds up samples, see `reductions.Reduced.possible`.
        coefficient: its factor, the same in every batch.
    """

    name: str
    rule: Rule
    coefficient: float


@dataclass(frozen=True)
class StepLoss:
    """`module.training_step`'s loss, turned into the sum of its samples' own losses.

    Attributes:
        module: a LightningModule.
        reduction: whether the loss of a batch is a (weighted) mean of its samples' losses, or their sum.
        terms: what the loss is made of; empty where that could not be seen, so that no batch is certain.
    """

    module: nn.Module
    reduction: Literal["mean", "sum"]
    terms: tuple[Term, ...] = ()

    @property
    def name(self) -> str:
        """Name of the loss."""
        return f"training_step ({self.reduction})"

    def summed(self, batch: Any, samples: int) -> Summed:
        """Forward pass of a batch with this number of samples."""
        loss, found = reduced(lambda: _training_step(self.module, batch), samples)
        factor = samples if self.reduction == "mean" else 1
        if samples == 1:
            return Summed(loss, is_certain=True)
        if found is None or not self.terms or not _follows(found, self.terms):
            return Summed(loss * factor, is_certain=False)
        rules = [term.rule for term in self.terms]
        total = loss * factor if found.weigh_the_same(rules) else found.own_losses(rules).sum()
        return Summed(total, True, lambda: found.own_losses(rules))

    def __call__(self, batch: Any, samples: int) -> Tensor:
        """`summed(...).total`."""
        return self.summed(batch, samples).total


def _follows(found: Reduced, terms: Sequence[Term]) -> bool:
    """Whether a batch's loss is made of these terms, with the same coefficients."""
    if found.names != tuple(term.name for term in terms):
        return False
    here = [found.possible(position).get(term.rule) for position, term in enumerate(terms)]
    return all(got is not None and same(got, term.coefficient, found.loss.dtype) for got, term in zip(here, terms, strict=True))


@no_collectives()
def find_loss(module: nn.Module, checks: Callable[[], Sequence[Probed]], known: str | None = None) -> SummedLoss:
    """The per-sample loss of a module in evaluation mode, verified on real batches.

    Args:
        module: a LightningModule (anything with `per_sample_loss(batch)` or `training_step(batch, batch_idx)`).
        checks: gives batches of at least two samples.
        known: name of the loss that was found before; then batches that do not tell a mean from a sum are no error.

    Raises:
        TracInError: the loss of a batch is not made of its samples' own losses, or it is another than the known one; the
            message names the remedy.
    """
    with uncompiled(module):
        loss = _found(module, checks(), known)
    if known is not None and loss.name != known:
        raise TracInError(
            f"The loss of {type(module).__name__} is {loss.name}, but the run's is {known}; give a module with the fit's loss."
        )
    return loss


def _found(module: nn.Module, checks: Sequence[Probed], known: str | None) -> SummedLoss:
    if callable(getattr(module, "per_sample_loss", None)):
        own = PerSampleLoss(module)
        _check_sum(own, checks)
        return own
    if not getattr(module, "automatic_optimization", True):
        raise TracInError(f"The module optimizes manually, so its `training_step` cannot serve as the loss. {_REMEDY}")
    seen = [_seen(module, check) for check in checks]
    seen = [one for one in seen if bool(torch.isfinite(one.alone).all())]  # others are reported where the pass meets them
    terms = _terms([one.reduced for one in seen if len(one.alone) > 1])
    if terms and all(_owns(one, terms) for one in seen):
        kinds = {"sum" if term.rule == "sum" else "mean" for term in terms}
        if len(kinds) == 1:
            return StepLoss(module, "sum" if kinds == {"sum"} else "mean", terms)
    return StepLoss(module, _reduction(seen, known))


def loss_named(module: nn.Module, name: str) -> SummedLoss:
    """The loss of this name, without a check: it has been verified on another copy of the module.

    Raises:
        TracInError: there is no such loss.
    """
    known: tuple[SummedLoss, ...] = (PerSampleLoss(module), StepLoss(module, "mean"), StepLoss(module, "sum"))
    named = {loss.name: loss for loss in known}
    if name not in named:
        raise TracInError(f"There is no loss {name!r}; the losses are {', '.join(named)}.")
    return named[name]


def _training_step(module: nn.Module, batch: Any) -> Tensor:
    step: Callable[..., Any] = module.training_step  # type: ignore[assignment]
    _, *others = inspect.signature(step).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    with no_collectives():
        result = step(
            fresh(batch), *(0 for other in others if other.kind in positional and other.default is inspect.Parameter.empty)
        )
    loss = result.get("loss") if isinstance(result, dict) else result
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(result).__name__
        raise TracInError(f"`training_step` should return a scalar loss (or a dict with 'loss'), but returned {got}. {_REMEDY}")
    return loss.reshape(())


def _values(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack([loss.detach() for loss in losses]).double()


@torch.no_grad()
def _check_sum(loss: SummedLoss, checks: Sequence[Probed]) -> None:
    for check in checks:
        together = loss(check.batch, len(check.alone))
        alone = float(_values([loss(one, 1) for one in check.alone]).sum())
        if math.isfinite(alone) and not same(float(together), alone, together.dtype):
            raise TracInError(
                f"The losses of `per_sample_loss` sum to {float(together):.6g} for a batch of {len(check.alone)} {check.kind}, "
                f"but to {alone:.6g} for the same samples one at a time: a sample's loss depends on its batch, or on padding."
            )


@dataclass(frozen=True)
class _Seen:
    """A batch's loss, how it was reduced, and its samples' own losses."""

    together: Tensor
    reduced: Reduced | None
    alone: Tensor  # [samples], double
    kind: str


def _seen(module: nn.Module, check: Probed) -> _Seen:
    with torch.no_grad():
        alone = _values([_training_step(module, one) for one in check.alone])
    with torch.enable_grad():
        loss, found = reduced(lambda: _training_step(module, check.batch), len(alone))
    return _Seen(loss.detach(), found, alone, check.kind)


def _terms(batches: Sequence[Reduced | None]) -> tuple[Term, ...]:
    """What the losses of several batches are made of; empty where they have no such terms in common."""
    seen = [one for one in batches if one is not None]
    if not seen or len(seen) < len(batches) or len({one.names for one in seen}) > 1:
        return ()
    terms = []
    for position, name in enumerate(seen[0].names):
        possible = [one.possible(position) for one in seen]
        rules = [rule for rule, coefficient in possible[0].items() if all(rule in other for other in possible)]
        dtype = seen[0].loss.dtype
        rules = [rule for rule in rules if all(same(one[rule], possible[0][rule], dtype) for one in possible)]
        if not rules:
            return ()
        rule = next((one for one in rules if one.startswith("sum / total")), rules[0])
        terms.append(Term(name, rule, possible[0][rule]))
    return tuple(terms)


def _owns(seen: _Seen, terms: Sequence[Term]) -> bool:
    """Whether the terms give each sample of a batch the loss that it has alone."""
    if seen.reduced is None:
        return len(seen.alone) == 1
    own = seen.reduced.own_losses([term.rule for term in terms]).detach().double().tolist()
    alone = seen.alone.tolist()
    scale = max(map(abs, alone))
    return all(same(got, want, seen.together.dtype, scale) for got, want in zip(own, alone, strict=True))


def _reduction(batches: Sequence[_Seen], known: str | None) -> Literal["mean", "sum"]:
    """Which of mean or sum over samples `training_step`'s loss is on every check."""
    possible: set[Literal["mean", "sum"]] = {"mean", "sum"}
    for seen in batches:
        mean, total = float(seen.alone.mean()), float(seen.alone.sum())
        here: set[Literal["mean", "sum"]] = set()
        if same(float(seen.together), mean, seen.together.dtype):
            here.add("mean")
        if same(float(seen.together), total, seen.together.dtype):
            here.add("sum")
        if not here & possible:
            raise TracInError(
                f"`training_step`'s loss is neither the mean nor the sum of its samples' losses: for a batch of "
                f"{len(seen.alone)} {seen.kind} it is {float(seen.together):.6g}, while the same samples one at a time have the "
                f"mean {mean:.6g} and the sum {total:.6g}. {_REMEDY}"
            )
        possible &= here
    for each in possible:
        if len(possible) == 1 or known == f"training_step ({each})":
            return each
    raise TracInError(
        "The data do not show whether `training_step`'s loss is a mean or a sum over samples (all losses are zero, not "
        f"finite, or there is a single sample). {_REMEDY}"
    )


def require_sum(loss: SummedLoss, together: float, alone: Sequence[Any], dtype: torch.dtype, which: str) -> None:
    """Refuse a batch whose summed loss is not the sum of its samples' own losses.

    Args:
        loss: of the samples.
        together: the batch's summed loss.
        alone: its samples, each as a collated batch of one.
        dtype: of the loss.
        which: names the samples and the snapshot, for the message.

    Raises:
        TracInError: it is not.
    """
    with torch.no_grad():
        own = _values([loss(one, 1) for one in alone])
    if not same(together, float(own.sum()), dtype, float(own.abs().sum()) / len(own)):
        raise TracInError(
            f"`training_step`'s loss is no longer the {'sum' if 'sum' in loss.name else 'mean'} of its samples' own losses for "
            f"{which}: scaled to a sum over the batch it is {together:.6g}, but the samples taken alone sum to "
            f"{float(own.sum()):.6g} (a weight for some samples or classes, or a term that depends on the batch?). {_REMEDY}"
        )
