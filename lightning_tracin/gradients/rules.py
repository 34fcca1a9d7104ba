"""One rule per layer type: from a layer's input and the gradient of its output to its parameters' per-sample gradients.

A rule is a function ``(module, input, output_gradient, wanted) -> {parameter: form}`` declared with `@rule(LayerType)`.
It applies to a module only where the module's `forward` *is* that layer type's `forward`: a subclass that computes
something else must not inherit a formula that is wrong for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from lightning_tracin.gradients.forms import Dense, Form, Outer, coalesced

#: (module, input [samples, ...], gradient of the output [samples, ...], names wanted) -> a form for each name wanted.
Rule: TypeAlias = Callable[[nn.Module, Tensor, Tensor, frozenset[str]], dict[str, Form]]
_SomeRule = TypeVar("_SomeRule", bound=Rule)

#: The names of the parameters that rules know; a layer with another one has no rule.
RULED = frozenset({"weight", "bias"})

_RULES: dict[type[nn.Module], Rule] = {}


def rule(layer: type[nn.Module]) -> Callable[[_SomeRule], _SomeRule]:
    """Declare the decorated function as the rule of a layer type."""

    def declare(function: _SomeRule) -> _SomeRule:
        _RULES[layer] = function
        return function

    return declare


def find_rule(module: nn.Module) -> Rule | None:
    """The rule that is right for this module, or None."""
    for layer, function in _RULES.items():
        if isinstance(module, layer) and type(module).forward is layer.forward:
            return function
    return None


def describe_rules() -> str:
    """The layer types that have a rule, for messages."""
    return ", ".join(sorted(layer.__name__ for layer in _RULES))


def _live(inputs: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Flattened to [samples, positions, width], without the positions whose gradient is zero in the whole batch.

    The top layer of a classifier that reads one position is such a case: all its other positions drop out.
    """
    samples = gradient.shape[0]
    inputs = inputs.reshape(samples, -1, inputs.shape[-1])
    gradient = gradient.reshape(samples, -1, gradient.shape[-1])
    if gradient.shape[1] == 1:
        return inputs, gradient
    live = gradient[:, :, 0].ne(0).any(dim=0)  # a glance at one column, which is rarely zero by chance
    if bool(live.all()):
        return inputs, gradient
    doubtful = (~live).nonzero()[:, 0]
    live[doubtful] = gradient[:, doubtful].ne(0).any(dim=2).any(dim=0)
    return inputs[:, live], gradient[:, live]


@rule(nn.Linear)
def linear(_module: nn.Module, inputs: Tensor, gradient: Tensor, wanted: frozenset[str]) -> dict[str, Form]:
    """``y = x W' + b``: the weight's gradient is a sum of outer products, the bias's the sum of output gradients."""
    inputs, gradient = _live(inputs, gradient)
    forms: dict[str, Form] = {}
    if "weight" in wanted:
        forms["weight"] = Outer(gradient, inputs)
    if "bias" in wanted:
        forms["bias"] = Dense(gradient.sum(1))
    return forms


@rule(nn.Embedding)
def embedding(module: nn.Module, inputs: Tensor, gradient: Tensor, wanted: frozenset[str]) -> dict[str, Form]:
    """A look-up: the table's gradient is the output gradients, added up by token; `padding_idx` gets none."""
    assert isinstance(module, nn.Embedding)
    if "weight" not in wanted:
        return {}
    samples, width = gradient.shape[0], gradient.shape[-1]
    tokens = inputs.reshape(samples, -1)
    kept = torch.ones_like(tokens, dtype=torch.bool)
    if module.padding_idx is not None:
        kept = tokens != module.padding_idx
    sample = torch.arange(samples, device=tokens.device)[:, None].expand_as(tokens)
    values = gradient.reshape(samples, -1, width)[kept]
    return {"weight": coalesced(sample[kept], tokens[kept], values, samples, module.num_embeddings)}


@rule(nn.LayerNorm)
def layer_norm(module: nn.Module, inputs: Tensor, gradient: Tensor, wanted: frozenset[str]) -> dict[str, Form]:
    """``y = normalised(x) * weight + bias``, elementwise over the normalised shape."""
    assert isinstance(module, nn.LayerNorm)
    forms: dict[str, Form] = {}
    samples, elements = gradient.shape[0], module.normalized_shape
    positions = (samples, -1, *elements)
    if "weight" in wanted:
        normalised = nn.functional.layer_norm(inputs, elements, eps=module.eps)
        forms["weight"] = Dense((gradient * normalised).reshape(positions).sum(1).flatten(1))
    if "bias" in wanted:
        forms["bias"] = Dense(gradient.reshape(positions).sum(1).flatten(1))
    return forms
