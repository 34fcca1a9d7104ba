"""Reliance: the train languages that a probe language's strongest influences come from.

`per_probe` returns each probe's value for each train language; `reliance_table` averages over the probes of a language, and adds
chance, lift and an interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from lightning_tracin.analysis.scores import Scores, require_k
from lightning_tracin.analysis.tables import own_language, table_from
from lightning_tracin.analysis.top_k import Strongest
from lightning_tracin.config import Measure, Sign, check_choice
from lightning_tracin.errors import TracInError

Floats = npt.NDArray[np.float64]

COLUMNS = ("probe_language", "train_language", "share", "chance", "lift", "low", "high", "probes")


@dataclass(frozen=True)
class Interval:
    """Settings of the bootstrap over probes.

    Example:
        >>> Interval(confidence=0.9)
        Interval(confidence=0.9, resamples=999, seed=0)
    """

    confidence: float = 0.95
    resamples: int = 999
    seed: int = 0


def per_probe(
    scores: Scores, train_languages: Sequence[str], k: int, sign: Sign = "positive", measure: Measure = "share"
) -> tuple[list[str], Floats]:
    """Each probe's value for each train language.

    Args:
        scores: influence [train, probes].
        train_languages: language of each train sample.
        k: number of strongest train samples to count (for `"share"`).
        sign: `"positive"` for proponents, `"negative"` for opponents.
        measure: `"share"` of the k strongest samples (Choenni et al. 2023); `"mass"`, the share of the total positive (or
            negative) influence; `"mean"`, the mean influence of a sample.

    Returns:
        The train languages in alphabetical order, and values [probes, languages]; NaN if a probe has no influence of that
        sign, so that shares are undefined.

    Raises:
        TracInError: `k` is not between 1 and the number of train samples, or an option is invalid.

    Example:
        >>> scores, languages = np.array([[3.0], [1.0], [-2.0]]), ["de", "de", "en"]
        >>> per_probe(scores, languages, k=1)
        (['de', 'en'], array([[1., 0.]]))
        >>> per_probe(scores, languages, k=1, measure="mean")[1].tolist()
        [[2.0, -2.0]]
    """
    tally = tally_of(scores, train_languages, k, sign, measure)
    return tally.languages, tally.values()


def tally_of(
    scores: Scores, train_languages: Sequence[str], k: int, sign: Sign = "positive", measure: Measure = "share"
) -> Tally:
    """The tally of a whole matrix of scores, which also knows chance; arguments as in `per_probe`."""
    tally = Tally(train_languages, k, sign, measure)
    tally.add(np.arange(len(scores)), scores)
    return tally


class Tally:
    """Each probe's value for each train language, from scores that arrive block by block.

    Memory does not grow with the train samples, except for a language number each. Ranks do not depend on the blocks; sums
    (`"mass"`, `"mean"`) are added in block order, so other blocks can change the last digits of float64.

    Args:
        train_languages: see `per_probe`.
        k: see `per_probe`.
        sign: see `per_probe`.
        measure: see `per_probe`.

    Raises:
        TracInError: see `per_probe`.
    """

    def __init__(self, train_languages: Sequence[str], k: int, sign: Sign = "positive", measure: Measure = "share") -> None:
        check_choice("measure", measure, Measure)
        check_choice("sign", sign, Sign)
        if measure == "share":
            require_k(k, len(train_languages))
        elif measure == "mean" and sign == "negative":
            raise TracInError("measure='mean' averages all influence of a language, so it has no sign; leave `sign` out.")
        names, self._codes, self._counts = np.unique(np.asarray(train_languages), return_inverse=True, return_counts=True)
        self.languages = [str(name) for name in names]
        self._sign, self._measure = sign, measure
        self._strongest = Strongest(k, sign)
        self._felt: npt.NDArray[np.bool_] | bool = False  # whether a probe has any influence: [probes]
        self._sums: Floats | float = 0.0  # a probe's influence (of the sign, for "mass") by train language: [probes, languages]

    def add(self, train: npt.NDArray[np.int64], scores: Scores) -> None:
        """Add the scores of some train samples: [len(train), probes]."""
        if self._measure == "share":
            self._strongest.add(train, scores)
            self._felt = self._felt | (scores != 0).any(0)
        else:
            part = scores
            if self._measure == "mass":
                part = np.clip(scores if self._sign == "positive" else -scores, 0, None)
            self._sums = self._sums + part.T @ np.eye(len(self.languages))[self._codes[train]]

    def values(self) -> Floats:
        """Each probe's value for each train language: [probes, languages]; NaN if a probe has no influence of that sign."""
        if self._measure == "share":
            top, _ = self._strongest.found()
            (k, probes), languages = top.shape, len(self.languages)
            cells = np.arange(probes) * languages + self._codes[top]
            counted = np.bincount(cells.ravel(), minlength=probes * languages).reshape(probes, languages)
            return np.where(np.asarray(self._felt)[:, None], counted / k, np.nan)
        sums: Floats = np.asarray(self._sums)
        if self._measure == "mean":
            return sums / self._counts
        whole: Floats = sums.sum(1, keepdims=True)
        return np.divide(sums, whole, out=np.full_like(sums, np.nan), where=whole > 0)

    def chance(self) -> Floats:
        """Expected values for random ranks: [probes, languages].

        For `"share"` and `"mass"`, this is n(language) / N; for `"mean"`, the probe's mean over all train samples.
        """
        size = int(self._counts.sum())
        if self._measure == "mean":
            return np.repeat(np.asarray(self._sums).sum(1, keepdims=True) / size, len(self.languages), axis=1)
        probes = np.shape(self._felt if self._measure == "share" else self._sums)[0]
        return np.repeat((self._counts / size)[None, :], probes, axis=0)

    def table(self, probe_languages: Sequence[str], interval: Interval | None = None) -> pd.DataFrame:
        """The reliance table; see `reliance_table`."""
        return table_of(self.languages, self.values(), self.chance(), probe_languages, interval)


