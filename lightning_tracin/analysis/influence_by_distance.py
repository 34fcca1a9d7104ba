"""Does influence say more of two languages than their distance? Correlations and a regression, tested by exchanging languages.

The cells of a table are not independent: those of one language share it. So distances are compared with what they would explain
if the languages changed places with each other (the quadratic assignment procedure; for several distances at once: Krackhardt
1988, "Predicting with networks", Social Networks 10, 359-381). A permutation exchanges a language as a probe and a train
language at once, so that a language's own cell stays its own, and the distances keep their relation to each other.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from itertools import permutations as every_permutation

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from lightning_tracin.analysis.contrast import contrast_of
from lightning_tracin.analysis.language_distances import DISTANCES, distance_table, unknown_languages
from lightning_tracin.analysis.leave_one_out import grid
from lightning_tracin.analysis.tables import own_cells, table_from
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.languages import own_languages

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

COLUMNS = ("of", "distance", "cells", "pearson", "pearson_p", "spearman", "spearman_p", "beta", "beta_p", "r2", "r2_p")

#: What is explained: the values of other languages' cells, and these without row and column effects.
KINDS = ("others", "contrast")

#: The distances in the regression: whether languages are of one family follows from how far they are in the tree.
_REGRESSED = tuple(name for name in DISTANCES if name != "same_family")

#: Fewest languages: with fewer, there are too few cells, or permutations.
FEWEST = 4

_TINY = 1e-9


def influence_by_distance(table: pd.DataFrame, distances: pd.DataFrame, permutations: int = 999, seed: int = 0) -> pd.DataFrame:
    """How much of the influence of other languages their distances explain.

    Args:
        table: `probe_language`, `train_language` and `value`, a row for each pair.
        distances: as from `language_distances.distance_table`, of all these languages as probe and as train languages.
        permutations: how many to draw; if there are no more than that in all, each is taken once, and p is exact.
        seed: of the draw.

    Returns:
        A row for each of `KINDS` and distance, with `COLUMNS`: number of `cells`; correlations with the distance, and p, the
        part of the permutations whose correlation is at least as far from 0; `beta`, the coefficient in a regression on all
        distances but `same_family` at once, in standard deviations; `r2`, the part of the variance that they explain together,
        adjusted for their number, and its p. Where `r2` is small, influence says what distance does not. NaN where a
        distance does not vary or follows from others, and for a handful of cells.

    Raises:
        TracInError: there are fewer than four languages, or a distance is not known.

    Example:
        >>> names = ["da", "ko", "ru", "sv"]
        >>> near = {("da", "sv"), ("sv", "da")}
        >>> pairs = [(one, other, float((one, other) in near)) for one in names for other in names]
        >>> table = pd.DataFrame(pairs, columns=["probe_language", "train_language", "value"])
        >>> distances = table.rename(columns={"value": "same_family"}).assign(genealogical=0.0, kilometres=0.0, same_script=0.0)
        >>> found = influence_by_distance(table, distances).set_index(["of", "distance"])
        >>> found.loc[("others", "same_family"), ["pearson", "pearson_p"]].round(3).tolist()  # 4 of 24 keep the two apart or swap
        [1.0, 0.167]
    """
    probes, trains = sorted(table["probe_language"].unique()), sorted(table["train_language"].unique())
    own_of = own_languages(probes, trains)
    languages = sorted({*trains, *(own_of.get(probe, probe) for probe in probes)})
    if len(languages) < FEWEST:
        raise TracInError(f"There are {len(languages)} languages; exchanging them says something of {FEWEST} or more.")
    values = grid(table, "value", probes, trains)
    others = ~own_cells(pd.DataFrame(index=probes, columns=trains)) & np.isfinite(values)
    apart = np.stack([_between(distances, name, languages) for name in DISTANCES])
    rows = [languages.index(own_of.get(probe, probe)) for probe in probes]
    columns = [languages.index(train) for train in trains]
    orders = np.stack([np.arange(len(languages)), *_orders(len(languages), permutations, seed)])  # the first is the data
    cells = {"others": values, "contrast": contrast_of(values, ~others)}
    found = []
    for kind in KINDS:
        counted = others & np.isfinite(cells[kind])
        permuted = np.stack([apart[:, order][:, :, order][:, rows][:, :, columns][:, counted] for order in orders])
        measured = cells[kind][counted]
        found += _lines(kind, measured, permuted, exact=len(orders) - 1 == math.factorial(len(languages)))
    return table_from(found, COLUMNS)


def influence_by_known_distance(table: pd.DataFrame, permutations: int = 999) -> pd.DataFrame:
    """`influence_by_distance` of the languages whose distances are known.

    Args:
        table: as for `influence_by_distance`.
        permutations: likewise.

    Returns:
        The same table; `attrs["left_out"]` lists the languages that are not in it, and a warning names them.

    Raises:
        TracInError: fewer than four languages are left.
        MissingPackageError: qwanqwa is not installed.
    """
    names = sorted({*table["probe_language"], *table["train_language"]})
    distances = distance_table(names, names)
    left_out = unknown_languages(distances)
    if left_out:
        warnings.warn(
            f"The family or place of {', '.join(map(repr, left_out))} is not known, so influence is compared with distance "
            f"without {'them' if len(left_out) > 1 else 'it'}.",
            stacklevel=3,
        )
    kept = table[~table["probe_language"].isin(left_out) & ~table["train_language"].isin(left_out)]
    found = influence_by_distance(kept, distances, permutations)
    found.attrs["left_out"] = left_out
    return found


def _between(distances: pd.DataFrame, name: str, languages: Sequence[str]) -> Floats:
    """The distances between all languages, [languages, languages]."""
    cells = grid(distances[["probe_language", "train_language", name]], name, languages, languages)
    if not np.isfinite(cells).all():
        unknown = [one for one, line in zip(languages, cells, strict=True) if not np.isfinite(line).all()]
        raise TracInError(f"{name} is not known of {', '.join(map(repr, unknown))}; leave these languages out of both tables.")
    return cells


def _orders(count: int, most: int, seed: int) -> Iterator[Integers]:
    """All permutations of so many languages, or random ones if there are too many."""
    if math.factorial(count) <= most:
        yield from (np.asarray(order) for order in every_permutation(range(count)))
    else:
        generator = np.random.default_rng(seed)
        yield from (generator.permutation(count) for _ in range(most))


def _lines(kind: str, measured: Floats, permuted: Floats, exact: bool) -> list[tuple[object, ...]]:
    """The rows of a kind; `permuted` is [1 + permutations, distances, cells]."""
    unknown = np.full(permuted.shape[:2], np.nan)
    if len(measured) < len(DISTANCES) + 2 or np.ptp(measured) < _TINY * max(1.0, float(np.abs(measured).max(initial=0.0))):
        pearson, spearman, beta, r2 = unknown, unknown, unknown, unknown[:, 0]
    else:
        pearson = _correlations(measured, permuted)
        spearman = _correlations(stats.rankdata(measured), stats.rankdata(permuted, axis=-1))
        beta, r2 = _regressions(measured, permuted)
    return [
        (
            kind,
            name,
            len(measured),
            pearson[0, at],
            _p(pearson[:, at], exact),
            spearman[0, at],
            _p(spearman[:, at], exact),
            beta[0, at],
            _p(beta[:, at], exact),
            r2[0],
            _p(r2, exact, two_sided=False),
        )
        for at, name in enumerate(DISTANCES)
    ]


def _standardised(values: Floats) -> Floats:
    """Along the last dimension, with length 1; NaN where values do not vary."""
    centred = values - values.mean(-1, keepdims=True)
    size = np.linalg.norm(centred, axis=-1, keepdims=True)
    found: Floats = np.divide(
        centred, size, out=np.full_like(centred, np.nan), where=size > _TINY * np.linalg.norm(values, axis=-1, keepdims=True)
    )
    return found


def _correlations(one: Floats, many: Floats) -> Floats:
    found: Floats = _standardised(many) @ _standardised(one)
    return found


def _regressions(measured: Floats, permuted: Floats) -> tuple[Floats, Floats]:
    """Standardised coefficients [tables, distances] and adjusted R squared [tables] of least squares on all distances at once."""
    wanted, each = _standardised(measured), _standardised(permuted)
    usable = _independent(each[0])  # positions among the distances
    beta = np.full(permuted.shape[:2], np.nan)
    r2 = np.full(len(permuted), np.nan)
    if not usable:
        return beta, r2
    free = len(measured) - len(usable) - 1
    for table, predictors in enumerate(np.nan_to_num(each[:, usable])):
        coefficients, *_ = np.linalg.lstsq(predictors.T, wanted, rcond=None)
        left = float(np.square(wanted - predictors.T @ coefficients).sum())
        beta[table, usable] = coefficients
        r2[table] = 1 - left * (len(measured) - 1) / free if free > 0 else np.nan
    return beta, r2


def _independent(predictors: Floats) -> list[int]:
    """The distances that vary and do not follow from those before them."""
    kept: list[int] = []
    for at, line in enumerate(predictors):
        if (
            DISTANCES[at] in _REGRESSED
            and np.isfinite(line).all()
            and np.linalg.matrix_rank(predictors[[*kept, at]], tol=1e-8) > len(kept)
        ):
            kept.append(at)
    return kept


def _p(found: Floats, exact: bool, two_sided: bool = True) -> float:
    """The part of the permutations that are at least as far from 0 as the data, the first."""
    if not np.isfinite(found[0]):
        return np.nan
    sizes = np.abs(found) if two_sided else found
    known = sizes[1:][np.isfinite(sizes[1:])]
    more = int((known >= sizes[0] - _TINY).sum())
    return more / len(known) if exact else (1 + more) / (1 + len(known))
