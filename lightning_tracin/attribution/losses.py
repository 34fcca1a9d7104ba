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

from lightning_tracin.errors import TracInError

#: Largest relative difference due to rounding between a batch's loss and its samples' losses.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 5e-2}

_REMEDY = (
    "Add a method `per_sample_loss(self, batch) -> Tensor` to the LightningModule that returns one unreduced loss per sample "
    "(for example `F.cross_entropy(logits, labels, reduction='none')`)."
)


class SummedLoss(Protocol):
    """The sum of the losses of a batch's samples."""

    @property
    def name(self) -> str:
        """Name of the loss, for `loss_named`."""

    def __call__(self, batch: Any, samples: int) -> Tensor:
        """Forward pass of a batch of `samples` samples: a scalar."""


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

    def __call__(self, batch: Any, samples: int) -> Tensor:
        """Forward pass of a batch of `samples` samples: a scalar."""
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
    """The loss of `module.training_step`, rescaled to the sum over samples."""

    module: nn.Module
    reduction: Literal["mean", "sum"]

    @property
    def name(self) -> str:
        """Name of the loss."""
        return f"training_step ({self.reduction})"

    def __call__(self, batch: Any, samples: int) -> Tensor:
        """Forward pass of a batch of `samples` samples: a scalar."""
        loss = _training_step(self.module, batch)
        return loss * samples if self.reduction == "mean" else loss


def find_loss(module: nn.Module, checks: Callable[[], Sequence[Probed]]) -> SummedLoss:
    """Find the per-sample loss of a module in evaluation mode, and verify it on real batches.

    Args:
        module: a LightningModule (anything with `per_sample_loss(batch)` or `training_step(batch, batch_idx)`).
        checks: returns batches of at least two samples.

    Raises:
        TracInError: a batch's loss is neither mean nor sum of its samples' own losses; the message names the remedy.

    Example:
        >>> class Module(nn.Module):
        ...     def training_step(self, batch):
        ...         return batch.square().mean()
        >>> batch = torch.tensor([1.0, 2.0, 3.0])
        >>> find_loss(Module(), lambda: [Probed(batch, batch.split(1), "train samples")]).name
        'training_step (mean)'
    """
    if callable(getattr(module, "per_sample_loss", None)):
        own = PerSampleLoss(module)
        _check_sum(own, checks())
        return own
    if not getattr(module, "automatic_optimization", True):
        raise TracInError(f"The module optimizes manually, so its `training_step` cannot serve as the loss. {_REMEDY}")
    return StepLoss(module, _reduction(module, checks()))


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
                f"The losses of `per_sample_loss` sum to {float(together):.6g} for a batch of {len(check.alone)} {check.kind}, "
                f"but to {alone:.6g} for the same samples one at a time: a sample's loss depends on its batch, or on padding."
            )


@torch.no_grad()
def _reduction(module: nn.Module, checks: Sequence[Probed]) -> Literal["mean", "sum"]:
    """Whether `training_step` returns the mean or the sum of its samples' losses, on every check."""
    possible: set[Literal["mean", "sum"]] = {"mean", "sum"}
    for check in checks:
        together = _training_step(module, check.batch)
        alone = _values([_training_step(module, one) for one in check.alone])
        if not bool(torch.isfinite(alone).all()):
            continue  # the pass reports it with the sample's name
        mean, total = float(alone.mean()), float(alone.sum())
        possible -= {"mean"} if not _close(float(together), mean, together.dtype) else set()
        possible -= {"sum"} if not _close(float(together), total, together.dtype) else set()
        if not possible:
            raise TracInError(
                f"`training_step`'s loss is neither the mean nor the sum of its samples' losses: for a batch of "
                f"{len(alone)} {check.kind} it is {float(together):.6g}, while the same samples one at a time have the mean "
                f"{mean:.6g} and the sum {total:.6g}. {_REMEDY}"
            )
    if len(possible) != 1:
        raise TracInError(
            "The data do not show whether `training_step`'s loss is a mean or a sum over samples (all losses are zero, not "
            f"finite, or there is a single sample). {_REMEDY}"
        )
    return possible.pop()
