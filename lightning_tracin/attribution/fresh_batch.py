"""A batch of its own for every evaluation: a step may pop its labels, or write into its tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping
from typing import Any

from torch import Tensor

#: Never changed in place, so they are shared.
_CONSTANT = (str, bytes, int, float, complex, bool, type(None))


def fresh(batch: Any) -> Any:
    """A copy of a batch that a step may change: containers are copied, tensors cloned, everything else copied by its attributes.

    Args:
        batch: what a collate function made: tensors in dicts, lists, tuples, data classes or objects, nested in any way.

    Example:
        >>> import torch
        >>> batch = {"ids": torch.tensor([1, 2]), "more": {"labels": [3, 4]}}
        >>> _ = fresh(batch)["more"].pop("labels"), fresh(batch)["ids"].zero_()
        >>> batch
        {'ids': tensor([1, 2]), 'more': {'labels': [3, 4]}}
    """
    if isinstance(batch, _CONSTANT):
        return batch
    if isinstance(batch, Tensor):
        return batch.clone()
    if isinstance(batch, tuple):
        values = [fresh(value) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    if isinstance(batch, list):
        renewed = copy.copy(batch)
        renewed[:] = [fresh(value) for value in batch]
        return renewed
    if isinstance(batch, Mapping):
        return _fresh_mapping(batch)
    duplicate = copy.copy(batch)
    for name, value in getattr(duplicate, "__dict__", {}).items():
        duplicate.__dict__[name] = fresh(value)
    return duplicate


def _fresh_mapping(batch: Mapping[Any, Any]) -> Mapping[Any, Any]:
    duplicate = copy.copy(batch)
    if isinstance(duplicate, MutableMapping):
        for key, value in batch.items():
            duplicate[key] = fresh(value)
    return duplicate
