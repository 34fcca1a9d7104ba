"""How many samples a batch holds, where its loader has no fixed batch size.

Which dimension of which tensor counts samples is learnt from the collate function: it is the one whose size equals the number of
samples for every number that is tried. A guess from a batch alone takes the first dimension of the first tensor, whatever it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_tracin.attribution.samples import SampleSet

#: Keys and indices to a tensor or list inside a batch, and the dimension that counts samples.
Counter = tuple[tuple[Any, ...], int]

#: Numbers of samples that are collated; others than a constant dimension is likely to have.
_TRIED = (7, 2, 3, 5)


def counters_of(samples: SampleSet) -> tuple[Counter, ...]:
    """The dimensions that count a batch's samples, those that come first in a tensor first; empty if there are none.

    Args:
        samples: the train samples; up to seven of their first ones are collated.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from lightning_tracin.attribution.samples import from_loader
        >>> from lightning_tracin.config import SampleColumns
        >>> rows = [{"language": "de", "x": [1.0, 2.0]}, {"language": "sw", "x": [3.0, 4.0]}] * 4
        >>> from torch import tensor
        >>> loader = DataLoader(rows, collate_fn=lambda rows: {"one": tensor([[0]]), "x": tensor([row["x"] for row in rows]).T})
        >>> counters_of(from_loader(loader, SampleColumns(), "train samples"))
        ((('x',), 1),)
    """
    count = sum(samples.source(index) == samples.source(0) for index in range(min(len(samples), 64)))
    common: set[Counter] | None = None
    for tried in sorted({min(one, count) for one in _TRIED}):
        sizes_of = dict(_sizes(samples.batch(range(tried))))
        found = {(path, dim) for path, sizes in sizes_of.items() for dim, size in enumerate(sizes) if size == tried}
        common = found if common is None else common & found
    return tuple(sorted(common or (), key=lambda one: (one[1], len(one[0]), str(one))))


def _sizes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Sequence[int]]]:
    """The sizes of everything in a batch that may count samples, with the way to it."""
    if isinstance(value, Tensor):
        yield path, value.shape
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _sizes(part, (*path, key))
    elif isinstance(value, list | tuple):
        yield path, (len(value),)
        for index, part in enumerate(value):
            yield from _sizes(part, (*path, index))


def samples_in(batch: Any, counters: Sequence[Counter]) -> int | None:
    """The number of samples in a batch; None if it holds nothing that counts them.

    Example:
        >>> import torch
        >>> samples_in({"x": torch.zeros(2, 5)}, [(("labels",), 0), (("x",), 1)])
        5
    """
    for path, dim in counters:
        value = batch
        try:
            for key in path:
                value = value[key]
        except (KeyError, IndexError, TypeError):
            continue  # a step may have popped it
        size = value.shape if isinstance(value, Tensor) else (len(value),)
        if dim < len(size):
            return int(size[dim])
    return None
