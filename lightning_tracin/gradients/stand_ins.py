"""Parameters without a rule, replaced in their modules by tensors with a copy for each sample behind them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_tracin.gradients.coverage import Layer
from lightning_tracin.gradients.layouts import Decisions
from lightning_tracin.gradients.shared import SharedTensor, Use


@dataclass(frozen=True)
class StandIn:
    """What a module sees in place of one of its parameters.

    Args:
        module: the module.
        own_name: of the parameter in the module.
        name: of the parameter in the whole model.
        parameter: the parameter itself.
        lines: [samples, *parameter.shape]; their gradient is the samples' gradients.
        tensor: what the module computes with; its values are the parameter's.
    """

    module: nn.Module
    own_name: str
    name: str
    parameter: nn.Parameter
    lines: Tensor
    tensor: Tensor

    def taken_gradient(self) -> Tensor | None:
        """The samples' gradients, [samples, *shape], which are forgotten here; None where the loss does not depend on it."""
        gradient, self.lines.grad = self.lines.grad, None
        return gradient


def stand_in_for(layer: Layer, own_name: str, samples: int, decisions: Decisions, used: Use) -> StandIn:
    """The stand-in for one parameter of a layer.

    Args:
        layer: the layer.
        own_name: of the parameter in its module.
        samples: number of samples in the batch.
        decisions: where the parameter has met samples before.
        used: called where the parameter is a table to look up in or the matrix of a linear map.
    """
    parameter = layer.module._parameters[own_name]
    assert parameter is not None
    lines = parameter.detach().expand(samples, *parameter.shape).requires_grad_()
    tensor = lines[0] if samples == 1 else SharedTensor.of(lines, layer.name, decisions, f".{own_name}", used)
    return StandIn(layer.module, own_name, layer.names[own_name], parameter, lines, tensor)


@contextmanager
def in_place(stand_ins: Sequence[StandIn]) -> Iterator[None]:
    """The modules compute with the stand-ins inside, and with their parameters again afterwards."""
    try:
        _put(stand_ins, True)
        yield
    finally:
        _put(stand_ins, False)


@contextmanager
def set_aside(stand_ins: Sequence[StandIn]) -> Iterator[None]:
    """Inside `in_place`: the modules compute with their parameters for a while."""
    try:
        _put(stand_ins, False)
        yield
    finally:
        _put(stand_ins, True)


def _put(stand_ins: Sequence[StandIn], there: bool) -> None:
    for one in stand_ins:  # not by setattr: a module takes nothing but a parameter under a parameter's name
        one.module._parameters[one.own_name] = one.tensor if there else one.parameter  # type: ignore[assignment]
