"""The loss of one sample: the module's `per_sample_loss`, or its `training_step` after a check on real batches.

A batch's loss has to be made of its samples' own losses. Where it seems not to be, and the difference is small enough to be
rounding, the same batches are looked at in float64, where rounding vanishes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_tracin.attribution.closeness import CLOSE, deviation, same
from lightning_tracin.attribution.diagnosis import Probed, diagnosed, penalty
from lightning_tracin.attribution.no_collectives import no_collectives
from lightning_tracin.attribution.remedies import remedy_for
from lightning_tracin.attribution.step_loss import LastSum, PerSampleLoss, StepLoss, Summed, SummedLoss, loss_of_step
from lightning_tracin.attribution.step_terms import Reduced, Term, reduced
from lightning_tracin.config import LossUnit
from lightning_tracin.errors import TracInError
from lightning_tracin.gradients import can_double, in_double
from lightning_tracin.gradients.freezing import uncompiled

__all__ = [
    "LastSum",
    "PerSampleLoss",
    "Probed",
    "StepLoss",
    "Summed",
    "SummedLoss",
    "Term",
    "find_loss",
    "loss_named",
    "require_sum",
]

#: Largest difference, relative to the losses, that rounding may cause where float64 shows that it is rounding.
_ROUGH = {torch.float64: 2e-5, torch.float32: 1e-4}


class LossDiffersError(TracInError):
    """The loss of a batch is not made of its samples' own losses."""


class UndecidedLossError(LossDiffersError):
    """The data do not show how the loss of a batch is made of its samples' own."""


@no_collectives()
def find_loss(
    module: nn.Module, checks: Callable[[], Sequence[Probed]], known: str | None = None, unit: LossUnit = "sample"
) -> SummedLoss:
    """The per-sample loss of a module in evaluation mode, verified on real batches.

    Args:
        module: a LightningModule (anything with `per_sample_loss(batch)` or `training_step(batch, batch_idx)`).
        checks: gives batches of at least two samples.
        known: name of the loss that was found before; then batches that do not tell a mean from a sum are no error.
        unit: what the loss of one sample is; see `Stored.loss_unit`.

    Raises:
        TracInError: the loss of a batch is not made of its samples' own losses, it is another than the known one, or it does not
            show what a token weighs; the message names the remedy.
    """
    with uncompiled(module):
        batches = checks()
        try:
            found = _verified(module, batches, known)
            beside = None if isinstance(found, PerSampleLoss) or found.terms else penalty(evaluated(module), batches)
        except LossDiffersError as error:
            reason = diagnosed(module, evaluated(module), batches)
            if reason is not None:
                raise LossDiffersError(f"{error} The reason: {reason}") from error
            if callable(getattr(module, "per_sample_loss", None)):
                raise
            raise LossDiffersError(f"{error} {remedy_for(module)}") from error
        if beside is not None:
            raise LossDiffersError(f"`training_step`'s loss is not made of its samples' own losses: {beside}")
        loss = _in_unit(found, unit, batches)
    if known is not None and loss.name != known:
        raise TracInError(
            f"The loss of {type(module).__name__} is {loss.name}, but the run's is {known}; give a module with the fit's loss."
        )
    return loss


def evaluated(module: nn.Module) -> Callable[[Any, int], Tensor]:
    """The module's loss of a batch as it is, for a diagnosis: the sum of `per_sample_loss`, or what `training_step` returns."""
    if callable(getattr(module, "per_sample_loss", None)):
        return PerSampleLoss(module)
    return lambda batch, _: loss_of_step(module, batch)


