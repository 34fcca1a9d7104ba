"""The sum of the losses of a batch's samples, from the module's `per_sample_loss` or its `training_step`.

The engine needs it as one differentiable scalar. `losses.find_loss` checks on real batches which of them a module has.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from lightning_tracin.attribution.fresh_batch import fresh
from lightning_tracin.attribution.no_collectives import no_collectives
from lightning_tracin.attribution.reasons import reason_of_error
from lightning_tracin.attribution.remedies import remedy_for
from lightning_tracin.attribution.step_terms import Reduced, Term, reduced
from lightning_tracin.config import LossUnit
from lightning_tracin.errors import TracInError


@dataclass(frozen=True)
class Summed:
    """The losses of a batch, added up.

    Attributes:
        total: their sum, a scalar, part of the graph.
        is_certain: whether this batch itself shows that it is the sum of its samples' own losses. Otherwise that is true of
            the batches that were checked, and has to be seen for this one by evaluating its samples one at a time.
        own: computes the losses one by one, [samples], part of the same graph; None if they are not known.
        label_losses: computes -log of the probability of each sample's label, [samples]; None unless that is its whole loss.
    """

    total: Tensor
    is_certain: bool
    own: Callable[[], Tensor | None] = lambda: None
    label_losses: Callable[[], Tensor | None] = lambda: None


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

    @torch.no_grad()
    def label_losses(self) -> Tensor | None:
        """What each sample's label costs in the last forward pass, see `Summed`."""
        return None if self.last is None else self.last.label_losses()


class SummedLoss(Protocol):
    """The sum of the losses of a batch's samples."""

    @property
    def module(self) -> nn.Module:
        """The module whose loss it is."""

    @property
    def deviation(self) -> float:
        """How far the checked batches were from their samples one at a time, relative to the losses."""

    @property
    def name(self) -> str:
        """Name of the loss, for `loss_named`."""

    @property
    def is_of_one(self) -> bool:
        """Whether a batch may only have one sample, because a larger one does not show what is whose."""

    def summed(self, batch: Any, samples: int) -> Summed:
        """Forward pass of a batch with this number of samples."""

    def __call__(self, batch: Any, samples: int) -> Tensor:
        """`summed(...).total`."""


@dataclass(frozen=True)
class PerSampleLoss:
    """The sum of `module.per_sample_loss(batch)`."""

    module: nn.Module
    name: str = "per_sample_loss"
    deviation: float = field(default=0.0, compare=False)
    is_of_one: bool = False

    def summed(self, batch: Any, samples: int) -> Summed:
        """Forward pass of a batch with this number of samples."""
        with no_collectives():
            losses = _explained("per_sample_loss", self.module.per_sample_loss, fresh(batch))
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
class StepLoss:
    """`module.training_step`'s loss, turned into the sum of its samples' own losses.

    Attributes:
        module: a LightningModule.
        reduction: whether the loss of a batch is a (weighted) mean of its samples' losses, or their sum.
        terms: what the loss is made of; empty where that could not be seen, so that no batch is certain.
        deviation: how far the checked batches were from their samples one at a time, relative to the losses.
        unit: what the loss of one sample is; see `Stored.loss_unit`.
        is_of_one: whether samples are evaluated one at a time, because a batch does not show which rows are whose.
    """

    module: nn.Module
    reduction: Literal["mean", "sum"]
    terms: tuple[Term, ...] = ()
    deviation: float = field(default=0.0, compare=False)
    unit: LossUnit = "sample"
    is_of_one: bool = False

    @property
    def name(self) -> str:
        """Name of the loss."""
        return f"training_step ({self.reduction}{', one sample at a time' if self.is_of_one else ''})"

    def summed(self, batch: Any, samples: int) -> Summed:
        """Forward pass of a batch with this number of samples.

        Raises:
            TracInError: the unit is the token, and what a token of this batch weighs cannot be seen.
        """
        wanted = torch.is_grad_enabled()
        if self.unit == "token":
            with torch.enable_grad():
                found = reduced(lambda: loss_of_step(self.module, batch), samples)[1]
            if found is None or not found.follows(self.terms):
                raise TracInError(
                    "loss_unit='token' needs to see what a token weighs, but the loss of a batch is not made of what the "
                    f"batches of the check showed. Use `loss_unit='sample'`. {remedy_for(self.module)}"
                )
            losses = found.own_losses(self.terms, by_token=True)
            losses = losses if wanted else losses.detach()
            return Summed(losses.sum(), True, lambda: losses)
        loss, found = reduced(lambda: loss_of_step(self.module, batch), samples)
        factor = samples if self.reduction == "mean" else 1
        if samples == 1:
            if self.terms and not bool(torch.isfinite(loss)):  # perhaps nothing has a label that counts
                loss = self._own(batch, found)
            return Summed(loss if wanted else loss.detach(), True, label_losses=lambda: self._label_losses(found))
        if found is None or not self.terms or not found.follows(self.terms):
            return Summed(loss * factor, is_certain=False)
        total = loss * factor if found.weigh_the_same(self.terms) else found.own_losses(self.terms).sum()
        return Summed(total, True, lambda: found.own_losses(self.terms), lambda: found.label_losses(self.terms))

    def _label_losses(self, found: Reduced | None) -> Tensor | None:
        follows = found is not None and bool(self.terms) and found.follows(self.terms)
        return found.label_losses(self.terms) if found is not None and follows else None

    def _own(self, batch: Any, found: Reduced | None) -> Tensor:
        """The loss of a sample whose mean is one of nothing, 0 / 0; any other loss that is not finite stays what it is."""
        with torch.enable_grad():
            loss, seen = reduced(lambda: loss_of_step(self.module, batch), 1) if found is None else (found.loss, found)
        return loss if seen is None or not seen.follows(self.terms) else seen.own_losses(self.terms)[0]

    def __call__(self, batch: Any, samples: int) -> Tensor:
        """`summed(...).total`."""
        return self.summed(batch, samples).total


def loss_of_step(module: nn.Module, batch: Any) -> Tensor:
    """What a module's `training_step` returns for a batch, as a scalar.

    Raises:
        TracInError: it returns something else.
    """
    step: Callable[..., Any] = module.training_step  # type: ignore[assignment]
    _, *others = inspect.signature(step).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    with no_collectives():
        result = _explained(
            "training_step",
            step,
            fresh(batch),
            *(0 for other in others if other.kind in positional and other.default is inspect.Parameter.empty),
        )
    loss = result.get("loss") if isinstance(result, dict) else result
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(result).__name__
        raise TracInError(
            f"`training_step` should return a scalar loss (or a dict with 'loss'), but returned {got}. {remedy_for(module)}"
        )
    return loss.reshape(())


def _explained(name: str, function: Any, *args: Any) -> Any:
    """Call a function of the module; errors of torch's that have a reason of ours name it.

    Raises:
        TracInError: the function computes gradients, or needs more than one sample.
    """
    try:
        return function(*args)
    except TracInError:
        raise
    except (RuntimeError, ValueError) as error:
        reason = reason_of_error(error)
        if reason is None:
            raise
        raise TracInError(f"`{name}` cannot be evaluated on single samples ({error}). The reason: {reason}") from error
