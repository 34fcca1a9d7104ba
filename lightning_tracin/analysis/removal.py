"""E2: does removing what influence names change the model more than removing as much at random?

The refits are somebody else's work (`counterfactual`); here are what to remove, and what the refits say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import integrate, stats

from lightning_tracin.analysis.reliance import Floats, Interval, bootstrap_mean, by_unit
from lightning_tracin.analysis.scores import Scores, ranked
from lightning_tracin.config import Sign
from lightning_tracin.errors import TracInError

COLUMNS = (
    "k",
    "drop",
    "low",
    "high",
    "random_drop",
    "random_low",
    "random_high",
    "excess",
    "excess_low",
    "excess_high",
    "p",
    "random_lowest",
    "random_highest",
    "units",
)

Kept = npt.NDArray[np.bool_]  # [train]: what a refit is fitted on


def without_top(scores: Scores, k: int, sign: Sign = "positive") -> Kept:
    """All train samples but the k strongest for the probes together: array [train].

    Strongest by the influence summed over the probes, so that one set is removed for all of them and one refit shows it.

    Args:
        scores: influence [train, probes].
        k: how many to remove.
        sign: proponents or opponents.

    Raises:
        TracInError: k leaves no sample.
    """
    _require(k, len(scores))
    kept = np.ones(len(scores), dtype=np.bool_)
    kept[ranked(scores.sum(1, keepdims=True), sign)[:k, 0]] = False
    return kept


def without_random(train: int, k: int, draws: int, seed: int = 0) -> npt.NDArray[np.bool_]:
    """All train samples but k random ones, several times: array [draws, train]. More draws begin with the same ones."""
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
    """The removal curve.

    Args:
        base: the probability of the correct class under the model fitted on all train samples, [probes].
        removed: k -> the same under the model fitted without the k strongest, [probes].
        at_random: k -> the same under models fitted without k random samples, [draws, probes].
        interval: the bootstrap over units.
        units: what each probe is a version of, such as its item; None takes every probe for itself. Drops are averaged within a
            unit first, because translations of one item do not vary independently.

    Returns:
        Columns `COLUMNS`, a line for each k. `drop` is the mean of (base - now) / base, so that 0.1 means a tenth of the
        probability is gone; `random_drop` that of the random removals, `excess` the difference, each with its interval; `p` is
        of Wilcoxon's signed-rank test of the excess against zero, two-sided; `random_lowest` and `random_highest` are the least
        and the greatest drop of one random removal. All probes share a refit, so that its own chance is in no interval: a drop
        within that range is not told from a random one.

    Raises:
        TracInError: the shapes do not fit, a probability is not positive, or a k has no random removals.
    """
    first = np.asarray(base, dtype=np.float64)
    if first.ndim != 1 or not (first > 0).all():
        raise TracInError("The probabilities under the whole model should be positive, one for each probe.")
    settings = interval or Interval()
    rows = []
    for k in sorted(removed):
        if k not in at_random:
            raise TracInError(f"There are no random removals of {k} samples to compare with; have {sorted(at_random)}.")
        now, draws = np.asarray(removed[k], dtype=np.float64), np.asarray(at_random[k], dtype=np.float64)
        if now.shape != first.shape or draws.ndim != 2 or draws.shape[1:] != first.shape:
            raise TracInError(f"At k = {k} there are {now.shape} and {draws.shape} probabilities for {len(first)} probes.")
        drop, chance = 1 - now / first, 1 - draws.mean(0) / first
        each = 1 - draws / first
        values = by_unit(np.stack([drop, chance, drop - chance], 1), units or [None] * len(first))
        low, high = bootstrap_mean(values, settings)
        excess = values[:, 2]
        p = 1.0 if not excess.any() else float(stats.wilcoxon(excess, zero_method="zsplit").pvalue)
        mean = values.mean(0)
        by_draw = [by_unit(one[:, None], units or [None] * len(first)).mean() for one in each]
        found = zip(mean, low, high, strict=True)
        rows.append((k, *(number for three in found for number in three), p, min(by_draw), max(by_draw), len(values)))
    table: pd.DataFrame = pd.DataFrame(rows, columns=list(COLUMNS))
    return table


def area_by_deletion(fractions: Sequence[float], changes: npt.ArrayLike) -> Floats:
    """AUC-DEL: area over the removed part of the train set of the change in the correct class's probability: array [probes].

    Args:
        fractions: the removed parts of the train set, ascending; nothing removed, where nothing changes, is added in front.
        changes: probability after minus before at each of them, [fractions, probes]. Negative areas say that what was removed
            had supported the probes.

    Raises:
        TracInError: the fractions are not ascending parts, or the shapes do not fit.
    """
    at, values = np.asarray([0.0, *fractions]), np.asarray(changes, dtype=np.float64)
    if (np.diff(at) <= 0).any() or at[-1] > 1:
        raise TracInError(f"The removed parts should ascend between 0 and 1, but are {list(fractions)}.")
    if values.ndim != 2 or len(values) != len(fractions):
        raise TracInError(f"There are {values.shape} changes for {len(fractions)} removed parts; they should be [parts, probes].")
    values = np.concatenate([np.zeros((1, values.shape[1])), values])
    area: Floats = integrate.trapezoid(values, at, axis=0)
    return area