def _in_unit(loss: PerSampleLoss | StepLoss, unit: LossUnit, checks: Sequence[Probed]) -> SummedLoss:
    """The loss in a unit.

    Raises:
        TracInError: it does not show what a token weighs, or its terms weigh tokens differently.
    """
    if unit == "sample":
        return loss
    if isinstance(loss, PerSampleLoss):
        raise TracInError(
            "loss_unit='token' is for a `training_step`, but the module has `per_sample_loss`, which says itself what a sample's "
            "loss is: return the sum over its tokens there, and leave out `loss_unit`."
        )
    batches = [(check.batch, len(check.alone)) for check in checks]
    if loss.is_of_one:
        batches = [(one, 1) for check in checks for one in check.alone]
    for batch, samples in batches:
        with torch.enable_grad():
            found = reduced(partial(loss_of_step, loss.module, batch), samples)[1]
        if found is None or not loss.terms:
            raise TracInError(
                "loss_unit='token' needs to see what a token weighs in `training_step`'s loss, but its mean is computed in a way "
                f"that is not seen. Use `loss_unit='sample'`. {remedy_for(loss.module)}"
            )
        weights = torch.stack([found.weights(position, term.rule).double() for position, term in enumerate(loss.terms)])
        if not bool((weights == weights[0]).all()):
            raise TracInError(
                f"loss_unit='token' needs one weight for a token, but `training_step`'s loss adds up {len(loss.terms)} means "
                f"({', '.join(term.name for term in loss.terms)}) that weigh a sample differently. Use `loss_unit='sample'`. "
                f"{remedy_for(loss.module)}"
            )
    return replace(loss, unit=unit)


def _verified(module: nn.Module, checks: Sequence[Probed], known: str | None) -> PerSampleLoss | StepLoss:
    """The loss as it is found, or as float64 shows it where rounding may hide it."""
    dtype = next((one.dtype for one in module.parameters() if one.is_floating_point()), torch.float32)
    most = CLOSE.get(dtype, CLOSE[torch.float32])
    loss: PerSampleLoss | StepLoss | None = None
    try:
        loss, is_doubtful = _found(module, checks, known, most)
    except TracInError:
        if not can_double(module):
            raise
        is_doubtful = True
    if loss is not None and not (is_doubtful and can_double(module)):
        return loss
    try:
        with in_double(module):
            precise, _ = _found(module, checks, known, most)
    except TracInError:
        raise
    except Exception:  # a kernel without float64: what float32 shows counts
        return _found(module, checks, known, most)[0]
    try:
        rounded, _ = _found(module, checks, known, _ROUGH[dtype])
    except TracInError as error:
        raise TracInError(
            f"The losses of {type(module).__name__} differ between a batch and its samples one at a time by rounding in "
            f"{str(dtype).removeprefix('torch.')} (in float64 they agree); use `dtype='float64'`."
        ) from error
    return replace(precise, deviation=rounded.deviation)


def _found(module: nn.Module, checks: Sequence[Probed], known: str | None, most: float) -> tuple[PerSampleLoss | StepLoss, bool]:
    """The loss, and whether its reductions were seen but did not give every sample what it has alone.

    Args:
        module: see `find_loss`.
        checks: the batches.
        known: see `find_loss`.
        most: the largest difference that is accepted, relative to the losses.
    """
    if callable(getattr(module, "per_sample_loss", None)):
        own = PerSampleLoss(module)
        return replace(own, deviation=_check_sum(own, checks, most)), False
    if not getattr(module, "automatic_optimization", True):
        raise TracInError(f"The module optimizes manually, so its `training_step` cannot serve as the loss. {remedy_for(module)}")
    seen = [_seen(module, check) for check in checks]
    terms = _terms([one.reduced for one in seen if len(one.alone) > 1 and bool(torch.isfinite(one.together))])
    seen = [one.with_empty(terms) for one in seen]
    finite = [bool(torch.isfinite(one.alone).all()) for one in seen]  # others are reported where the pass meets them
    checks, seen = list(compress(checks, finite)), list(compress(seen, finite))
    joined = _joined(module, checks, seen, most) if known == StepLoss(module, "mean", is_of_one=True).name else None
    if joined is not None:
        return joined, False
    apart = max((_apart(one, terms) for one in seen), default=math.inf) if terms else math.inf
    if apart <= most:
        kinds = {"sum" if term.rule == "sum" else "mean" for term in terms}
        if len(kinds) == 1:
            return StepLoss(module, "sum" if kinds == {"sum"} else "mean", terms, apart), False
    try:
        reduction, apart = _reduction(seen, known, most)
    except UndecidedLossError:
        raise
    except LossDiffersError:
        joined = _joined(module, checks, seen, most)
        if joined is None:
            raise
        return joined, False
    return StepLoss(module, reduction, deviation=apart), bool(terms)


