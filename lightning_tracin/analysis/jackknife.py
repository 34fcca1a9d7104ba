"""Intervals of statistics of a table by leaving out one unit at a time, for other seeds and other languages.

Cells of a table share languages, as rows and as columns, so they are no independent sample. The variance over languages is that
of leaving out one language (its row and its columns) at a time. It counts what a cell has of its own once for each language that
the cell belongs to: one or two, or three where pairs of languages are left out. So the variance of leaving out single cells is
subtracted for each language but the first (Cameron, Gelbach and Miller 2011, "Robust inference with multiway clustering"; Aronow,
Samii and Assenova 2015, "Cluster-robust variance estimation for dyadic data"). What remains is at least the variance of
independent cells, and with few languages more than the true variance, because leaving one out takes many cells. Languages of
different kinds are strata (Wolter 2007, "Introduction to Variance Estimation", chapter 4). The variance over seeds is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]

_CONFIDENCE = 0.95
#: Correlations of 1 have no finite z.
_CLOSE_TO_ONE = 1 - 1e-12


@dataclass(frozen=True)
class Jackknifed:
    """Statistics of everything, and of everything without each unit.

    Attributes:
        value: [statistics].
        seeds: without each seed, [seeds, statistics]; None if there is one.
        languages: for each stratum, without each of its languages, [languages, statistics].
        cells: without each cell, [cells, statistics].
        belongs: the number of languages that each cell belongs to, [cells].

    Example:
        >>> numbers = np.array([1.0, 2.0, 4.0, 5.0])
        >>> without = np.array([[np.delete(numbers, unit).mean()] for unit in range(4)])
        >>> alone = Jackknifed(np.array([numbers.mean()]), None, (without,), np.zeros((1, 1)), np.ones(1))
        >>> alone.variances()[1].round(3).tolist(), round(float(numbers.var(ddof=1)) / 4, 3)
        ([0.833], 0.833)
    """

    value: Floats
    seeds: Floats | None
    languages: tuple[Floats, ...]
    cells: Floats
    belongs: Floats

    def variances(self) -> tuple[Floats, Floats]:
        """The variance over seeds (0 with one seed) and over languages: two arrays [statistics]."""
        over_seeds = np.zeros_like(self.value) if self.seeds is None else _variance(self.seeds)
        over_languages = np.sum([_variance(each) for each in self.languages], axis=0)
        counted_again = _variance(self.cells, self.belongs - 1)
        return over_seeds, np.maximum(over_languages - counted_again, _variance(self.cells))

    def bounds(self) -> tuple[Floats, Floats]:
        """Student's 95 % interval of each statistic, with degrees of freedom after Satterthwaite (1946): two arrays [statistics].

        NaN where a statistic is unknown, with all units or without one of them.
        """
        of_seeds, of_languages = self.variances()
        total = of_seeds + of_languages
        freedom = sum(len(each) - 1 for each in self.languages)
        parts = of_languages**2 / freedom
        if self.seeds is not None:
            parts = parts + of_seeds**2 / (len(self.seeds) - 1)
        degrees = np.divide(total**2, parts, out=np.full_like(total, float(freedom)), where=parts > 0)
        width = stats.t.ppf((1 + _CONFIDENCE) / 2, degrees) * np.sqrt(total)
        return self.value - width, self.value + width

    def on_z(self) -> tuple[Floats, Floats]:
        """The interval of correlations, computed on Fisher's z and turned back."""
        seeds = None if self.seeds is None else _z(self.seeds)
        on_z = Jackknifed(_z(self.value), seeds, tuple(map(_z, self.languages)), _z(self.cells), self.belongs)
        low, high = on_z.bounds()
        return np.tanh(low), np.tanh(high)

    def minus(self, other: Jackknifed) -> Jackknifed:
        """The difference of the same statistics of two tables, unit by unit.

        A statistic that the other table does not have, with all units, counts as 0 there: a table that is the same everywhere
        predicts nothing. The difference is NaN where this table's own statistic is unknown.
        """

        def difference(mine: Floats, yours: Floats) -> Floats:
            return mine - np.where(np.isfinite(other.value), yours, 0.0)

        return Jackknifed(
            difference(self.value, other.value),
            None if self.seeds is None or other.seeds is None else difference(self.seeds, other.seeds),
            tuple(difference(*each) for each in zip(self.languages, other.languages, strict=True)),
            difference(self.cells, other.cells),
            self.belongs,
        )

    def at(self, chosen: Sequence[int]) -> Jackknifed:
        """Some of the statistics."""
        which = list(chosen)
        seeds = None if self.seeds is None else self.seeds[:, which]
        languages = tuple(each[:, which] for each in self.languages)
        return Jackknifed(self.value[which], seeds, languages, self.cells[:, which], self.belongs)


def _variance(without: Floats, times: Floats | None = None) -> Floats:
    """The jackknife's variance (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 11): [statistics].

    Args:
        without: without each unit, [units, statistics].
        times: how often each unit counts, [units]. None: once.
    """
    weights = np.ones(len(without)) if times is None else times
    variance: Floats = (len(without) - 1) / len(without) * (weights @ np.square(without - without.mean(0)))
    return variance


def _z(correlation: Floats) -> Floats:
    z: Floats = np.arctanh(np.clip(correlation, -_CLOSE_TO_ONE, _CLOSE_TO_ONE))
    return z
