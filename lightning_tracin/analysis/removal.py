"""E2: does removing the most influential samples change the model more than removing random ones?

This module chooses the samples to remove and evaluates the refits; `trainer.refits` runs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import integrate, stats

from lightning_tracin.analysis.reliance import Floats
from lightning_tracin.analysis.resampling import Interval, bootstrap_mean, by_unit
from lightning_tracin.analysis.scores import Scores, ranked
from lightning_tracin.analysis.tables import table_from
from lightning_tracin.config import Sign
from lightning_tracin.errors import TracInError

_RANDOM = ("random_drop", "random_low", "random_high")
_EXCESS = ("excess", "excess_low", "excess_high")
COLUMNS = ("k", "drop", "low", "high", *_RANDOM, *_EXCESS, "p", "random_lowest", "random_highest", "units")

Kept = npt.NDArray[np.bool_]  # [train]: the samples that a refit is fitted on


def without_top(scores: Scores, k: int, sign: Sign = "positive") -> Kept:
    """All train samples except the k strongest by influence summed over the probes: array [train].

    One set of samples is removed for all probes, so a single refit shows the effect.

    Args:
        scores: influence [train, probes].
        k: number of samples to remove.
        sign: proponents or opponents.

    Raises:
        TracInError: k leaves no sample.

    Example:
        >>> without_top(np.array([[0.1, 0.2], [0.9, 0.1], [0.0, 0.0]]), k=1).tolist()
        [True, False, True]
    """
    _require(k, len(scores))
    kept = np.ones(len(scores), dtype=np.bool_)
    kept[ranked(scores.sum(1, keepdims=True), sign)[:k, 0]] = False
    return kept


def without_random(train: int, k: int, draws: int, seed: int = 0) -> npt.NDArray[np.bool_]:
    """All train samples except k random ones, for each draw: array [draws, train]; more draws keep the first ones.

    Example:
        >>> without_random(train=5, k=2, draws=3).sum(1).tolist()
        [3, 3, 3]
    """
    _require(k, train)
    kept = np.ones((draws, train), dtype=np.bool_)
    for line, child in zip(kept, np.random.SeedSequence([seed, k]).spawn(draws), strict=True):
        line[np.random.default_rng(child).choice(train, k, replace=False)] = False
    return kept


def _require(k: int, train: int) -> None:
    if not 1 <= k < train:
        raise TracInError(f"k should be between 1 and {train - 1}, so that some of the {train} train samples stay, but is {k}.")


def removal_table(
    base: npt.ArrayLike,
    removed: Mapping[int, npt.ArrayLike],
    at_random: Mapping[int, npt.ArrayLike],
    interval: Interval | None = None,
    units: Sequence[str | None] | None = None,
) -> pd.DataFrame:
    """Drop in the probability of the correct class after each removal, compared with random removals.

    Args:
        base: probability of the correct class from the model fitted on all train samples, [probes].
        removed: k -> the same from the model fitted without the k strongest samples, [probes].
        at_random: k -> the same from models fitted without k random samples, [draws, probes].
        interval: settings of the bootstrap over units.
        units: unit of each probe, such as its item; None makes every probe its own unit. Drops are averaged within a unit first,
            because translations of one item are not independent.

    Returns:
        Columns `COLUMNS`, one row for each k. `drop` is the mean of (base - now) / base, so 0.1 means that a tenth of the
        probability is lost; `random_drop` is that of the random removals, `excess` the difference, each with its interval. `p`
        is from a two-sided Wilcoxon signed-rank test of the excess against zero. `random_lowest` and `random_highest` are the
        smallest and the largest drop of a single random removal. All probes share one refit, whose randomness no interval
        covers: a drop within this range cannot be distinguished from a random one.

    Raises:
        TracInError: the shapes do not match, a probability is not positive, or there are no random removals for a k.

    Example:
        >>> table = removal_table([0.8, 0.5], {1: [0.4, 0.25]}, {1: [[0.8, 0.5], [0.6, 0.375]]})
        >>> table[["drop", "random_drop", "excess", "random_highest"]].round(3).values.tolist()
        [[0.5, 0.125, 0.375, 0.25]]
    """
    first = np.asarray(base, dtype=np.float64)
    if first.ndim != 1 or not (first > 0).all():
        raise TracInError("The probabilities from the model fitted on all samples should be positive, one for each probe.")
    units = units or [None] * len(first)
    rows = []
    for k in sorted(removed):
        if k not in at_random:
            raise TracInError(f"There are no random removals of {k} samples to compare with; have {sorted(at_random)}.")
        now, draws = np.asarray(removed[k], dtype=np.float64), np.asarray(at_random[k], dtype=np.float64)
        if now.shape != first.shape or draws.ndim != 2 or draws.shape[1:] != first.shape:
            raise TracInError(f"At k = {k} there are {now.shape} and {draws.shape} probabilities for {len(first)} probes.")
        drop, chance = 1 - now / first, 1 - draws.mean(0) / first
        values = by_unit(np.stack([drop, chance, drop - chance], 1), units)
        estimates = np.stack([values.mean(0), *bootstrap_mean(values, interval or Interval())], 1)  # value, low, high
        excess = values[:, 2]
        p = 1.0 if not excess.any() else float(stats.wilcoxon(excess, zero_method="zsplit").pvalue)
        by_draw = [by_unit(one[:, None], units).mean() for one in 1 - draws / first]
        rows.append((k, *estimates.ravel(), p, min(by_draw), max(by_draw), len(values)))
    return table_from(rows, COLUMNS)


def area_by_deletion(fractions: Sequence[float], changes: npt.ArrayLike) -> Floats:
    """AUC-DEL: area under the change in the correct class's probability, over the removed fraction: array [probes].

    Args:
        fractions: removed fractions of the train set, ascending; the fraction 0, without a change, is added in front.
        changes: probability after minus before the removal, [fractions, probes]. A negative area means that the removed samples
            supported the probe.

    Raises:
        TracInError: the fractions do not ascend between 0 and 1, or the shapes do not match.

    Example:
        >>> area_by_deletion([0.5, 1.0], [[-0.5], [-0.5]]).tolist()
        [-0.375]
    """
    at, values = np.asarray([0.0, *fractions]), np.asarray(changes, dtype=np.float64)
    if (np.diff(at) <= 0).any() or at[-1] > 1:
        raise TracInError(f"The removed fractions should ascend between 0 and 1, but are {list(fractions)}.")
    if values.ndim != 2 or len(values) != len(fractions):
        raise TracInError(
            f"There are {values.shape} changes for {len(fractions)} removed fractions; they should be [fractions, probes]."
        )
    values = np.concatenate([np.zeros((1, values.shape[1])), values])
    area: Floats = integrate.trapezoid(values, at, axis=0)
    return area
