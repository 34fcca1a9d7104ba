"""The parameters that both sides of a comparison score."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import nn

#: From a model to the names of the parameters that are scored.
Scope: TypeAlias = Callable[[nn.Module], frozenset[str]]


def everything(model: nn.Module) -> frozenset[str]:
    """All parameters."""
    return frozenset(name for name, _ in model.named_parameters())


def linear_layers(model: nn.Module) -> frozenset[str]:
    """Weights and biases of all Linear layers."""
    return frozenset(
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, nn.Linear)
        for name, _ in module.named_parameters()
    )


def inner_linear_weights(model: nn.Module) -> frozenset[str]:
    """Weights of the Linear layers below a language model's head, without biases."""
    body = model.base_model_prefix
    assert isinstance(body, str)
    return frozenset(name for name in linear_layers(model) if name.startswith(f"{body}.") and name.endswith(".weight"))
