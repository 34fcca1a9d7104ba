"""The strongest train samples of each probe, from scores that arrive block by block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from lightning_tracin.analysis.near_border import near_or_beyond
from lightning_tracin.analysis.scores import FactoredScores, Scores, tie_order
from lightning_tracin.config import Sign, check_choice
from lightning_tracin.storage.sample_table import SampleTable

_Indices = npt.NDArray[np.int64]

#: Train samples that are compared at once, and that are sorted to begin with.
_AT_ONCE = 1024


class Strongest:
    """The k strongest train samples of each probe among all added: the same as `ranked(...)[:k]` on the whole matrix.

    Equal scores are in the random order of `tie_order`, whatever block they arrive in. Only entries stronger than the weakest
    one held are kept, so memory holds about 2 k entries per probe, and one block.

    Args:
        k: number of train samples per probe.
        sign: proponents or opponents.

    Example:
        >>> strongest = Strongest(k=1, sign="positive")
        >>> strongest.add(np.array([0, 1]), np.array([[0.1], [0.3]]))
        >>> strongest.add(np.array([2]), np.array([[0.2]]))
        >>> [found.tolist() for found in strongest.found()]
        [[[1]], [[0.3]]]
    """

    def __init__(self, k: int, sign: Sign) -> None:
        check_choice("sign", sign, Sign)
        self._k, self._sign = k, sign
        self._keys: Scores | None = None  # [held, probes], smallest first
        self._train: _Indices = np.zeros((0, 0), np.int64)  # [held, probes]
        self._waiting: list[tuple[_Indices, Scores, _Indices]] = []  # probes, keys and train samples, flat
        self._count = 0  # entries that wait

    def add(self, train: _Indices, scores: Scores) -> None:
        """Add a block of scores: [len(train), probes]."""
        first = self._rows_to_begin()
        if first:
            self._begin(train[:first], self._as_keys(scores[:first]))
        for start in range(first, len(train), _AT_ONCE):
            piece = scores[start : start + _AT_ONCE]
            strong = piece >= self._border() if self._sign == "positive" else piece <= self._border()
            rows, probes = np.divmod(np.flatnonzero(strong), strong.shape[1])
            self._wait(train[start + rows], probes, self._as_keys(piece[rows, probes]))

    def add_factored(self, train: _Indices, terms: Sequence[FactoredScores]) -> None:
        """Add a block of scores, [len(train), probes], that are sums of factored ones: the same as adding the sums.

        Args:
            train: the train samples.
            terms: what is summed up: the scores of each snapshot.
        """
        if self._rows_to_begin():
            self.add(train, sum((one.dense() for one in terms[1:]), terms[0].dense()))
            return
        rows, probes, scores = near_or_beyond(terms, self._border(), self._sign == "positive")
        self._wait(train[rows], probes, self._as_keys(scores))

    def _rows_to_begin(self) -> int:
        """How many train samples to begin with; 0 where k entries are held."""
        return max(self._k, _AT_ONCE) if self._keys is None or len(self._keys) < self._k else 0

    def _border(self) -> Scores:
        """The weakest score held of each probe."""
        assert self._keys is not None
        return self._as_keys(self._keys[-1])

    def _as_keys(self, scores: Scores) -> Scores:
        """Keys, of which the smallest is the strongest, from scores; or scores from keys."""
        return -scores if self._sign == "positive" else scores

    def _wait(self, train: _Indices, probes: _Indices, keys: Scores) -> None:
        """Keep the entries that are stronger than the weakest one held."""
        assert self._keys is not None
        if not len(keys):
            return
        weakest = self._keys[-1, probes]
        is_tie = np.flatnonzero(keys == weakest)
        kept = keys < weakest
        kept[is_tie] = tie_order(train[is_tie]) < tie_order(self._train[-1, probes[is_tie]])
        self._waiting.append((probes[kept], keys[kept], train[kept]))
        self._count += int(kept.sum())
        if self._count > self._keys.size:
            self._settle()

    def found(self) -> tuple[_Indices, Scores]:
        """The train samples, strongest first, and their scores: [k, probes] each (fewer rows if fewer were added)."""
        self._settle()
        assert self._keys is not None
        return self._train, self._as_keys(self._keys)

    def _begin(self, train: _Indices, keys: Scores) -> None:
        """Add a block while fewer than k entries are held."""
        rows = np.argsort(tie_order(train))
        keys, samples = keys[rows], np.broadcast_to(train[rows, None], keys.shape)
        if self._keys is None:
            order = np.argsort(keys, axis=0, kind="stable")[: self._k]
        else:
            keys, samples = np.concatenate([self._keys, keys]), np.concatenate([self._train, samples])
            order = np.lexsort((tie_order(samples), keys), axis=0)[: self._k]
        self._keys, self._train = np.take_along_axis(keys, order, 0), np.take_along_axis(samples, order, 0)

    def _settle(self) -> None:
        """Merge the waiting entries with those held."""
        if self._keys is None or not self._waiting:
            return
        held = np.broadcast_to(np.arange(self._keys.shape[1]), self._keys.shape).ravel()
        whole = [(held, self._keys.ravel(), self._train.ravel()), *self._waiting]
        probes, keys, train = (np.concatenate(parts) for parts in zip(*whole, strict=True))
        order = np.lexsort((tie_order(train), keys, probes))
        starts = np.searchsorted(probes[order], np.arange(self._keys.shape[1]))
        chosen = order[starts + np.arange(len(self._keys))[:, None]]
        self._keys, self._train, self._waiting, self._count = keys[chosen], train[chosen], [], 0


def tables_of(strongest: Strongest, train: SampleTable) -> list[pd.DataFrame]:
    """The strongest train samples of each probe: columns train (index), item, language, label, score, text.

    Example:
        >>> strongest = Strongest(k=1, sign="positive")
        >>> strongest.add(np.array([0, 1]), np.array([[0.1], [0.3]]))
        >>> (table,) = tables_of(strongest, SampleTable(("de", "en"), (None, None), ("Hallo", "Hello"), (None, None)))
        >>> table[["train", "language", "score", "text"]].values.tolist()
        [[1, 'en', 0.3, 'Hello']]
    """
    tables = []
    for indices, scores in zip(*(found.T for found in strongest.found()), strict=True):
        chosen = train.take(indices.tolist())
        columns = {"train": indices, "item": chosen.item, "language": chosen.language, "label": chosen.label}
        tables.append(pd.DataFrame({**columns, "score": scores, "text": chosen.text}))
    return tables
