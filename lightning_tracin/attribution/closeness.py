"""When two ways to compute one number are taken for the same."""

from __future__ import annotations

import torch

#: Largest relative difference between two ways to compute one scalar. A larger one in float32 or float64 is looked at with
#: every step in float64, where rounding vanishes.
CLOSE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}

#: Differences below this are none: losses of samples that a model is certain of.
_TINY = 1e-9


def same(got: float, want: float, dtype: torch.dtype, scale: float = 0.0) -> bool:
    """Whether two numbers of one type differ by rounding at most."""
    return deviation(got, want, scale) <= CLOSE.get(dtype, CLOSE[torch.float32])


def deviation(got: float, want: float, scale: float = 0.0) -> float:
    """The difference of two numbers, relative to the larger of them and of a scale; 0 if it is tiny, NaN if one of them is.

    Example:
        >>> deviation(1.0, 1.5), deviation(0.0, 0.5, scale=2.0), deviation(0.0, 1e-12)
        (0.3333333333333333, 0.25, 0.0)
    """
    apart = abs(got - want)
    if apart <= _TINY:
        return 0.0
    return apart / max(abs(got), abs(want), scale)
