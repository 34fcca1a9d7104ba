"""The gradient of one loss by a plain `backward`, as a reference for captured gradients.

It uses no hooks, rules or forms, so it does not share their errors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from lightning_tracin.gradients.freezing import uncompiled
from lightning_tracin.gradients.sparse import sparse_tables

#: Largest relative difference that may be rounding, by the least precise data type in use. Models in float64 may still compute
#: some steps in float32 (transformers' norms do).
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}


def rounding(dtype: torch.dtype) -> float:
    """The largest difference, relative to a gradient's norm, that may be rounding.

    Args:
        dtype: the least precise data type in use.

    Example:
        >>> rounding(torch.float32)
        0.001
    """
    return _ROUNDING[dtype]


def plain_gradient(model: nn.Module, names: Collection[str], loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    """The gradient of one loss with respect to the named parameters; zero for parameters that the loss does not depend on.

    It runs a whole `backward`, because reentrant checkpointing does not support `torch.autograd.grad`. The parameters'
    `requires_grad` and `grad` are restored afterwards. The gradient of a table that is only looked up is a sparse tensor: of
    250,000 rows, few are not zero.

    Args:
        model: the model.
        names: parameters, named as in `model.named_parameters()`.
        loss: does the forward pass and returns a scalar.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> plain_gradient(model, ["weight"], lambda: model(torch.tensor([3.0, 4.0])).sum())
        {'weight': tensor([[3., 4.]])}
    """
    try:
        with sparse_tables(model):
            found = value_and_gradient(model, names, loss)[1]
    except RuntimeError as error:  # a table that is changed before it is looked up, such as a transposed one
        if "sparse" not in str(error).lower():
            raise
        found = value_and_gradient(model, names, loss)[1]
    return {name: gradient.coalesce() if gradient.is_sparse else gradient for name, gradient in found.items()}


def value_and_gradient(model: nn.Module, names: Collection[str], loss: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The value of one loss, detached, and its `plain_gradient`."""
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
        return value.detach(), {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in chosen.items()}
    finally:
        for parameter, required, gradient in before:
            parameter.requires_grad_(required)
            parameter.grad = gradient
