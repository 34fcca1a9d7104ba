"""How well tables of languages predict what leaving languages out does (`analysis.leave_one_out`).

Four correlations (Pearson) are told apart. `others`: the cells of other languages than the probe language's own, as they are;
much of it is that some train languages help every probe language. `contrast`: the same cells without row and column effects
(`analysis.contrast`), so what one train language is to one probe language in particular. `within`: over the train languages of
one probe language, its own left out; mean over the probe languages. `all`: every cell; "one's own language first" has most of it.

Intervals are for other seeds *and* other languages, by the jackknife (`analysis.jackknife`). A seed's fits with and without a
language and its scores share first weights and order, so they are left out together; so are a language's row and its columns.
Languages that are trained on and those that are only probed are strata. The variances over seeds and over languages add up, on
Fisher's z for a correlation. A difference of two correlations is taken in each part, because both are of the same fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
import numpy.typing as npt
import pandas as pd

from lightning_tracin.analysis.contrast import contrast_of
from lightning_tracin.analysis.jackknife import Jackknifed
from lightning_tracin.analysis.leave_one_out import Changes
from lightning_tracin.analysis.tables import table_from
from lightning_tracin.errors import TracInError

Floats = npt.NDArray[np.float64]
Cells = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]

#: The four correlations.
KINDS = ("others", "contrast", "within", "all")
#: Those that say something of other languages than the probe language's own.
_OF_OTHERS = ("others", "contrast")

COLUMNS = (
    "score",
    "measure",
    "baseline",
    "cells",
    *(f"{kind}{suffix}" for kind in KINDS for suffix in ("", "_low", "_high")),
    *(f"{kind}_{suffix}" for kind in _OF_OTHERS for suffix in ("corrected", "floor", "p")),
    "slope",
    "slope_low",
    "slope_high",
)
DIFFERENCES = (
    "score",
    "measure",
    "baseline",
    *(f"{kind}{suffix}" for kind in (*_OF_OTHERS, "all") for suffix in ("", "_low", "_high")),
)

#: What is smaller than this part of the largest value is rounding error.
_TINY = 1e-10
#: Free cells that a correlation of contrasts needs.
_FEWEST = 2
#: At most so many ways to divide the seeds into halves are averaged.
_HALVES = 200


@dataclass(frozen=True)
class Prediction:
    """A table that may predict the changes.

    Attributes:
        score: its name.
        measure: what of the score is counted.
        cells: as the changes have them, [seeds, probe languages, columns]; with one seed, it does not depend on the seed.
        baseline: whether it is what scores are compared with.
    """

    score: str
    measure: str
    cells: Floats
    baseline: bool = False


def correlations(predicted: npt.ArrayLike, change: npt.ArrayLike, own: Cells, without: Cells | None = None) -> dict[str, Floats]:
    """The four correlations of tables with changes.

    Args:
        predicted: [..., probe languages, columns].
        change: the same, or without the first dimensions.
        own: which cells are of the probe language's own train language: [probe languages, columns].
        without: which cells are left out of everything: [probe languages, columns]. None: none.

    Returns:
        Kind -> [...]; NaN where either does not vary.

    Example:
        >>> change = np.array([[9.0, 1.0, 2.0], [0.0, 9.0, 4.0], [2.0, 3.0, 9.0]])
        >>> found = correlations(np.eye(3), change, np.eye(3, dtype=bool))  # "one's own language first"
        >>> {kind: float(value.round(2)) for kind, value in found.items()}
        {'others': nan, 'contrast': nan, 'within': nan, 'all': 0.95}
    """
    one, other = (np.asarray(table, dtype=np.float64) for table in (predicted, change))
    counted = np.ones_like(own) if without is None else ~without
    others = ~own & counted
    rows = [row for row, mine in enumerate(others) if mine.sum() > 2]  # two cells correlate by 1 or -1
    within = [_pearson(one[..., row, others[row]], other[..., row, others[row]]) for row in rows]
    first, second = (contrast_of(table, ~others) for table in (one, other))
    known = _compared(others)
    return {
        "others": _pearson(one[..., others], other[..., others]),
        "contrast": _pearson(first[..., known], second[..., known], (one[..., others], other[..., others])),
        "within": _mean_of_known(np.stack(within)) if within else np.full(one.shape[:-2], np.nan),
        "all": _pearson(one[..., counted], other[..., counted]),
    }


def _compared(others: Cells) -> Cells:
    """Which of the cells of other languages have a contrast to compare: [probe languages, columns]."""
    if _free(others) < _FEWEST:  # two tables with one free cell always agree, or always disagree
        return np.zeros_like(others)
    return others & np.isfinite(contrast_of(np.zeros(others.shape), ~others))


def _free(others: Cells) -> int:
    """Number of cells that row and column effects leave free."""
    row, column = np.nonzero(others)
    effects = np.concatenate([np.eye(others.shape[0])[row], np.eye(others.shape[1])[column]], axis=1)
    return len(row) - int(np.linalg.matrix_rank(effects)) if len(row) else 0


def _pearson(one: Floats, other: Floats, made_of: tuple[Floats, Floats] | None = None) -> Floats:
    """Along the last dimension; NaN if either varies by rounding error alone, measured by what it was made of."""
    if one.shape[-1] < 3:
        return np.full(np.broadcast_shapes(one.shape[:-1], other.shape[:-1]), np.nan)
    first, second = (values - values.mean(-1, keepdims=True) for values in (one, other))
    norms = [np.linalg.norm(values, axis=-1) for values in (first, second)]
    sizes = [np.linalg.norm(values, axis=-1) for values in made_of or (one, other)]
    varies = (norms[0] > _TINY * sizes[0]) & (norms[1] > _TINY * sizes[1])
    found: Floats = np.divide((first * second).sum(-1), norms[0] * norms[1], out=np.full(varies.shape, np.nan), where=varies)
    return found


def _mean_of_known(values: Floats) -> Floats:
    """Mean along the first dimension without NaN."""
    known = np.isfinite(values)
    mean: Floats = np.divide(
        np.where(known, values, 0).sum(0), known.sum(0), out=np.full(values.shape[1:], np.nan), where=known.any(0)
    )
    return mean


def slope(predicted: npt.ArrayLike, change: npt.ArrayLike, others: Cells) -> Floats:
    """Nats of measured change for each unit of the prediction (least squares).

    Args:
        predicted: [..., probe languages, columns].
        change: the same, or without the first dimensions.
        others: which cells count: [probe languages, columns].

    Example:
        >>> cells = np.arange(9.0).reshape(3, 3)
        >>> round(float(slope(cells, 1 + 2 * cells, ~np.eye(3, dtype=bool))), 3)
        2.0
    """
    one, other = (np.asarray(table, dtype=np.float64)[..., others] for table in (predicted, change))
    if not others.any():
        return np.full(one.shape[:-1], np.nan)
    spread = one - one.mean(-1, keepdims=True)
    square = np.square(spread).sum(-1)
    varies = square > np.square(_TINY * np.linalg.norm(one, axis=-1))
    found: Floats = np.divide((spread * other).sum(-1), square, out=np.full(square.shape, np.nan), where=varies)
    return found


def reliability(changes: Changes) -> dict[str, float]:
    """How well other seeds would repeat the measured changes.

    It is the mean correlation between two halves of the seeds, stepped up to all seeds by the formula of Spearman and Brown. The
    mean is over all ways to divide the seeds, or over random ones if there are more than 200.

    Returns:
        For `others` and `contrast`; 0 if halves do not agree at all, NaN with one seed.

    Example:
        >>> names = ("a", "b", "c")
        >>> same = Changes(np.stack([np.arange(9.0).reshape(3, 3) ** 2] * 2), names, tuple((name,) for name in names), (1, 1, 1))
        >>> reliability(same)["others"]
        1.0
    """
    seeds = len(changes.values)
    half = seeds // 2
    if half == 0:
        return dict.fromkeys(_OF_OTHERS, np.nan)
    one, other = (changes.values[side].mean(1) for side in _halves(seeds))  # [divisions, probe languages, columns]
    found = correlations(one, other, changes.own)
    ratio = seeds / half
    means = {kind: float(np.maximum(_mean_of_known(found[kind]), 0)) for kind in _OF_OTHERS}
    return {kind: ratio * mean / (1 + (ratio - 1) * mean) for kind, mean in means.items()}


def _halves(seeds: int) -> tuple[Integers, Integers]:
    """Ways to divide the seeds into halves (of an odd number, one seed is out): two arrays [divisions, seeds // 2]."""
    half = seeds // 2
    if comb(seeds, half) * comb(seeds - half, half) <= 2 * _HALVES:
        divided = [
            (one, other)
            for one in combinations(range(seeds), half)
            for other in combinations(sorted(set(range(seeds)) - set(one)), half)
            if one < other
        ]
        first, second = np.asarray(divided).swapaxes(0, 1)
        return first, second
    shuffled = np.random.default_rng(0).permuted(np.tile(np.arange(seeds), (_HALVES, 1)), axis=1)
    return shuffled[:, :half], shuffled[:, half : 2 * half]


def jackknifed(changes: Changes, tables: Sequence[Floats]) -> list[Jackknifed]:
    """The correlations of each prediction and its slope, with all seeds and languages and without each of them.

    Args:
        changes: the measured changes.
        tables: the predictions, each [seeds or 1, probe languages, columns].

    Returns:
        One for each table; the statistics are in the order of `KINDS`, and the last is the slope.
    """
    values, own, count = changes.values, changes.own, len(changes.values)
    every = np.stack([np.broadcast_to(table, values.shape) for table in tables])  # [tables, seeds, probe languages, columns]
    kept = [[other for other in range(count) if other != seed] for seed in range(count)] if count > 1 else []
    seeds = [_statistics(every[:, some].mean(1), values[some].mean(0), own) for some in kept]
    predicted, change = every.mean(1), values.mean(0)
    languages = []
    for stratum in _strata(changes):
        which = [np.ix_(*_without(changes, language)) for language in stratum]
        each = [_statistics(np.stack([table[some] for table in predicted]), change[some], own[some]) for some in which]
        languages.append(np.stack(each))
    alone = np.eye(own.size, dtype=np.bool_).reshape(-1, *own.shape)
    cells = np.stack([_statistics(predicted, change, own, cell) for cell in alone])
    names = changes.names()
    belongs = np.asarray([len({names[probe], *left}) for probe in changes.probe_languages for left in changes.left_out], float)
    whole = _statistics(predicted, change, own)
    return [
        Jackknifed(
            whole[table],
            np.stack(seeds)[:, table] if seeds else None,
            tuple(each[:, table] for each in languages),
            cells[:, table],
            belongs,
        )
        for table in range(len(tables))
    ]


def _statistics(predicted: Floats, change: Floats, own: Cells, without: Cells | None = None) -> Floats:
    """[tables, statistics]."""
    found = correlations(predicted, change, own, without)
    others = ~own if without is None else ~own & ~without
    return np.stack([*(found[kind] for kind in KINDS), slope(predicted, change, others)], axis=-1)


def _strata(changes: Changes) -> list[list[str]]:
    """Languages that are trained on, and languages that are only probed; a single one says nothing of its kind."""
    trained = {name for left in changes.left_out for name in left}
    only_probed = set(changes.names().values()) - trained
    if len(only_probed) == 1:
        return [sorted(trained | only_probed)]
    return [sorted(one) for one in (trained, only_probed) if one]


def _without(changes: Changes, language: str) -> tuple[list[int], list[int]]:
    """The rows and columns that remain without a language (by its train name)."""
    names = changes.names()
    rows = [row for row, probe in enumerate(changes.probe_languages) if names[probe] != language]
    return rows, [column for column, left in enumerate(changes.left_out) if language not in left]


def agreement_tables(
    changes: Changes, predictions: Sequence[Prediction], permutations: int = 999
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """How well predictions agree with the measured changes, and how much better scores do than baselines.

    Args:
        changes: the measured changes.
        predictions: tables of scores and of baselines.
        permutations: number of permutations for the null.

    Returns:
        The first table has a row for each prediction (`COLUMNS`): `cells`, how many cells of other languages have a contrast; the
        four correlations with their 95 % intervals (NaN where the prediction or the changes do not vary); `_corrected` divides by
        the square root of the changes' reliability, so that 1 is what a perfect prediction would have; `_floor` is the 95th
        percentile and `_p` the fraction (of permutations that correlate at least as well) under a null that permutes the cells of
        other languages within each probe language; `slope` is in nats for each unit of the prediction. The second
        (`DIFFERENCES`) has a row for each score and baseline: the score's correlation minus the baseline's, NaN where the score
        has none. A baseline that is the same everywhere predicts nothing and counts as 0.

    Raises:
        TracInError: there are fewer than three probe languages or columns, or a prediction has other cells.

    Example:
        >>> names, generator = ("de", "en", "es", "ru"), np.random.default_rng(0)
        >>> changes = Changes(generator.normal(size=(3, 4, 4)), names, tuple((name,) for name in names), (9,) * 4)
        >>> table, _ = agreement_tables(changes, [Prediction("perfect", "sum", changes.values)], permutations=9)
        >>> table[["others", "contrast", "slope", "contrast_p"]].round(3).values.tolist()
        [[1.0, 1.0, 1.0, 0.1]]
    """
    shape = changes.own.shape
    if min(shape) < 3:
        raise TracInError(
            f"There are {shape[0]} probe languages and {shape[1]} columns of languages left out; comparing tables without their "
            "row and column effects needs at least three of each."
        )
    for one in predictions:
        if one.cells.shape[1:] != shape or len(one.cells) not in (1, len(changes.values)):
            raise TracInError(
                f"The table of {one.score!r} ({one.measure}) is {one.cells.shape}, but should be [seeds or 1, probe languages, "
                f"columns], and {changes.values.shape} were measured."
            )
    trust = {kind: np.sqrt(value) if value > 0 else np.nan for kind, value in reliability(changes).items()}
    found = jackknifed(changes, [one.cells for one in predictions])
    generator, compared = np.random.default_rng(0), int(_compared(~changes.own).sum())
    rows = []
    for one, each in zip(predictions, found, strict=True):
        low, high = each.on_z()
        corrected = [each.value[KINDS.index(kind)] / trust[kind] for kind in _OF_OTHERS]
        null = _null(one.cells.mean(0), changes, permutations, generator)
        bounds = np.stack([each.value, low, high], 1)[: len(KINDS)].ravel()
        floors = [
            number
            for kind, value in zip(_OF_OTHERS, corrected, strict=True)
            for number in (value, *_against(null[kind], each.value[KINDS.index(kind)]))
        ]
        slopes = (each.value[-1], *(side[-1] for side in each.bounds()))
        rows.append((one.score, one.measure, one.baseline, compared, *bounds, *floors, *slopes))
    return table_from(rows, COLUMNS), _differences(predictions, found)


def _null(predicted: Floats, changes: Changes, permutations: int, generator: np.random.Generator) -> dict[str, Floats]:
    """Correlations of tables whose cells of other languages are permuted within each probe language: [permutations]."""
    shuffled = np.repeat(predicted[None], permutations, axis=0)
    for row, own in enumerate(changes.own):
        shuffled[:, row, ~own] = generator.permuted(shuffled[:, row, ~own], axis=1)
    return correlations(shuffled, changes.values.mean(0), changes.own)


def _against(null: Floats, value: float) -> tuple[float, float]:
    """The 95th percentile of a null, and the part of it that is at least as large as a value (counting the value itself)."""
    known = null[np.isfinite(null)]
    if not len(known) or not np.isfinite(value):
        return np.nan, np.nan
    return float(np.quantile(known, 0.95)), float((1 + (known >= value).sum()) / (1 + len(known)))


def _differences(predictions: Sequence[Prediction], found: Sequence[Jackknifed]) -> pd.DataFrame:
    each = list(zip(predictions, found, strict=True))
    chosen = [KINDS.index(kind) for kind in (*_OF_OTHERS, "all")]
    rows = []
    for score, mine in each:
        for baseline, other in each:
            if baseline.baseline and not score.baseline:
                difference = mine.minus(other).at(chosen)
                bounds = np.stack([difference.value, *difference.bounds()], 1).ravel()
                rows.append((score.score, score.measure, baseline.score, *bounds))
    return table_from(rows, DIFFERENCES)
