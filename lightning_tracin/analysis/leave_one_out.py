"""Leave one language out: does a reliance table say what losing a language does to each probe language?

Raw shares mix how hard or long a train language's samples are with what one probe language takes from them, so tables are
compared as they are and with row and column means taken out.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from lightning_tracin.analysis.reliance import Floats
from lightning_tracin.errors import TracInError

COLUMNS = (
    "score",
    "cells",
    "pearson",
    "spearman",
    "centred_pearson",
    "centred_low",
    "centred_high",
    "floor",
    "p",
    "others_pearson",
    "others_low",
    "others_high",
)


def change_in_loss(whole: npt.ArrayLike, without: Mapping[str, npt.ArrayLike], probe_languages: npt.ArrayLike) -> pd.DataFrame:
    """What leaving each train language out does to the loss in each probe language.

    Args:
        whole: losses of fits on all train samples, [seeds, probes].
        without: train language -> losses of fits without it from the same seeds, [seeds, probes].
        probe_languages: of each probe.

    Returns:
        One line for each probe language and train language left out: `change` (mean over seeds of the mean loss without it minus
        with it), `error` (its standard error over seeds; NaN with one seed), `seeds`, `probes`.

    Raises:
        TracInError: the shapes do not fit.
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
    table: pd.DataFrame = pd.DataFrame(rows, columns=["probe_language", "train_language", "change", "error", "seeds", "probes"])
    return table


def doubly_centred(table: npt.ArrayLike) -> Floats:
    """A table with its row means and column means taken out: [rows, columns], all of whose rows and columns have mean 0."""
    values = np.asarray(table, dtype=np.float64)
    centred: Floats = values - values.mean(0, keepdims=True) - values.mean(1, keepdims=True) + values.mean()
    return centred


def agreement_table(
    measured: pd.DataFrame, tables: Mapping[str, pd.DataFrame], value: str = "share", permutations: int = 999, seed: int = 0
) -> pd.DataFrame:
    """How well tables say what leaving a language out does.

    Args:
        measured: as from `change_in_loss`.
        tables: name of a score -> its reliance table, with the same probe and train languages.
        value: the column of these tables to compare: share, or lift.
        permutations: of the train languages within each probe language, by which the noise floor is found.
        seed: of the permutations.

    Returns:
        Columns `COLUMNS`, a line for each score. Correlations over the cells; `centred_*` with row and column means taken out of
        both (which is the same for shares and lifts up to the lifts' scale). The interval is Fisher's for a Pearson correlation
        with (rows - 1)(columns - 1) free cells; `floor` is the 95th percentile of permuted tables, `p` the part of them that
        correlates as well or better. `others_*` leave the cells of a probe language's own train language aside, which can carry
        most of the agreement: the correlation of what row and column effects, fitted to the other cells, do not explain, with
        Fisher's interval for as many free cells. NaN where a table does not vary.

    Raises:
        TracInError: a table lacks a cell, or there are fewer than three languages on a side.
    """
    change = _grid(measured, "change", "the measured changes")
    if min(change.shape) < 3:
        raise TracInError(
            f"There are {change.shape[0]} probe languages and {change.shape[1]} train languages; a comparison of tables without "
            "their row and column means needs three of each."
        )
    truth = doubly_centred(change.to_numpy())
    others = np.asarray([[own != train for train in change.columns] for own in change.index])
    rest = _without_effects(change.to_numpy(), others)
    generator = np.random.default_rng(seed)
    rows = []
    for name, table in tables.items():
        found = _grid(table, value, f"the table of {name!r}").reindex(index=change.index, columns=change.columns)
        there = set(zip(table["probe_language"], table["train_language"], strict=True))
        if any((own, train) not in there for own in change.index for train in change.columns):
            raise TracInError(f"The table of {name!r} has no {value} for some of the measured languages.")
        cells = found.to_numpy()
        if not np.isfinite(cells).all():  # such as a lift over nothing: there is no agreement to speak of
            rows.append((name, cells.size, *[np.nan] * (len(COLUMNS) - 2)))
            continue
        centred = doubly_centred(cells)
        pearson = _pearson(centred, truth)
        shuffled = _permuted_pearson(cells, truth, permutations, generator)
        low, high = _fisher(pearson, (change.shape[0] - 1) * (change.shape[1] - 1))
        above = (1 + (shuffled >= pearson).sum()) / (1 + permutations) if np.isfinite(pearson) else np.nan
        beside = _pearson(_without_effects(cells, others), rest)
        rows.append(
            (
                name,
                cells.size,
                _pearson(cells, change.to_numpy()),
                _pearson(_ranks(cells), _ranks(change.to_numpy())),
                pearson,
                low,
                high,
                float(np.nanquantile(shuffled, 0.95)) if np.isfinite(shuffled).any() else np.nan,
                float(above),
                beside,
                *_fisher(beside, others.sum() - sum(change.shape) + 1),
            )
        )
    agreement: pd.DataFrame = pd.DataFrame(rows, columns=list(COLUMNS))
    return agreement


def _grid(table: pd.DataFrame, value: str, what: str) -> pd.DataFrame:
    if table.duplicated(["probe_language", "train_language"]).any():
        raise TracInError(f"{what.capitalize()} should have one line for each probe and train language; take one snapshot.")
    grid: pd.DataFrame = table.pivot(index="probe_language", columns="train_language", values=value)
    return grid


def _pearson(one: Floats, other: Floats) -> float:
    """NaN where one of the two does not vary."""
    if np.ptp(one) < 1e-12 or np.ptp(other) < 1e-12:
        return np.nan
    return float(stats.pearsonr(one.ravel(), other.ravel()).statistic)


def _without_effects(cells: Floats, chosen: npt.NDArray[np.bool_]) -> Floats:
    """The chosen cells of a table without the row and column effects that fit them best: [chosen cells]."""
    row, column = np.nonzero(chosen)
    effects = np.concatenate([np.eye(cells.shape[0])[row], np.eye(cells.shape[1])[column]], axis=1)
    values = cells[chosen]
    rest: Floats = values - effects @ np.linalg.lstsq(effects, values, rcond=None)[0]
    return rest


def _permuted_pearson(cells: Floats, truth: Floats, permutations: int, generator: np.random.Generator) -> Floats:
    """Correlations of tables whose train languages are permuted within each probe language: [permutations]."""
    shuffled = generator.permuted(np.repeat(cells[None], permutations, axis=0), axis=2)
    rows, columns = shuffled.mean(2, keepdims=True), shuffled.mean(1, keepdims=True)
    centred = (shuffled - rows - columns + shuffled.mean((1, 2), keepdims=True)).reshape(permutations, -1)
    if np.ptp(truth) < 1e-12:
        return np.full(permutations, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)  # NaN is the answer there
        found: Floats = np.asarray(stats.pearsonr(centred, truth.reshape(1, -1), axis=1).statistic)
    return np.where(np.ptp(centred, axis=1) < 1e-12, np.nan, found)


def _ranks(values: Floats) -> Floats:
    ranks: Floats = stats.rankdata(values).reshape(values.shape)
    return ranks


def _fisher(correlation: float, cells: int) -> tuple[float, float]:
    """Fisher's 95 % interval of a correlation of so many free cells."""
    if not np.isfinite(correlation) or cells <= 3:
        return np.nan, np.nan
    middle, width = np.arctanh(np.clip(correlation, -1 + 1e-12, 1 - 1e-12)), stats.norm.ppf(0.975) / np.sqrt(cells - 3)
    return float(np.tanh(middle - width)), float(np.tanh(middle + width))
