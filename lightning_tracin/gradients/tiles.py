"""Gradients written out tile by tile: a tile stays in cache until it is multiplied, which saves a trip to memory and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from torch import Tensor

from lightning_tracin.gradients.forms import Dense, Outer, samples_of, shape_of, tensor_of, write_out

#: Gradients of consecutive samples: index of the first sample, and the form.
Tileable: TypeAlias = tuple[int, Dense | Outer]


def span(pieces: Sequence[Tileable]) -> slice:
    """The range from the first to the last sample that has a piece.

    Example:
        >>> import torch
        >>> span([(2, Dense(torch.ones(3, 1))), (7, Dense(torch.ones(1, 1)))])
        slice(2, 8, None)
    """
    at, form = pieces[-1]
    return slice(pieces[0][0], at + samples_of(form))


def step_of(pieces: Sequence[Tileable], samples: int, most: int) -> int:
    """Elements of each sample in a tile: whole rows of the parameter, about `most` elements over all `samples`."""
    columns = max(shape_of(form)[1] for _, form in pieces)
    return max(1, most // (samples * columns)) * columns


def tiles(pieces: Sequence[Tileable], step: int, scale: Tensor | None = None) -> Iterator[Tensor]:
    """Yield the gradients, `step` elements of each sample at a time: [samples of the span, elements of the tile].

    All tiles share the same memory. Samples without a piece are zero.

    Args:
        pieces: the gradients, in order of the samples and all in the same order of elements.
        step: elements of each sample in a tile, as from `step_of`.
        scale: factor of each element: [elements].

    Example:
        >>> import torch
        >>> [tile.tolist() for tile in tiles([(0, Dense(torch.tensor([[1.0, 2.0, 3.0]])))], step=2)]
        [[[1.0, 2.0]], [[3.0]]]
    """
    samples = span(pieces)
    first, number = samples.start, samples.stop - samples.start
    form = pieces[0][1]
    count = shape_of(form)[0] * shape_of(form)[1]
    memory = tensor_of((form,)).new_zeros(number * min(step, count))
    tile = memory.view(number, -1)
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        if part.stop - part.start != tile.shape[1]:
            tile = memory[: number * (part.stop - part.start)].zero_().view(number, -1)
        for at, piece in pieces:
            written = tile[at - first : at - first + samples_of(piece)]
            write_out(piece, part, written)
            if scale is not None:  # while it is in the innermost cache
                written *= scale[part]
        yield tile
