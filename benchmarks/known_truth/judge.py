"""Judges tables against the truth: agreement, claims, monotony, coverage. Functions of arrays and tables, without a fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from lightning_tracin.analysis.agreement import correlations
from lightning_tracin.analysis.agreement import reliability as reliability_of
from lightning_tracin.analysis.leave_one_out import Changes
from lightning_tracin.analysis.tally import SIGNED

Floats = npt.NDArray[np.float64]

#: Measures whose value says by itself, by its sign, whether a language helps.
WITH_SIGN = (*SIGNED, "nats")


#: Relative to the largest value of a table: languages with the same probes have contrasts of 0, up to rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Agreement:
    """How a table agrees with the truth over the cells of other languages: as it is, and without row and column effects."""

    plain: float
    centred: float


def grid(table: pd.DataFrame, column: str = "value") -> Floats:
    """A column of a table: [probe languages, train languages].

    Example:
        >>> rows = {"probe_language": ["B", "B", "A", "A"], "train_language": ["A", "B", "A", "B"], "value": [3, 4, 1, 2]}
        >>> grid(pd.DataFrame(rows)).tolist()
        [[1.0, 2.0], [3.0, 4.0]]
    """
    wide = table.pivot(index="probe_language", columns="train_language", values=column)
    found: Floats = wide.to_numpy(dtype=np.float64)
    return found


def others(values: Floats) -> Floats:
    """The cells in which probe language and train language differ, row by row.

    Example:
        >>> others(np.array([[1.0, 2.0], [3.0, 4.0]])).tolist()
        [2.0, 3.0]
    """
    found: Floats = values[~np.eye(len(values), dtype=bool)]
    return found


def agreement(values: Floats, truth: Floats) -> Agreement:
    """Correlation (Pearson) of a table with the truth; NaN if either is constant.

    Example:
        >>> truth = np.array([[9.0, 1.0, 2.0, 5.0], [3.0, 9.0, 1.0, 1.0], [0.0, 1.0, 9.0, 3.0], [2.0, 2.0, 1.0, 9.0]])
        >>> found = agreement(2 * truth + np.arange(4), truth)  # a column effect, which is no agreement of cells
        >>> round(found.centred, 6), found.plain < 0.9
        (1.0, True)
    """
    found = correlations(values, truth, np.eye(len(values), dtype=bool))
    return Agreement(float(found["others"]), float(found["contrast"]))


def correlation(one: Floats, other: Floats) -> float:
    """Pearson's correlation over what is finite in both; NaN with fewer than three values, or if either is constant."""
    known = np.isfinite(one) & np.isfinite(other)
    one, other = one[known], other[known]
    if len(one) < 3 or any(np.ptp(values) <= _ROUNDING * np.abs(values).max() for values in (one, other)):
        return np.nan
    return float(stats.pearsonr(one, other).statistic)


def reliability(by_seed: Floats) -> float:
    """Of the truth's cells of other languages: the correlation that another set of as many seeds would have with this one.

    The mean correlation of halves of the seeds, corrected for their size (Spearman-Brown).

    Args:
        by_seed: [seeds, probe languages, train languages].
    """
    names = tuple(map(str, range(by_seed.shape[1])))
    changes = Changes(by_seed, names, tuple((name,) for name in names), (1,) * len(names))
    return reliability_of(changes)["others"]


def claimed(table: pd.DataFrame, measure: str) -> Floats:
    """1 where the table claims help, because the interval is above nothing: [probe languages, train languages]; NaN without one.

    Nothing is the null for shares, and 0 for what has a sign.
    """
    low = grid(table, "low")
    nothing = np.zeros_like(low) if measure in WITH_SIGN else grid(table, "null")
    return np.where(np.isfinite(low), (low > nothing).astype(float), np.nan)


def contrast_claimed(table: pd.DataFrame) -> Floats:
    """1 where the interval of the contrast is above 0; NaN where no contrast is known."""
    low = grid(table, "contrast_low")
    return np.where(np.isfinite(low), (low > _ROUNDING * np.abs(grid(table)).max()).astype(float), np.nan)


def need_claimed(need: Floats, error: Floats) -> Floats:
    """1 where the truth is above 0 by two standard errors over seeds."""
    return (need > 2 * error).astype(float)


def part(cells: Floats, chosen: npt.NDArray[np.bool_] | None = None) -> float:
    """Mean of known cells, of those that are chosen or of those of other languages; NaN without any.

    Example:
        >>> part(np.array([[1.0, 0.0], [1.0, np.nan]]))
        0.5
    """
    values = others(cells) if chosen is None else cells[chosen]
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else np.nan


def other_over_own(values: Floats) -> float:
    """Mean of the cells of other languages in parts of the mean of own languages: 1 if all are worth the same to each other.

    NaN if own languages are worth nothing.
    """
    own = float(np.diagonal(values).mean())
    return float(others(values).mean()) / own if own > 0 else np.nan


def monotony(levels: Sequence[float], values: Sequence[float]) -> float:
    """Spearman's correlation of values with the levels that they belong to; NaN if they are constant.

    Example:
        >>> round(monotony([0, 0.5, 1], [0.1, 0.2, 0.7]), 6)
        1.0
    """
    return float(stats.spearmanr(levels, values).statistic) if np.ptp(values) > 0 else np.nan


def column_of_others(table: Floats, column: int) -> float:
    """Mean of a train language's column over the other probe languages."""
    return float(np.delete(table[:, column], column).mean())


def coverage(values: Floats, low: Floats, high: Floats) -> float:
    """How often the interval of one data set covers the mean over all: data sets are drawn as new, and so are intervals.

    The target of a cell is its mean over all data sets but the one whose interval it is, so that no interval is favoured by
    its own value.

    Args:
        values: the value of each cell in each data set, [data sets, ...].
        low: lower bounds.
        high: upper bounds.

    Example:
        >>> values = np.array([[0.0], [1.0], [2.0], [9.0]])
        >>> coverage(values, values - 4.5, values + 4.5)
        0.75
    """
    count = len(values)
    target = (values.sum(0) - values) / (count - 1)
    known = np.isfinite(low) & np.isfinite(high)
    return float(((low <= target) & (target <= high))[known].mean())