def _joined(module: nn.Module, checks: Sequence[Probed], seen: Sequence[_Seen], most: float) -> StepLoss | None:
    """The loss of samples whose batches do not show which rows are whose; None if batches are no means over their tokens.

    Such as samples that are packed in one row without padding. Each sample alone shows how many rows it has. If the batch's loss
    is the mean with these weights, samples do not see each other, and their losses can be computed one at a time.
    """
    terms: tuple[Term, ...] = ()
    found = [0.0]
    for check, batch in zip(checks, seen, strict=True):
        with torch.enable_grad():
            alone = [reduced(partial(loss_of_step, module, one), 1)[1] for one in check.alone]
        known = [one for one in alone if one is not None and len(one.used) == 1 and not one.used[0][0].is_sum]
        if len(known) < len(alone):
            return None
        weights = torch.stack([one.used[0][0].weights.sum().double() for one in known])  # on the losses' device
        mean = float((weights * batch.alone).sum() / weights.sum())
        found.append(deviation(float(batch.together), mean, float(batch.alone.abs().mean())))
        if not found[-1] <= most:
            return None
        terms = terms or _terms(known)
        if not terms or not all(one.follows(terms) for one in known):
            return None
    return StepLoss(module, "mean", terms, max(found), is_of_one=True) if terms else None


def loss_named(module: nn.Module, name: str) -> SummedLoss:
    """The loss of this name, without a check: it has been verified on another copy of the module.

    Raises:
        TracInError: there is no such loss.
    """
    known: tuple[SummedLoss, ...] = (
        PerSampleLoss(module),
        StepLoss(module, "mean"),
        StepLoss(module, "sum"),
        StepLoss(module, "mean", is_of_one=True),
    )
    named = {loss.name: loss for loss in known}
    if name not in named:
        raise TracInError(f"There is no loss {name!r}; the losses are {', '.join(named)}.")
    return named[name]