def reliance_table(
    scores: Scores,
    train_languages: Sequence[str],
    probe_languages: Sequence[str],
    k: int,
    sign: Sign = "positive",
    measure: Measure = "share",
    interval: Interval | None = None,
) -> pd.DataFrame:
    """Reliance of every probe language on every train language.

    Args:
        scores: influence [train, probes].
        train_languages: language of each train sample.
        probe_languages: language of each probe.
        k: number of strongest train samples to count.
        sign: proponents or opponents.
        measure: see `per_probe`.
        interval: settings of the bootstrap over a language's probes (percentile method, scipy); None means the defaults.

    Returns:
        Columns `COLUMNS`. `share` is the measure's mean over the language's probes, `low` and `high` its interval (NaN with
        fewer than two probes), `lift` the share divided by the train language's mean share over the probe languages (NaN if
        that mean is not positive), `probes` the number of probes with a value.

    Example:
        >>> scores = np.array([[2.0, 0.5], [1.0, 0.1], [0.0, 0.9], [0.1, 0.8]])  # probes: one German, one English
        >>> table = reliance_table(scores, ["de", "de", "en", "en"], ["de", "en"], k=2)
        >>> table[["probe_language", "train_language", "share", "chance", "lift"]].values.tolist()[:2]
        [['de', 'de', 1.0, 0.5, 2.0], ['de', 'en', 0.0, 0.5, 0.0]]
    """
    return tally_of(scores, train_languages, k, sign, measure).table(probe_languages, interval)


def table_of(
    languages: Sequence[str],
    values: Floats,
    expected: Floats,
    probe_languages: Sequence[str],
    interval: Interval | None = None,
) -> pd.DataFrame:
    """A reliance table from each probe's values, with the columns of `reliance_table`.

    Args:
        languages: the train languages.
        values: values of each probe, [probes, languages]; NaN if a probe has none.
        expected: chance, [probes, languages].
        probe_languages: language of each probe.
        interval: settings of the bootstrap over a language's probes.
    """
    rows: list[tuple[Any, ...]] = []
    for probe_language in sorted(set(probe_languages)):
        mine = np.asarray([language == probe_language for language in probe_languages])
        usable = mine & np.isfinite(values).all(1)
        low, high = bootstrap_mean(values[usable], interval or Interval())
        for column, train_language in enumerate(languages):
            share = values[usable, column].mean() if usable.any() else np.nan
            chance = expected[mine, column].mean()
            rows.append((probe_language, train_language, share, chance, np.nan, low[column], high[column], int(usable.sum())))
    table = table_from(rows, COLUMNS)
    average = table.groupby("train_language")["share"].transform("mean")
    table["lift"] = (table["share"] / average).where(average > 0)
    return table


def by_unit(values: Floats, units: Sequence[str | None]) -> Floats:
    """Average over the probes of each unit, such as the translations of one item, which are not independent: [units, columns].

    Args:
        values: values of each probe, [probes, columns]; NaN is ignored.
        units: unit of each probe; None makes the probe a unit of its own.

    Example:
        >>> by_unit(np.array([[1.0], [3.0], [5.0]]), ["item 1", "item 1", None]).tolist()
        [[2.0], [5.0]]
    """
    names = [f"probe {index}" if unit is None else f"unit {unit}" for index, unit in enumerate(units)]
    means: Floats = pd.DataFrame(values).groupby(names, sort=False).mean().to_numpy()
    return means


def bootstrap_mean(values: Floats, settings: Interval) -> tuple[Floats, Floats]:
    """Percentile interval of the mean over probes: two arrays [languages]; NaN with fewer than two probes.

    Example:
        >>> low, high = bootstrap_mean(np.array([[0.0], [1.0], [1.0], [0.0]]), Interval())
        >>> low.tolist(), high.tolist()
        ([0.0], [1.0])
    """
    if len(values) < 2:
        nothing = np.full(values.shape[1], np.nan)
        return nothing, nothing
    found = stats.bootstrap(
        (values,),
        np.mean,
        axis=0,
        method="percentile",
        confidence_level=settings.confidence,
        n_resamples=settings.resamples,
        rng=np.random.default_rng(settings.seed),
    ).confidence_interval
    return np.asarray(found.low), np.asarray(found.high)


def cross_lingual(table: pd.DataFrame) -> pd.Series[float]:
    """Cross-lingual reliance of each probe language: 1 - the share of its own language.

    It is 1 by construction for a language without train samples; `mean_cross_lingual` leaves such languages out.

    Example:
        >>> shares = {"train_language": ["de", "de"], "share": [0.75, 0.5]}
        >>> cross_lingual(pd.DataFrame({"probe_language": ["de", "fr"], **shares})).to_dict()
        {'de': 0.25, 'fr': 1.0}
    """
    own: pd.Series[float] = own_language(table).set_index("probe_language")["share"]
    return own.reindex(sorted(table["probe_language"].unique()), fill_value=0.0).rsub(1)


def mean_cross_lingual(table: pd.DataFrame) -> float:
    """Mean cross-lingual reliance over the probe languages that have train samples (over all, if none has).

    Example:
        >>> shares = {"train_language": ["de", "de"], "share": [0.75, 0.5]}
        >>> mean_cross_lingual(pd.DataFrame({"probe_language": ["de", "fr"], **shares}))
        0.25
    """
    values = cross_lingual(table)
    trained = values[values.index.isin(own_language(table)["probe_language"])]
    return float((trained if len(trained) else values).mean())
