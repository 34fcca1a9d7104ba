"""From scores and languages to reliance: which train languages a probe language's strongest influences come from.

`per_probe` gives each probe's value for each train language; `reliance_table` averages over the probes of a language and
sets chance, lift and an interval beside it.
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
from lightning_tracin.analysis.top_k import Strongest
from lightning_tracin.config import Measure, Sign, check_choice
from lightning_tracin.errors import TracInError

Floats = npt.NDArray[np.float64]

COLUMNS = ("probe_language", "train_language", "share", "chance", "lift", "low", "high", "probes")


@dataclass(frozen=True)
class Interval:
    """How the bootstrap over probes is done."""

    confidence: float = 0.95
    resamples: int = 999
    seed: int = 0


def per_probe(
    scores: Scores, train_languages: Sequence[str], k: int, sign: Sign = "positive", measure: Measure = "share"
) -> tuple[list[str], Floats]:
    """Each probe's value for each train language.

    Args:
        scores: influence [train, probes].
        train_languages: of each train sample.
        k: how many of the strongest train samples count (for `"share"`).
        sign: `"positive"` for proponents, `"negative"` for opponents.
        measure: `"share"` of the k strongest (Choenni et al. 2023), by rank; `"mass"`, the share of the whole positive (or
            negative) influence; `"mean"`, the mean influence of a sample.

    Returns:
        The train languages in alphabetical order, and values [probes, languages]; NaN where a probe has no influence of
        that sign at all, so that no share of it exists.

    Raises:
        TracInError: `k` is not between 1 and the number of train samples, or a choice is unknown.
    """
    tally = tally_of(scores, train_languages, k, sign, measure)
    return tally.languages, tally.values()


def tally_of(
    scores: Scores, train_languages: Sequence[str], k: int, sign: Sign = "positive", measure: Measure = "share"
) -> Tally:
    """The same with what is expected by chance; see `per_probe`."""
    tally = Tally(train_languages, k, sign, measure)
    tally.add(np.arange(len(scores)), scores)
    return tally


class Tally:
    """Each probe's value for each train language, from scores that come block by block.

    What is held does not grow with the train samples, but for the number of each one's language. Ranks do not depend on the
    blocks; sums (`"mass"`, `"mean"`) are taken in their order, so that other blocks can differ in the last digits of float64.

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
        self._sums: Floats | float = 0.0  # of a probe's influence, or that of the sign, by train language: [probes, languages]

    def add(self, train: npt.NDArray[np.int64], scores: Scores) -> None:
        """Take a block: the scores of some train samples, [len(train), probes]."""
        if self._measure == "share":
            self._strongest.add(train, scores)
            self._felt = self._felt | (scores != 0).any(0)
        else:
            part = scores
            if self._measure == "mass":
                part = np.clip(scores if self._sign == "positive" else -scores, 0, None)
            self._sums = self._sums + part.T @ np.eye(len(self.languages))[self._codes[train]]

    def values(self) -> Floats:
        """Each probe's value for each train language: [probes, languages]; NaN where a probe has no influence of that sign."""
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
        """What random ranks would give each train language: its part of the samples (or the overall mean): [probes, languages].

        For `"share"` and `"mass"` that is n(language) / N; for `"mean"` the probe's mean over all train samples.
        """
        size = int(self._counts.sum())
        if self._measure == "mean":
            return np.repeat(np.asarray(self._sums).sum(1, keepdims=True) / size, len(self.languages), axis=1)
        probes = np.shape(self._felt if self._measure == "share" else self._sums)[0]
        return np.repeat((self._counts / size)[None, :], probes, axis=0)

    def table(self, probe_languages: Sequence[str], interval: Interval | None = None) -> pd.DataFrame:
        """Reliance of every probe language on every train language; see `reliance_table`."""
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
        train_languages: of each train sample.
        probe_languages: of each probe.
        k: how many of the strongest train samples count.
        sign: proponents or opponents.
        measure: see `per_probe`.
        interval: the bootstrap over a language's probes (percentile method, scipy); None takes 95 %, 999 resamples.

    Returns:
        Columns `COLUMNS`: `share` is the measure's mean over the language's probes, `low` and `high` its interval (NaN with
        fewer than two probes), `lift` the share over the train language's mean share over the probe languages (NaN where
        that mean is not positive), `probes` how many probes counted.
    """
    return tally_of(scores, train_languages, k, sign, measure).table(probe_languages, interval)


def table_of(
    languages: Sequence[str],
    values: Floats,
    expected: Floats,
    probe_languages: Sequence[str],
    interval: Interval | None = None,
) -> pd.DataFrame:
    """A reliance table from each probe's values; columns as of `reliance_table`.

    Args:
        languages: the train languages.
        values: of each probe, [probes, languages]; NaN where a probe has none.
        expected: chance, [probes, languages].
        probe_languages: of each probe.
        interval: the bootstrap over a language's probes.
    """
    settings = interval or Interval()
    rows: list[dict[str, Any]] = []
    for probe_language in sorted(set(probe_languages)):
        mine = np.asarray([language == probe_language for language in probe_languages])
        usable = mine & np.isfinite(values).all(1)
        low, high = bootstrap_mean(values[usable], settings)
        for column, train_language in enumerate(languages):
            rows.append(
                {
                    "probe_language": probe_language,
                    "train_language": train_language,
                    "share": values[usable, column].mean() if usable.any() else np.nan,
                    "chance": expected[mine, column].mean(),
                    "low": low[column],
                    "high": high[column],
                    "probes": int(usable.sum()),
                }
            )
    table: pd.DataFrame = pd.DataFrame(rows, columns=list(COLUMNS))
    average = table.groupby("train_language")["share"].transform("mean")
    table["lift"] = (table["share"] / average).where(average > 0)
    return table


def by_unit(values: Floats, units: Sequence[str | None]) -> Floats:
    """Means over the probes of a unit, such as the translations of one item, which do not vary independently: [units, columns].

    Args:
        values: of each probe, [probes, columns]; NaN does not count.
        units: of each probe; one that has none is a unit of its own.
    """
    names = [f"probe {index}" if unit is None else f"unit {unit}" for index, unit in enumerate(units)]
    means: Floats = pd.DataFrame(values).groupby(names, sort=False).mean().to_numpy()
    return means


def bootstrap_mean(values: Floats, settings: Interval) -> tuple[Floats, Floats]:
    """Percentile interval of the mean over probes: [languages] twice."""
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

    A language without train samples relies on others by construction (1); `mean_cross_lingual` leaves it out.
    """
    own: pd.Series[float] = table[table["probe_language"] == table["train_language"]].set_index("probe_language")["share"]
    return own.reindex(sorted(table["probe_language"].unique()), fill_value=0.0).rsub(1)


def mean_cross_lingual(table: pd.DataFrame) -> float:
    """Mean of the cross-lingual reliance over the probe languages that have train samples (over all, if none has)."""
    values = cross_lingual(table)
    trained = values[values.index.isin(table["train_language"].unique())]
    return float((trained if len(trained) else values).mean())