def _values(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack([loss.detach() for loss in losses]).double()


@torch.no_grad()
def _check_sum(loss: SummedLoss, checks: Sequence[Probed], most: float) -> float:
    found = [0.0]
    for check in checks:
        together = float(loss(check.batch, len(check.alone)))
        own = _values([loss(one, 1) for one in check.alone])
        alone = float(own.sum())
        if not math.isfinite(alone):
            continue
        found.append(deviation(together, alone, float(own.abs().mean())))
        if not found[-1] <= most:
            raise LossDiffersError(
                f"The losses of `per_sample_loss` sum to {together:.6g} for a batch of {len(check.alone)} {check.kind}, "
                f"but to {alone:.6g} for the same samples one at a time: a sample's loss depends on its batch, or on padding."
            )
    return max(found)


@dataclass(frozen=True)
class _Seen:
    """A batch's loss, how it was reduced, and its samples' own losses."""

    together: Tensor
    reduced: Reduced | None
    alone: Tensor  # [samples], double
    kind: str
    empty: dict[int, Reduced]  # samples whose loss is not finite alone

    def with_empty(self, terms: Sequence[Term]) -> _Seen:
        """The same, where the loss of a sample without a label that counts is 0: its mean is one of nothing, 0 / 0."""
        alone = self.alone.clone()
        for position, found in self.empty.items():
            if terms and found.follows(terms):
                alone[position] = found.own_losses(terms)[0].detach().double()
        return replace(self, alone=alone)


def _seen(module: nn.Module, check: Probed) -> _Seen:
    with torch.no_grad():
        alone = _values([loss_of_step(module, one) for one in check.alone])
    empty: dict[int, Reduced] = {}
    with torch.enable_grad():
        loss, found = reduced(lambda: loss_of_step(module, check.batch), len(alone))
        for position in (~torch.isfinite(alone)).nonzero()[:, 0].tolist():
            of_one = reduced(partial(loss_of_step, module, check.alone[position]), 1)[1]
            empty |= {} if of_one is None else {position: of_one}
    return _Seen(loss.detach(), found, alone, check.kind, empty)


def _terms(batches: Sequence[Reduced | None]) -> tuple[Term, ...]:
    """What the losses of several batches are made of; empty where they have no such terms in common."""
    seen = [one for one in batches if one is not None]
    if not seen or len(seen) < len(batches) or len({one.names for one in seen}) > 1:
        return ()
    terms = []
    for position, name in enumerate(seen[0].names):
        possible = [one.possible(position) for one in seen]
        rules = [rule for rule, coefficient in possible[0].items() if all(rule in other for other in possible)]
        dtype = seen[0].dtype
        rules = [rule for rule in rules if all(same(one[rule], possible[0][rule], dtype) for one in possible)]
        if not rules:
            return ()
        terms.append(Term(name, rules[0], possible[0][rules[0]]))
    return tuple(terms)


def _apart(seen: _Seen, terms: Sequence[Term]) -> float:
    """How far the losses that the terms give the samples of a batch are from those that they have alone, relative to these."""
    if seen.reduced is None:
        return 0.0 if len(seen.alone) == 1 else math.inf
    own = seen.reduced.own_losses(terms).detach().double().tolist()
    alone = seen.alone.tolist()
    scale = max(map(abs, alone))
    return max(deviation(got, want, scale) for got, want in zip(own, alone, strict=True))


def _reduction(batches: Sequence[_Seen], known: str | None, most: float) -> tuple[Literal["mean", "sum"], float]:
    """Which of mean or sum over samples `training_step`'s loss is on every check, and how far from it, relative to the losses."""
    possible: set[Literal["mean", "sum"]] = {"mean", "sum"}
    found = [0.0]
    for seen in batches:
        mean, total, scale = float(seen.alone.mean()), float(seen.alone.sum()), float(seen.alone.abs().mean())
        both = {"mean": deviation(float(seen.together), mean, scale), "sum": deviation(float(seen.together), total, scale)}
        here = {name for name in possible if both[name] <= most}
        if not here:
            raise LossDiffersError(
                f"`training_step`'s loss is neither the mean nor the sum of its samples' losses: for a batch of "
                f"{len(seen.alone)} {seen.kind} it is {float(seen.together):.6g}, while the same samples one at a time have the "
                f"mean {mean:.6g} and the sum {total:.6g}."
            )
        possible = here
        found.append(min(both[name] for name in here))
    for each in possible:
        if len(possible) == 1 or known == f"training_step ({each})":
            return each, max(found)
    raise UndecidedLossError(
        "The data do not show whether `training_step`'s loss is a mean or a sum over samples (all losses are zero, not "
        "finite, or there is a single sample)."
    )


def require_sum(
    loss: SummedLoss, together: float, alone: Sequence[Any], dtype: torch.dtype, which: str, batch: Any = None
) -> None:
    """Refuse a batch whose summed loss is not the sum of its samples' own losses.

    Args:
        loss: of the samples.
        together: the batch's summed loss.
        alone: its samples, each as a collated batch of one.
        dtype: of the loss.
        which: names the samples and the snapshot, for the message.
        batch: the samples together, to look at them in float64 where rounding may explain a difference. None: do not.

    Raises:
        TracInError: it is not.
    """
    most, apart = CLOSE.get(dtype, CLOSE[torch.float32]), _apart_from_sum(loss, together, alone)
    if apart > most and apart <= _ROUGH.get(dtype, 0.0) and batch is not None and can_double(loss.module):
        with suppress(Exception), torch.no_grad(), in_double(loss.module):  # a kernel may have no float64
            apart = _apart_from_sum(loss, float(loss(batch, len(alone))), alone)
    if not apart <= most:
        own = _own(loss, alone)
        reason = None if batch is None else diagnosed(loss.module, evaluated(loss.module), [Probed(batch, alone, "samples")])
        told = remedy_for(loss.module) if reason is None else f"The reason: {reason}"
        raise TracInError(
            f"`training_step`'s loss is no longer the {'sum' if 'sum' in loss.name else 'mean'} of its samples' own losses for "
            f"{which}: scaled to a sum over the batch it is {together:.6g}, but the samples taken alone sum to "
            f"{float(own.sum()):.6g} (a weight for some samples or classes, or a term that depends on the batch?). "
            f"{told}"
        )


def _apart_from_sum(loss: SummedLoss, together: float, alone: Sequence[Any]) -> float:
    own = _own(loss, alone)
    return deviation(together, float(own.sum()), float(own.abs().mean()))


@torch.no_grad()
def _own(loss: SummedLoss, alone: Sequence[Any]) -> Tensor:
    return _values([loss(one, 1) for one in alone])
