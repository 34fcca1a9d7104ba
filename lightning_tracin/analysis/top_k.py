"""The strongest train samples of each probe, from scores that arrive block by block."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from lightning_tracin.analysis.scores import Scores, tie_order
from lightning_tracin.config import Sign, check_choice
from lightning_tracin.storage.sample_table import SampleTable

_Indices = npt.NDArray[np.int64]


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

    def add(self, train: _Indices, scores: Scores) -> None:
        """Add a block of scores: [len(train), probes]."""
        positive = self._sign == "positive"
        if self._keys is None or len(self._keys) < self._k:
            self._begin(train, -scores if positive else scores)
            return
        strong = scores >= -self._keys[-1] if positive else scores <= self._keys[-1]
        rows, probes = np.divmod(np.flatnonzero(strong), strong.shape[1])
        found, samples = scores[rows, probes], train[rows]
        if positive:
            found = -found
        kept = (found < self._keys[-1, probes]) | (tie_order(samples) < tie_order(self._train[-1, probes]))
        self._waiting.append((probes[kept], found[kept], samples[kept]))
        if sum(len(waiting) for waiting, _, _ in self._waiting) > self._keys.size:
            self._settle()

    def found(self) -> tuple[_Indices, Scores]:
        """The train samples, strongest first, and their scores: [k, probes] each (fewer rows if fewer were added)."""
        self._settle()
        assert self._keys is not None
        return self._train, -self._keys if self._sign == "positive" else self._keys

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
        self._keys, self._train, self._waiting = keys[chosen], train[chosen], []


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
