"""One loss at a time, by a plain `backward`: what captured gradients are compared with.

Nothing here knows of hooks, rules or forms, so it is right or wrong for reasons of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from lightning_tracin.gradients.freezing import uncompiled

#: Largest relative difference that rounding may explain, by the least precise type in use. Models in float64 still take some
#: steps in float32 (transformers' norms do).
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}


def rounding(dtype: torch.dtype) -> float:
    """The largest difference, relative to a gradient's norm, that rounding may explain.

    Args:
        dtype: the least precise type in use.
    """
    return _ROUNDING[dtype]


def plain_gradient(model: nn.Module, names: Collection[str], loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    """The gradient of one loss with respect to the named parameters; zero where the loss does not depend on one.

    By a whole `backward`: reentrant checkpointing cannot be asked for single gradients. `requires_grad` and `grad` of the
    model's parameters are afterwards as before.

    Args:
        model: the model.
        names: parameters as in `model.named_parameters()`.
        loss: does the forward pass and returns a scalar.
    """
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    chosen = {name: parameter for name, parameter in model.named_parameters() if name in names}
    identities = {id(parameter) for parameter in chosen.values()}
    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(id(parameter) in identities)
            parameter.grad = None
        with uncompiled(model), torch.enable_grad():
            value = loss()
            if value.requires_grad:
                value.backward()  # type: ignore[no-untyped-call]
        return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in chosen.items()}
    finally:
        for parameter, required, gradient in before:
            parameter.requires_grad_(required)
            parameter.grad = gradient
