"""The loss of one sample: the module's own `per_sample_loss`, or its `training_step` once verified.

The engine needs the *sum* over a batch of its samples' losses, as one differentiable number; a `SummedLoss` gives that.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from lightning_tracin.errors import TracInError

#: Largest relative difference between a batch's loss and its samples' that rounding may explain.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 5e-2}

_REMEDY = (
    "Add a method `per_sample_loss(self, batch) -> Tensor` to the LightningModule that returns one unreduced loss per sample "
    "(for example `F.cross_entropy(logits, labels, reduction='none')`)."
)


class SummedLoss(Protocol):
    """The sum of the losses of a batch's samples."""

    @property
    def name(self) -> str:
        """Which loss it is; `loss_named` finds it again."""

    def __call__(self, batch: Any, samples: int) -> Tensor:
        """Forward pass of a batch of so many samples; a scalar."""


@dataclass(frozen=True)
class Probed:
    """A real batch and its samples one by one, on which a loss is checked."""

    batch: Any
    alone: Sequence[Any]  # one collated batch of one sample for each
    kind: str  # "train samples" or "probes", for messages


@dataclass(frozen=True)
class PerSampleLoss:
    """The sum of `module.per_sample_loss(batch)`."""

    module: nn.Module

    @property
    def name(self) -> str:
        """Which loss it is."""
        return "per_sample_loss"

    def __call__(self, batch: Any, samples: int) -> Tensor:
        """Forward pass of a batch of so many samples; a scalar."""
        losses = self.module.per_sample_loss(batch)  # type: ignore[operator]
        if not isinstance(losses, Tensor) or losses.shape != (samples,):
            got = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise TracInError(
                f"`per_sample_loss` should return a tensor of shape [{samples}], one loss for each sample of the batch, but "
                f"returned {got}."
            )
        return losses.sum()


@dataclass(frozen=True)
class StepLoss:
    """`module.training_step`'s loss, rescaled to the sum over the samples."""

    module: nn.Module
    reduction: Literal["mean", "sum"]

    @property
    def name(self) -> str:
        """Which loss it is."""
        return f"training_step ({self.reduction})"

    def __call__(self, batch: Any, samples: int) -> Tensor:
        """Forward pass of a batch of so many samples; a scalar."""
        loss = _training_step(self.module, batch)
        return loss * samples if self.reduction == "mean" else loss


def find_loss(module: nn.Module, checks: Callable[[], Sequence[Probed]]) -> SummedLoss:
    """The per-sample loss of a module in evaluation mode, verified on real batches.

    Args:
        module: a LightningModule (anything with `per_sample_loss(batch)` or `training_step(batch, batch_idx)`).
        checks: gives batches of at least two samples.

    Raises:
        TracInError: the loss of a batch is not made of its samples' own losses; the message names the remedy.
    """
    if callable(getattr(module, "per_sample_loss", None)):
        own = PerSampleLoss(module)
        _check_sum(own, checks())
        return own
    if not getattr(module, "automatic_optimization", True):
        raise TracInError(f"The module optimizes manually, so its `training_step` cannot serve as the loss. {_REMEDY}")
    return StepLoss(module, _reduction(module, checks()))


def loss_named(module: nn.Module, name: str) -> SummedLoss:
    """The loss of that name, verified before on another copy of the module."""
    known: tuple[SummedLoss, ...] = (PerSampleLoss(module), StepLoss(module, "mean"), StepLoss(module, "sum"))
    for loss in known:
        if loss.name == name:
            return loss
    raise TracInError(f"There is no loss {name!r}; the losses are {', '.join(loss.name for loss in known)}.")


def _training_step(module: nn.Module, batch: Any) -> Tensor:
    step: Callable[..., Any] = module.training_step  # type: ignore[assignment]
    _, *others = inspect.signature(step).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    result = step(batch, *(0 for other in others if other.kind in positional and other.default is inspect.Parameter.empty))
    loss = result.get("loss") if isinstance(result, dict) else result
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(result).__name__
        raise TracInError(f"`training_step` should return a scalar loss (or a dict with 'loss'), but returned {got}. {_REMEDY}")
    return loss.reshape(())


def _values(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack([loss.detach() for loss in losses]).double()


def _close(got: float, want: float, dtype: torch.dtype) -> bool:
    return math.isclose(got, want, rel_tol=_TOLERANCE.get(dtype, 1e-4), abs_tol=1e-7)


@torch.no_grad()
def _check_sum(loss: SummedLoss, checks: Sequence[Probed]) -> None:
    for check in checks:
        together = loss(check.batch, len(check.alone))
        alone = float(_values([loss(one, 1) for one in check.alone]).sum())
        if math.isfinite(alone) and not _close(float(together), alone, together.dtype):
            raise TracInError(
                f"`per_sample_loss` gives {float(together):.6g} in sum for a batch of {len(check.alone)} {check.kind}, but "
                f"{alone:.6g} for the same samples taken alone: a sample's loss depends on its batch, or on padding."
            )


@torch.no_grad()
def _reduction(module: nn.Module, checks: Sequence[Probed]) -> Literal["mean", "sum"]:
    """Which of mean or sum over samples `training_step`'s loss is on every check."""
    possible: set[Literal["mean", "sum"]] = {"mean", "sum"}
    for check in checks:
        together = _training_step(module, check.batch)
        alone = _values([_training_step(module, one) for one in check.alone])
        if not bool(torch.isfinite(alone).all()):
            continue  # reported with the sample's name where the pass meets it
        mean, total = float(alone.mean()), float(alone.sum())
        here: set[Literal["mean", "sum"]] = set()
        if _close(float(together), mean, together.dtype):
            here.add("mean")
        if _close(float(together), total, together.dtype):
            here.add("sum")
        if not here & possible:
            raise TracInError(
                f"`training_step`'s loss is neither the mean nor the sum of its samples' losses: for a batch of "
                f"{len(alone)} {check.kind} it is {float(together):.6g}, while the samples taken alone have the mean {mean:.6g} "
                f"and the sum {total:.6g}. {_REMEDY}"
            )
        possible &= here
    if len(possible) != 1:
        raise TracInError(
            "Whether `training_step`'s loss is a mean or a sum over samples cannot be told from the data (all losses are zero, "
            f"not finite, or there is a single sample). {_REMEDY}"
        )
    return possible.pop()
