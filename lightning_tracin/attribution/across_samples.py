"""Whether a forward pass counts, sorts or selects across the samples of a batch, seen while it runs.

Experts with a limited capacity drop the tokens that come after it is used up, so what else is in the batch decides about a
sample. Nothing in the gradients tells, and a batch that uses no capacity up looks as if there was none. But places are given out
by operations on all samples at once: running counts, sorting, selecting by a mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

#: Functions that order or count along one dimension: name -> position of the dimension among the arguments, and its default.
_ALONG: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp"), (1, 0)),
    **dict.fromkeys(("sort", "argsort"), (1, -1)),
    **dict.fromkeys(("topk", "kthvalue"), (2, -1)),
    "msort": (1, 0),
}

#: Functions of all elements.
_OF_ALL = {"nonzero", "argwhere", "bincount", "histc", "unique", "unique_consecutive", "masked_select"}

_LOOKED_AT = frozenset({*_ALONG, *_OF_ALL, "__getitem__", "where"})


class AcrossSamples(TorchFunctionMode):
    """Sees operations that count, sort or select along the first dimension.

    Attributes:
        is_seen: whether there was one.

    Example:
        >>> with AcrossSamples() as of_rows:  # the place of each of 2 samples' 3 tokens, sample by sample
        ...     _ = torch.ones(2, 3).cumsum(1)
        >>> with AcrossSamples() as of_all:
        ...     _ = torch.ones(2, 3).flatten().cumsum(0)
        >>> of_rows.is_seen, of_all.is_seen
        (False, True)
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_seen = False

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Call the function, and look at its arguments."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _LOOKED_AT and not self.is_seen and args:  # the name first: this runs for every function
            self.is_seen = _is_across(name, args, kwargs)
        return func(*args, **kwargs)


def _is_across(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    first = args[0]
    if not isinstance(first, Tensor) or first.dim() == 0 or len(first) < 2:
        return False
    if name in _ALONG:
        position, default = _ALONG[name]
        dim = kwargs.get("dim", args[position] if len(args) > position else default)
        return isinstance(dim, int) and dim % first.dim() == 0
    if name == "__getitem__":
        index = args[1][0] if isinstance(args[1], tuple) and args[1] else args[1]
        return isinstance(index, Tensor) and index.dtype == torch.bool
    return name in _OF_ALL or (name == "where" and len(args) + len(kwargs) == 1)
