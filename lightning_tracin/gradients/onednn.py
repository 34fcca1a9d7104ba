"""Long matrix products on the CPU by oneDNN.

Torch multiplies matrices in single precision by MKL. For few but long lines, the shape of a block of gradients times the probes'
gradients, oneDNN's kernels can be a third faster. Torch calls them only from compiled code, by an operator that need not
exist in every build.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

#: Products of shorter lines, or of fewer of them, are as fast by MKL.
_LENGTH, LINES = 4096, 32


def suits_onednn(left: Tensor, right: Tensor) -> bool:
    """Whether oneDNN multiplies these matrices faster: long ones in single precision, on a CPU for which it is built.

    Example:
        >>> suits_onednn(torch.ones(2, 3), torch.ones(3, 2))
        False
    """
    is_long = left.shape[1] >= _LENGTH and min(left.shape[0], right.shape[1]) >= LINES
    return is_long and left.device.type == "cpu" and left.dtype == right.dtype == torch.float32 and _linear() is not None


def onednn_product(left: Tensor, right: Tensor) -> Tensor:
    """The product of two matrices that suit oneDNN: [lines of left, columns of right].

    It is fast for lines that are contiguous in `left` and in the transpose of `right`; others are copied, which takes far less
    time than a product of strided lines.

    Example:
        >>> left, right = torch.ones(32, 5000), torch.ones(5000, 32)
        >>> (onednn_product(left, right) if suits_onednn(left, right) else left @ right)[0, 0].item()
        5000.0
    """
    linear = _linear()
    assert linear is not None
    product: Tensor = linear(left.contiguous(), right.T.contiguous(), None, "none", [], "")
    return product


@cache
def _linear() -> Callable[..., Any] | None:
    """``x W'`` by oneDNN; None if this build of torch lacks it, or it does something else."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    try:
        operator: Callable[..., Any] = torch.ops.mkldnn._linear_pointwise.default
        one, other = torch.arange(6.0).view(2, 3), torch.ones(1, 3)
        return operator if torch.equal(operator(one, other, None, "none", [], ""), one @ other.T) else None
    except (AttributeError, RuntimeError, TypeError):
        return None
