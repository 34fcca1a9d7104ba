"""A snapshot's ingredients in memory: whole, or by shards of train samples if the whole is too large.

To add up scores over several snapshots, `side_by_side` reads the shards of the first snapshot in order and looks up the same
train samples in the others, which may be cut into different shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Ingredients:
    """Inner products and norms, by parameter group (or by part, or by layer)."""

    dot: FloatArray  # [groups, train, probes]
    train_norm: FloatArray  # [groups, train]
    probe_norm: FloatArray  # [groups, probes]


class Shards(Protocol):
    """Ingredients of one snapshot, shard by shard."""

    @property
    def train(self) -> Sequence[Indices]:
        """The train samples of each shard; each sample of the run is in exactly one shard."""

    @property
    def nbytes(self) -> int:
        """Bytes held between reads."""

    def read(self, shard: int) -> Ingredients:
        """The ingredients of a shard's train samples, in the order of `train`, with all probes.

        Raises:
            TracInError: the shard is missing or damaged.
        """


@dataclass(frozen=True)
class OneShard:
    """Ingredients in memory, as one shard in the order of the train samples."""

    whole: Ingredients

    @property
    def train(self) -> Sequence[Indices]:
        """All train samples."""
        return (np.arange(self.whole.dot.shape[1]),)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.whole.dot.nbytes

    def read(self, shard: int) -> Ingredients:
        """All ingredients."""
        del shard
        return self.whole


def side_by_side(snapshots: Sequence[Shards]) -> Iterator[tuple[Indices, list[Ingredients]]]:
    """Yield train samples, by the shards of the first snapshot, with their ingredients at each snapshot.

    One shard of each snapshot is in memory, plus eight bytes for each train sample and snapshot.

    Raises:
        TracInError: a shard is missing or damaged.

    Example:
        >>> one = OneShard(Ingredients(dot=np.ones((1, 2, 1)), train_norm=np.ones((1, 2)), probe_norm=np.ones((1, 1))))
        >>> [(train.tolist(), [found.dot.shape for found in each]) for train, each in side_by_side([one, one])]
        [([0, 1], [(1, 2, 1), (1, 2, 1)])]
    """
    first, *others = snapshots
    lookups = [_Lookup(shards) for shards in others]
    for shard, train in enumerate(first.train):
        yield train, [first.read(shard), *(lookup.of(train) for lookup in lookups)]


class _Lookup:
    """Finds train samples in the shards of a snapshot; caches the last shard."""

    def __init__(self, shards: Shards) -> None:
        self._shards, self._last = shards, -1
        count = sum(map(len, shards.train))
        self._shard, self._row = np.zeros(count, np.int32), np.zeros(count, np.int32)
        for number, train in enumerate(shards.train):
            self._shard[train], self._row[train] = number, np.arange(len(train))

    def of(self, train: Indices) -> Ingredients:
        """The ingredients of these train samples, in their order."""
        wanted, rows = self._shard[train], self._row[train]
        needed = np.unique(wanted)
        if len(needed) == 1 and np.array_equal(train, self._shards.train[int(needed[0])]):
            return self._read(int(needed[0]))
        piece = self._read(int(needed[0]))
        groups, _, probes = piece.dot.shape
        dot, norm = np.empty((groups, len(train), probes), np.float32), np.empty((groups, len(train)), np.float32)
        found = Ingredients(dot, norm, piece.probe_norm)
        for shard in needed:
            piece, at = self._read(int(shard)), np.flatnonzero(wanted == shard)
            found.dot[:, at], found.train_norm[:, at] = piece.dot[:, rows[at]], piece.train_norm[:, rows[at]]
        return found

    def _read(self, shard: int) -> Ingredients:
        if shard != self._last:
            self._held, self._last = self._shards.read(shard), shard
        return self._held


def are_indices(values: npt.NDArray[np.generic], bound: int) -> bool:
    """Whether the values are distinct numbers from 0 up to the bound.

    Example:
        >>> are_indices(np.array([2, 0]), 3), are_indices(np.array([2, 2]), 3), are_indices(np.array([2, 3]), 3)
        (True, False, False)
    """
    if values.ndim != 1 or values.dtype != np.int64:
        return False
    numbers = np.sort(values.astype(np.int64, copy=False))  # several times as fast as `np.unique`
    inside = not len(numbers) or (numbers[0] >= 0 and numbers[-1] < bound)
    return bool(inside and (numbers[1:] != numbers[:-1]).all())
