"""LayerNorm and RMSNorm, whose gradients are sums over positions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from lightning_tracin.gradients.forms import Dense, Form
from lightning_tracin.gradients.rules.recognition import root_mean_square_epsilon
from lightning_tracin.gradients.rules.rule import Rule, rule, rule_for


@rule(nn.LayerNorm)
def layer_norm(module: nn.Module, inputs: Tensor, gradient: Tensor, wanted: frozenset[str]) -> dict[str, Form]:
    """``y = normalised(x) * weight + bias``, elementwise over the normalised shape."""
    assert isinstance(module, nn.LayerNorm)
    forms: dict[str, Form] = {}
    if "weight" in wanted:
        normalised = nn.functional.layer_norm(inputs, module.normalized_shape, eps=module.eps)
        forms["weight"] = _over_positions(gradient * normalised, module.normalized_shape)
    if "bias" in wanted:
        forms["bias"] = _over_positions(gradient, module.normalized_shape)
    return forms


@rule(nn.RMSNorm)
def rms_norm(module: nn.Module, inputs: Tensor, gradient: Tensor, wanted: frozenset[str]) -> dict[str, Form]:
    """``y = x / rms(x) * weight`` (Zhang and Sennrich 2019), elementwise over the normalised shape."""
    assert isinstance(module, nn.RMSNorm)
    if "weight" not in wanted:
        return {}
    normalised = nn.functional.rms_norm(inputs, module.normalized_shape, eps=module.eps)
    return {"weight": _over_positions(gradient * normalised, module.normalized_shape)}


@rule_for("RMSNorm")
def recognised_rms_norm(module: nn.Module) -> Rule | None:
    """The rule of any layer that computes RMSNorm over its last dimension, whatever its type is called."""
    epsilon = root_mean_square_epsilon(module)
    return None if epsilon is None else partial(root_mean_square, epsilon)


def root_mean_square(
    epsilon: float, _module: nn.Module, inputs: Tensor, gradient: Tensor, wanted: frozenset[str]
) -> dict[str, Form]:
    """``y = x / sqrt(mean(x^2) + epsilon) * s`` with s = weight or 1 + weight, whose derivative is the same."""
    if "weight" not in wanted:
        return {}
    wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    normalised = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return {"weight": _over_positions(gradient * normalised, gradient.shape[-1:])}


def _over_positions(products: Tensor, shape: Sequence[int]) -> Dense:
    """Sum over all dimensions between the samples and the normalised shape."""
    return Dense(products.reshape(len(products), -1, *shape).sum(1).flatten(1))
