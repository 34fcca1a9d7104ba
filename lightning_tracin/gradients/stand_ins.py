"""Stand-ins for parameters without a rule: tensors that hold a copy of the parameter for each sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from lightning_tracin.gradients.coverage import Coverage, Layer
from lightning_tracin.gradients.layouts import Decisions
from lightning_tracin.gradients.shared import SharedTensor, Use


@dataclass(frozen=True)
class StandIn:
    """A tensor that a module uses in place of one of its parameters.

    Args:
        module: the module.
        own_name: name of the parameter in the module.
        name: name of the parameter in the whole model.
        layer: name of the layer in the whole model.
        parameter: the parameter itself.
        lines: [samples, *parameter.shape]; its gradient is the per-sample gradient.
        tensor: what the module computes with; its values are the parameter's.
    """

    module: nn.Module
    own_name: str
    name: str
    layer: str
    parameter: nn.Parameter
    lines: Tensor
    tensor: Tensor


def stand_ins_for(coverage: Coverage, samples: int, used: Callable[..., Tensor]) -> list[StandIn]:
    """Make a stand-in for each parameter without a rule, except those whose module is run again.

    Args:
        coverage: the scored parameters.
        samples: number of samples in the batch.
        used: called with the layer, the name and the arguments of `Use`, where a parameter is used as a table or as
            the matrix of a linear map.
    """
    return [
        _stand_in_for(layer, own_name, samples, coverage.decisions, partial(used, layer, name))
        for layer in coverage.batched
        if not coverage.uses_rule(layer) and layer.name not in coverage.decisions.replayed
        for own_name, name in layer.names.items()
    ]


def _stand_in_for(layer: Layer, own_name: str, samples: int, decisions: Decisions, used: Use) -> StandIn:
    parameter = layer.module.get_parameter(own_name)
    lines = parameter.detach().expand(samples, *parameter.shape).requires_grad_()
    tensor = lines[0] if samples == 1 else SharedTensor.of(lines, layer.name, decisions, f".{own_name}", used)
    return StandIn(layer.module, own_name, layer.names[own_name], layer.name, parameter, lines, tensor)


def insert(stand_ins: Sequence[StandIn]) -> None:
    """Make the modules compute with the stand-ins."""
    for one in stand_ins:  # setattr would refuse: a module accepts only a parameter under a parameter's name
        one.module._parameters[one.own_name] = one.tensor  # type: ignore[assignment]


def remove(stand_ins: Sequence[StandIn]) -> None:
    """Make the modules compute with their own parameters again."""
    for one in stand_ins:
        one.module._parameters[one.own_name] = one.parameter
