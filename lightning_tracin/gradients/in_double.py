"""Everything in float64 for a moment, to tell rounding from a term that depends on the batch.

A float32 model gives a sample a slightly different loss in a batch and alone, because sums are taken in another order. In
float64 that difference all but vanishes; what is left is real. Models in float64 may still compute some steps in float32 (norms
and rotary embeddings of transformers do); here these steps are float64, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_LESS_PRECISE = (torch.float32, torch.float16, torch.bfloat16)

_CASTS = (Tensor.float, Tensor.half, Tensor.bfloat16)


class _InDouble(TorchFunctionMode):
    """Calls every torch function with float64 where the caller has a less precise type."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func in _CASTS:
            return args[0].double()
        if name in ("__get__", "__set__"):
            return func(*args, **kwargs)
        changes_its_input = (name.endswith("_") and not name.endswith("__")) or name.startswith(("__i", "__set"))
        if changes_its_input or kwargs.get("out") is not None:
            return func(*(_dtypes(one) for one in args), **{key: _dtypes(one) for key, one in kwargs.items()})
        return func(*(_doubled(one) for one in args), **{key: _doubled(one) for key, one in kwargs.items()})


def _dtypes(value: Any) -> Any:
    """float64 for a less precise type; anything else as it is."""
    return torch.float64 if isinstance(value, torch.dtype) and value in _LESS_PRECISE else value


def _doubled(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(torch.float64) if value.dtype in _LESS_PRECISE else value
    if type(value) in (tuple, list):
        return type(value)(_doubled(one) for one in value)
    return _dtypes(value)


def can_double(model: nn.Module) -> bool:
    """Whether the model is in float32 or float64, on a device that has float64.

    Example:
        >>> can_double(nn.Linear(1, 1)), can_double(nn.Linear(1, 1).bfloat16())
        (True, False)
    """
    floating = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    return all(one.dtype in (torch.float32, torch.float64) and one.device.type != "mps" for one in floating)


@contextmanager
def in_double(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes in float64; afterwards it has its parameters and buffers back, bit by bit.

    Args:
        model: in float32 or float64, see `can_double`. Its parameters stay the same objects.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> with in_double(model):
        ...     model(torch.ones(3, 2)).dtype, torch.ones(1).float().dtype
        (torch.float64, torch.float64)
        >>> model.weight.dtype
        torch.float32
    """
    kept = [(one, one.dtype) for one in model.parameters() if one.dtype in _LESS_PRECISE]
    buffers = [(one, one.data.clone()) for one in model.buffers()]
    default = torch.get_default_dtype()
    try:
        for tensor in (*(one for one, _ in kept), *(one for one, _ in buffers)):
            tensor.data = _doubled(tensor.data)
        torch.set_default_dtype(torch.float64)
        with _InDouble():
            yield
    finally:
        torch.set_default_dtype(default)
        for parameter, dtype in kept:
            parameter.data = parameter.data.to(dtype)
        for buffer, values in buffers:
            buffer.data = values
