"""Leave one language out: does a reliance table predict what losing a train language does to each probe language?

Raw shares mix effects of the train language (long or hard samples) with what one probe language takes from it. So tables are
compared both as they are and with row and column means removed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from lightning_tracin.analysis.reliance import Floats
from lightning_tracin.analysis.tables import own_cells, table_from
from lightning_tracin.errors import TracInError

_CENTRED = ("centred_pearson", "centred_low", "centred_high", "floor", "p")
_OTHERS = ("others_pearson", "others_low", "others_high")
COLUMNS = ("score", "cells", "pearson", "spearman", *_CENTRED, *_OTHERS)


def change_in_loss(whole: npt.ArrayLike, without: Mapping[str, npt.ArrayLike], probe_languages: npt.ArrayLike) -> pd.DataFrame:
    """Change in each probe language's loss when a train language is left out.

    Args:
        whole: losses of fits on all train samples, [seeds, probes].
        without: train language -> losses of fits without it, with the same seeds, [seeds, probes].
        probe_languages: language of each probe.

    Returns:
        One row per probe language and left-out train language: `change` (mean loss without it minus mean loss with it, averaged
        over seeds), `error` (standard error over seeds; NaN with one seed), `seeds`, `probes`.

    Raises:
        TracInError: the shapes do not match.

    Example:
        >>> table = change_in_loss([[1.0, 2.0]], {"en": [[1.5, 2.0]]}, ["de", "fr"])  # without English, German gets worse
        >>> table["probe_language"].tolist(), table["change"].tolist()
        (['de', 'fr'], [0.5, 0.0])
    """
    base, languages = np.asarray(whole, dtype=np.float64), np.asarray(probe_languages)
    rows = []
    for left_out in sorted(without):
        losses = np.asarray(without[left_out], dtype=np.float64)
        if losses.shape != base.shape or base.ndim != 2 or base.shape[1] != len(languages):
            raise TracInError(
                f"Without {left_out!r} there are {losses.shape} losses, with it {base.shape}, for {len(languages)} probes; both "
                "should be [seeds, probes] from the same seeds."
            )
        for own in np.unique(languages):
            mine = languages == own
            by_seed = (losses - base)[:, mine].mean(1)
            error = float(stats.sem(by_seed)) if len(by_seed) > 1 else np.nan
            rows.append((str(own), left_out, float(by_seed.mean()), error, len(by_seed), int(mine.sum())))
    return table_from(rows, ["probe_language", "train_language", "change", "error", "seeds", "probes"])


def doubly_centred(table: npt.ArrayLike) -> Floats:
    """Remove row and column means: [rows, columns]; every row and column then has mean 0.

    Example:
        >>> doubly_centred([[1, 0], [0, 1]]).tolist(), doubly_centred([[1, 2], [3, 4]]).tolist()
        ([[0.5, -0.5], [-0.5, 0.5]], [[0.0, 0.0], [0.0, 0.0]])
    """
    values = np.asarray(table, dtype=np.float64)
    centred: Floats = values - values.mean(0, keepdims=True) - values.mean(1, keepdims=True) + values.mean()
    return centred


def agreement_table(
    measured: pd.DataFrame, tables: Mapping[str, pd.DataFrame], value: str = "share", permutations: int = 999, seed: int = 0
) -> pd.DataFrame:
    """How well reliance tables predict the effect of leaving a language out.

    Args:
        measured: a table from `change_in_loss`.
        tables: name of a score -> its reliance table, with the same probe and train languages.
        value: the column to compare: share or lift.
        permutations: number of permutations of the train languages within each probe language, for the noise floor.
        seed: seed of the permutations.

    Returns:
        Columns `COLUMNS`, one row per score; correlations are over the table's cells. `centred_*` removes row and column means
        from both tables (shares and lifts then agree up to the lifts' scale), with Fisher's interval for a Pearson correlation
        with (rows - 1)(columns - 1) free cells. `floor` is the 95th percentile of permuted tables, `p` the fraction of them that
        correlates at least as well. `others_*` excludes the cells of the probe language's own train language, which can carry
        most of the agreement: it correlates residuals after fitting row and column effects to the other cells, with Fisher's
        interval for the remaining free cells. NaN if a table is constant.

    Raises:
        TracInError: a table lacks a cell, or has fewer than three probe or train languages.

    Example:
        >>> cells = [(own, train) for own in ("de", "en", "fr") for train in ("de", "en", "fr")]
        >>> measured = pd.DataFrame(cells, columns=["probe_language", "train_language"])
        >>> measured["change"] = [3, 1, 0, 1, 4, 0, 0, 1, 2]
        >>> table = agreement_table(measured, {"a score": measured.assign(share=measured["change"] / 10)})
        >>> table[["pearson", "centred_pearson"]].round(3).values.tolist()
        [[1.0, 1.0]]
    """
    change = _grid(measured, "change", "the measured changes")
    if min(change.shape) < 3:
        raise TracInError(
            f"There are {change.shape[0]} probe languages and {change.shape[1]} train languages; comparing tables without "
            "their row and column means needs at least three of each."
        )
    truth = doubly_centred(change.to_numpy())
    others = ~own_cells(change)
    residuals = _residuals(change.to_numpy(), others)
    generator = np.random.default_rng(seed)
    rows = []
    for name, table in tables.items():
        grid = _grid(table, value, f"the table of {name!r}").reindex(index=change.index, columns=change.columns)
        present = set(zip(table["probe_language"], table["train_language"], strict=True))
        if any((own, train) not in present for own in change.index for train in change.columns):
            raise TracInError(f"The table of {name!r} has no {value} for some of the measured languages.")
        cells = grid.to_numpy()
        if not np.isfinite(cells).all():  # such as an undefined lift: there is no agreement
            rows.append((name, cells.size, *[np.nan] * (len(COLUMNS) - 2)))
            continue
        centred = doubly_centred(cells)
        pearson = _pearson(centred, truth)
        shuffled = _permuted_pearson(cells, truth, permutations, generator)
        low, high = _fisher(pearson, (change.shape[0] - 1) * (change.shape[1] - 1))
        above = (1 + (shuffled >= pearson).sum()) / (1 + permutations) if np.isfinite(pearson) else np.nan
        others_pearson = _pearson(_residuals(cells, others), residuals)
        rows.append(
            (
                name,
                cells.size,
                _pearson(cells, change.to_numpy()),
                _pearson(stats.rankdata(cells), stats.rankdata(change.to_numpy())),
                pearson,
                low,
                high,
                float(np.nanquantile(shuffled, 0.95)) if np.isfinite(shuffled).any() else np.nan,
                float(above),
                others_pearson,
                *_fisher(others_pearson, others.sum() - sum(change.shape) + 1),
            )
        )
    return table_from(rows, COLUMNS)


def _grid(table: pd.DataFrame, value: str, what: str) -> pd.DataFrame:
    if table.duplicated(["probe_language", "train_language"]).any():
        raise TracInError(f"{what.capitalize()} should have one row per probe and train language; take one snapshot.")
    grid: pd.DataFrame = table.pivot(index="probe_language", columns="train_language", values=value)
    return grid


def _pearson(one: Floats, other: Floats) -> float:
    """NaN if either is constant."""
    if np.ptp(one) < 1e-12 or np.ptp(other) < 1e-12:
        return np.nan
    return float(stats.pearsonr(one.ravel(), other.ravel()).statistic)


def _residuals(cells: Floats, chosen: npt.NDArray[np.bool_]) -> Floats:
    """Residuals of the chosen cells after a least-squares fit of row and column effects: [chosen cells]."""
    row, column = np.nonzero(chosen)
    effects = np.concatenate([np.eye(cells.shape[0])[row], np.eye(cells.shape[1])[column]], axis=1)
    values = cells[chosen]
    residuals: Floats = values - effects @ np.linalg.lstsq(effects, values, rcond=None)[0]
    return residuals


def _permuted_pearson(cells: Floats, truth: Floats, permutations: int, generator: np.random.Generator) -> Floats:
    """Correlations after permuting the train languages within each probe language: [permutations]."""
    shuffled = generator.permuted(np.repeat(cells[None], permutations, axis=0), axis=2)
    rows, columns = shuffled.mean(2, keepdims=True), shuffled.mean(1, keepdims=True)
    centred = (shuffled - rows - columns + shuffled.mean((1, 2), keepdims=True)).reshape(permutations, -1)
    if np.ptp(truth) < 1e-12:
        return np.full(permutations, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)  # NaN is the right answer
        correlations: Floats = np.asarray(stats.pearsonr(centred, truth.reshape(1, -1), axis=1).statistic)
    return np.where(np.ptp(centred, axis=1) < 1e-12, np.nan, correlations)


def _fisher(correlation: float, cells: int) -> tuple[float, float]:
    """Fisher's 95 % interval of a correlation over a number of free cells."""
    if not np.isfinite(correlation) or cells <= 3:
        return np.nan, np.nan
    middle, width = np.arctanh(np.clip(correlation, -1 + 1e-12, 1 - 1e-12)), stats.norm.ppf(0.975) / np.sqrt(cells - 3)
    return float(np.tanh(middle - width)), float(np.tanh(middle + width))
