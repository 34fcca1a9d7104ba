"""A collate function with a state of its own: what a fit's loader counts, caches or draws is not advanced by attribution."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_tracin.errors import TracInError

Collate = Callable[[list[Any]], Any]


def own_collate(collate: Collate) -> Collate:
    """A copy of a collate function that shares its models, datasets and loaders with the original, and nothing else.

    A plain function has no state of its own to copy; the generators that it draws from are restored by the caller.

    Raises:
        TracInError: it cannot be copied.

    Example:
        >>> class Counting:
        ...     calls = 0
        ...     def __call__(self, samples):
        ...         self.calls += 1
        ...         return samples
        >>> collate = Counting()
        >>> own_collate(collate)([1, 2]), collate.calls
        ([1, 2], 0)
    """
    try:
        return copy.deepcopy(collate, _shared(collate))
    except Exception as error:
        name = getattr(collate, "__qualname__", type(collate).__name__)
        raise TracInError(
            f"The collate function {name} cannot be copied ({error}), but influence is computed with a copy: the fit is not "
            "affected; keep objects that cannot be copied (locks, open files, processes) out of it."
        ) from error


def _shared(collate: Collate) -> dict[int, Any]:
    """The memo of the deep copy: what is reached over attributes and shared."""
    memo: dict[int, Any] = {}
    waiting, seen = [getattr(collate, "__self__", collate)], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            memo |= {id(tensor): tensor for tensor in (*value.parameters(), *value.buffers())}
        if isinstance(value, Dataset | DataLoader) or any(parent.__name__ == "Trainer" for parent in type(value).__mro__):
            memo[id(value)] = value
        elif hasattr(value, "__dict__"):
            waiting += list(vars(value).values())
        elif isinstance(value, dict):
            waiting += list(value.values())
    return memo
