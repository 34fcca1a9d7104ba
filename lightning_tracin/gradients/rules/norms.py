"""Normalisations with a scale of their own."""

from __future__ import annotations

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
    samples, elements = gradient.shape[0], module.normalized_shape
    positions = (samples, -1, *elements)
    if "weight" in wanted:
        normalised = nn.functional.layer_norm(inputs, elements, eps=module.eps)
        forms["weight"] = Dense((gradient * normalised).reshape(positions).sum(1).flatten(1))
    if "bias" in wanted:
        forms["bias"] = Dense(gradient.reshape(positions).sum(1).flatten(1))
    return forms


@rule(nn.RMSNorm)
def rms_norm(module: nn.Module, inputs: Tensor, gradient: Tensor, wanted: frozenset[str]) -> dict[str, Form]:
    """``y = x / rms(x) * weight`` (Zhang and Sennrich 2019), elementwise over the normalised shape."""
    assert isinstance(module, nn.RMSNorm)
    if "weight" not in wanted:
        return {}
    normalised = nn.functional.rms_norm(inputs, module.normalized_shape, eps=module.eps)
    samples = gradient.shape[0]
    return {"weight": Dense((gradient * normalised).reshape(samples, -1, *module.normalized_shape).sum(1).flatten(1))}


@rule_for("RMSNorm")
def recognised_rms_norm(module: nn.Module) -> Rule | None:
    """The rule of a layer that computes the same over its last dimension, whatever its type is called."""
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
    return {"weight": Dense((gradient * normalised).reshape(gradient.shape[0], -1, gradient.shape[-1]).sum(1))}
