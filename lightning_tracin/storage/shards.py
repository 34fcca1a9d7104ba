"""A snapshot's ingredients in memory: whole, or by shards of train samples where the whole is too large to be held.

Shards of several snapshots are taken side by side, so that their scores can be added up: those of the first snapshot are gone
through in order, and the same train samples are looked up in the others', however these are cut.
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
    """Products and norms by parameter group (or by part, or layer)."""

    dot: FloatArray  # [groups, train, probes]
    train_norm: FloatArray  # [groups, train]
    probe_norm: FloatArray  # [groups, probes]


class Shards(Protocol):
    """Ingredients of one snapshot, shard by shard."""

    @property
    def train(self) -> Sequence[Indices]:
        """The train samples of each shard; each sample of the run stands in one."""

    @property
    def nbytes(self) -> int:
        """Bytes that are held between reads."""

    def read(self, shard: int) -> Ingredients:
        """The ingredients of a shard's train samples, in the order of `train`, with all queries.

        Raises:
            TracInError: the shard is missing or damaged.
        """


@dataclass(frozen=True)
class OneShard:
    """Ingredients that are in memory, as one shard in the order of the train samples."""

    whole: Ingredients

    @property
    def train(self) -> Sequence[Indices]:
        """All train samples."""
        return (np.arange(self.whole.dot.shape[1]),)

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return self.whole.dot.nbytes

    def read(self, shard: int) -> Ingredients:
        """All of it."""
        del shard
        return self.whole


def side_by_side(snapshots: Sequence[Shards]) -> Iterator[tuple[Indices, list[Ingredients]]]:
    """Train samples, shard by shard of the first snapshot, with their ingredients at each snapshot.

    One shard of each snapshot is in memory, and eight bytes for each train sample and snapshot.

    Raises:
        TracInError: a shard is missing or damaged.
    """
    first, *others = snapshots
    lookups = [_Lookup(shards) for shards in others]
    for shard, train in enumerate(first.train):
        yield train, [first.read(shard), *(lookup.of(train) for lookup in lookups)]


class _Lookup:
    """Finds train samples in the shards of a snapshot; the shard that was read last is kept."""

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
        found: Ingredients | None = None
        for shard in needed:
            piece, at = self._read(int(shard)), np.flatnonzero(wanted == shard)
            if found is None:
                groups, _, probes = piece.dot.shape
                dot, norm = np.empty((groups, len(train), probes), np.float32), np.empty((groups, len(train)), np.float32)
                found = Ingredients(dot, norm, piece.probe_norm)
            found.dot[:, at], found.train_norm[:, at] = piece.dot[:, rows[at]], piece.train_norm[:, rows[at]]
        assert found is not None
        return found

    def _read(self, shard: int) -> Ingredients:
        if shard != self._last:
            self._held, self._last = self._shards.read(shard), shard
        return self._held
