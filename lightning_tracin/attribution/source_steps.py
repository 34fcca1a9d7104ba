"""Makes one linear step with a source's vectors: its moment follows, and its part of the update is added to its total."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from lightning_tracin.attribution.update_rules import LinearStep
from lightning_tracin.gradients.group_vectors import MOMENT, PENDING, TOTAL, GroupVectors, TouchedRows

#: Elements of a parameter that are compared.
_ELEMENTS = 16


@dataclass
class SkippedSteps:
    """What steps that were not split do to the moments, until it is applied: a factor, and a sum of scales."""

    kept: float = 1.0
    scale: Tensor | float = 0.0
    is_compact: bool = False

    def add(self, scale: Tensor | float, factor: float, is_compact: bool, touched: TouchedRows | None) -> None:
        """Add a step's scale times a factor.

        Args:
            scale: a number, or a tensor of the parameter's shape or of its touched rows.
            factor: of the scale.
            is_compact: whether it has the touched rows only.
            touched: the rows of a table that any group has touched.
        """
        if not isinstance(scale, Tensor):
            self.scale = self.scale + scale * factor
        elif not isinstance(self.scale, Tensor):
            self.scale, self.is_compact = scale * factor + self.scale, is_compact
        elif is_compact and not self.is_compact and touched is not None:
            self.scale.index_add_(0, touched.rows, scale, alpha=factor)
        else:
            if self.is_compact and not is_compact and touched is not None:
                scale = scale[touched.rows]
            known = self.scale_for(touched)
            assert isinstance(known, Tensor)
            self.scale = known.add_(scale, alpha=factor)

    def scale_for(self, touched: TouchedRows | None) -> Tensor | float:
        """The scale, with zeros for the rows of a table that have been touched since."""
        if not self.is_compact or touched is None or not isinstance(self.scale, Tensor):
            return self.scale
        grown = len(touched.rows) - len(self.scale)
        return torch.cat([self.scale, self.scale.new_zeros(grown, *self.scale.shape[1:])]) if grown else self.scale


class SomeElements(NamedTuple):
    """A few elements of a parameter just before a step, in float64."""

    weights: Tensor
    gradient: Tensor
    moment: Tensor

    def stepped(self, step: LinearStep) -> Tensor:
        """How a step changes them."""
        gradient = step.sign * self.gradient + step.coupled * self.weights
        moment = step.keep * self.moment + some_of(step.gain) * gradient
        update = some_of(step.scale) * (step.of_moment * moment + step.of_gradient * gradient)
        return -update - step.decoupled * self.weights


def make_step(vectors: GroupVectors, step: LinearStep, count: float, is_compact: bool) -> None:
    """Add one source's part of a step to its total; the gradient since the last step is used up."""
    gradient = vectors.get(PENDING)
    if step.has_moment:
        moment = vectors.get(MOMENT)
        if moment is not None and gradient is not None and _is_mean(step, count):
            moment.lerp_(gradient, 1 - step.keep)  # one pass over memory instead of two
        else:
            if moment is not None:
                moment.mul_(step.keep)
            if gradient is not None:
                add_scaled(vectors, MOMENT, step.gain, gradient, count, is_compact)
        if MOMENT in vectors:
            add_scaled(vectors, TOTAL, step.scale, vectors[MOMENT], -step.of_moment, is_compact)
    if step.of_gradient and gradient is not None:
        add_scaled(vectors, TOTAL, step.scale, gradient, -step.of_gradient * count, is_compact)
    vectors.drop(PENDING)


def _is_mean(step: LinearStep, count: float) -> bool:
    """Whether the moment is a running mean of gradients, as in Adam."""
    return not isinstance(step.gain, Tensor) and step.gain * count == 1 - step.keep


def add_scaled(vectors: GroupVectors, name: str, scale: Tensor | float, values: Tensor, factor: float, is_compact: bool) -> None:
    """Add values times a scale, which is a number or a tensor (see `GroupVectors.pick`), to a vector."""
    if isinstance(scale, Tensor):
        vectors[name].addcmul_(vectors.pick(scale, is_compact).to(values.device, values.dtype), values, value=factor)
    else:
        vectors[name].add_(values, alpha=scale * factor)


def has_rows(value: Any, parameter: Tensor) -> bool:
    """Whether a value has a number for each element of a parameter.

    Example:
        >>> has_rows(torch.ones(3, 2), torch.zeros(3, 2)), has_rows(1.0, torch.zeros(3, 2))
        (True, False)
    """
    return isinstance(value, Tensor) and value.shape == parameter.shape


@overload
def some_of(values: Tensor) -> Tensor: ...
@overload
def some_of(values: Tensor | float) -> Tensor | float: ...
def some_of(values: Tensor | float) -> Tensor | float:
    """A few elements of a tensor, evenly spaced, in float64; a number as it is."""
    if not isinstance(values, Tensor):
        return values
    flat = (values.detach().to_dense() if values.is_sparse else values.detach()).reshape(-1)
    return flat[:: max(1, flat.numel() // _ELEMENTS)].to(torch.float64, copy=True)
