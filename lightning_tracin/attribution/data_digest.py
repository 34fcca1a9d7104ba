"""Whether samples are still what they were: a digest of some of them, fetched again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

#: Samples that a digest looks at.
_SAMPLES = 8


def digest_of(dataset: Any) -> str:
    """A digest of a dataset's length and of some of its samples, spread over it.

    Two digests of one dataset are equal unless it has grown, its samples have changed, or each fetch draws a sample anew.

    Example:
        >>> rows = [{"x": 1.0, "text": "ja"}, {"x": 2.0, "text": "nein"}]
        >>> before = digest_of(rows)
        >>> before == digest_of(list(rows)), before == digest_of(rows[:1])
        (True, False)
    """
    count = len(dataset)
    positions = sorted({round(index * (count - 1) / max(1, _SAMPLES - 1)) for index in range(min(_SAMPLES, count))})
    digest = hashlib.sha256(str(count).encode())
    for position in positions:
        for part in _parts(dataset[position]):
            digest.update(part)
    return digest.hexdigest()


def _parts(value: Any) -> Iterator[bytes]:
    """Everything that a sample holds, as bytes."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        yield from (str(value.dtype).encode(), str(tuple(value.shape)).encode(), value.flatten().float().numpy().tobytes())
    elif isinstance(value, np.ndarray):
        yield from (str(value.dtype).encode(), str(value.shape).encode(), value.tobytes())
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield str(key).encode()
            yield from _parts(part)
    elif isinstance(value, list | tuple):
        yield str(len(value)).encode()
        for part in value:
            yield from _parts(part)
    elif value is None or isinstance(value, str | int | float | bool | bytes):
        yield repr(value).encode()
    elif hasattr(value, "__dict__"):
        yield from _parts(vars(value))
