"""What the probes of each language get from each train language: values, contrasts, chance and intervals.

A tally (`tally_of`) has each probe's value for each train language; `reliance_table` averages over the probes of a language. The
headline is the signed influence of a language, `measure="sum"` or `"mean"`; shares of the strongest k are what Choenni et al.
(2023) count.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from lightning_tracin.analysis.contrast import contrast_of
from lightning_tracin.analysis.resampling import Interval, checked_interval
from lightning_tracin.analysis.scores import Scores
from lightning_tracin.analysis.tables import own_cells, own_language, table_from
from lightning_tracin.analysis.tally import SIGNED, Tally, TrainLanguages
from lightning_tracin.config import Measure, Sign

Floats = npt.NDArray[np.float64]

COLUMNS = (
    "probe_language",
    "train_language",
    "value",
    "contrast",
    "null",
    "low",
    "high",
    "contrast_low",
    "contrast_high",
    "lift",
    "probes",
)


def tally_of(
    scores: Scores,
    train_languages: TrainLanguages | Sequence[str],
    k: int,
    sign: Sign = "positive",
    measure: Measure = "share",
) -> Tally:
    """The tally of a whole matrix of scores: each probe's value for each train language, and chance.

    Args:
        scores: influence [train, probes].
        train_languages: language of each train sample.
        k: number of strongest train samples to count (for `"share"`).
        sign: see `tally.Tally`.
        measure: see `tally.Tally`.

    Raises:
        TracInError: `k` is not between 1 and the number of train samples, or an option is invalid.

    Example:
        >>> scores, languages = np.array([[3.0], [1.0], [-2.0]]), ["de", "de", "en"]
        >>> tally_of(scores, languages, k=1).values().tolist()
        [[1.0, 0.0]]
        >>> tally_of(scores, languages, k=1, measure="mean").values().tolist()
        [[2.0, -2.0]]
    """
    tally = Tally(train_languages, k, sign, measure)
    tally.add(np.arange(len(scores)), scores)
    return tally


def reliance_table(
    scores: Scores,
    train_languages: TrainLanguages | Sequence[str],
    probe_languages: Sequence[str],
    k: int,
    sign: Sign = "positive",
    measure: Measure = "share",
    interval: Interval | None = None,
    probe_units: Sequence[Hashable] | None = None,
) -> pd.DataFrame:
    """What every probe language gets from every train language.

    Args:
        scores: influence [train, probes].
        train_languages: language of each train sample; `TrainLanguages.of_table` adds their labels and items.
        probe_languages: language of each probe.
        k: number of strongest train samples to count.
        sign: proponents or opponents.
        measure: see `tally.Tally`.
        interval: settings of the bootstrap over train samples and probes; None means the defaults.
        probe_units: probes that are resampled together, such as the translations of an item.

    Returns:
        Columns `COLUMNS`; see `table_of`.

    Raises:
        TracInError: see `tally_of`.

    Example:
        >>> scores = np.array([[2.0, 0.5], [1.0, 0.1], [0.0, 0.9], [0.1, 0.8]])  # probes: one German, one English
        >>> table = reliance_table(scores, ["de", "de", "en", "en"], ["de", "en"], k=2)
        >>> table[["probe_language", "train_language", "value", "null", "lift"]].values.tolist()[:2]
        [['de', 'de', 1.0, 0.5, 2.0], ['de', 'en', 0.0, 0.5, 0.0]]
    """
    return table_of([tally_of(scores, train_languages, k, sign, measure)], probe_languages, interval, probe_units)


def table_of(
    tallies: Sequence[Tally],
    probe_languages: Sequence[str],
    interval: Interval | None = None,
    probe_units: Sequence[Hashable] | None = None,
) -> pd.DataFrame:
    """The table of a tally, or of those of several seeds with the same samples.

    Args:
        tallies: one for each seed.
        probe_languages: language of each probe.
        interval: settings of the bootstrap over train samples, probes and seeds.
        probe_units: see `reliance_table`.

    Returns:
        Columns `COLUMNS`. `value` is the measure's mean over the language's probes, `null` its mean if languages were shuffled
        among exchangeable train samples (`exchange`), `contrast` what remains of the value without row and column effects
        (`contrast`). `low` and `high` are the value's interval, `contrast_low` and `contrast_high` the contrast's (NaN with
        fewer than two probes or train samples). `lift` is the value divided by the train language's mean value over the probe
        languages (NaN for signed measures, or if that mean is not positive), `probes` the number of probes with a value.
    """
    settings, first = checked_interval(interval), tallies[0]
    languages, probe_names = first.languages, sorted(set(probe_languages))
    values = np.mean([tally.values() for tally in tallies], axis=0)
    expected = np.mean([tally.chance() for tally in tallies], axis=0)
    mine = np.asarray([[language == name for language in probe_languages] for name in probe_names])
    usable = mine & np.isfinite(values).all(1)
    means = np.stack([_mean(values[chosen]) for chosen in usable])
    null = np.stack([_mean(expected[chosen & np.isfinite(expected).all(1)]) for chosen in mine])
    own = own_cells(pd.DataFrame(index=probe_names, columns=languages))
    bounds = _bounds(tallies, probe_languages, probe_units, own, settings, usable.any(0))
    # With one probe, or one train sample of a language, nothing varies when they are drawn again.
    bounds[:, (usable.sum(1) < 2)[:, None] | (first.train.counts < 2)] = np.nan
    contrast = contrast_of(means, own)
    rows: list[tuple[Any, ...]] = [
        (
            probe_language,
            train_language,
            means[row, column],
            contrast[row, column],
            null[row, column],
            *bounds[:, row, column],
            np.nan,
            int(usable[row].sum()),
        )
        for row, probe_language in enumerate(probe_names)
        for column, train_language in enumerate(languages)
    ]
    table = table_from(rows, COLUMNS)
    if first.measure not in SIGNED:
        average = table.groupby("train_language")["value"].transform("mean")
        table["lift"] = (table["value"] / average).where(average > 0)
    return table


def _mean(values: Floats) -> Floats:
    """Mean over probes; NaN without any."""
    mean: Floats = values.mean(0) if len(values) else np.full(values.shape[1], np.nan)
    return mean


def _bounds(
    tallies: Sequence[Tally],
    probe_languages: Sequence[str],
    probe_units: Sequence[Hashable] | None,
    own: np.ndarray[Any, np.dtype[np.bool_]],
    settings: Interval,
    usable: np.ndarray[Any, np.dtype[np.bool_]],
) -> Floats:
    """low, high, contrast_low, contrast_high: [4, probe languages, train languages]."""
    if settings.resamples == 0:
        return np.full((4, *own.shape), np.nan)
    by_seed = np.stack([tally.draws(probe_languages, probe_units, settings, usable) for tally in tallies])
    seeds = np.random.default_rng([settings.seed, 2]).integers(len(tallies), size=(settings.resamples, len(tallies)))
    draws: Floats = by_seed[seeds, np.arange(settings.resamples)[:, None]].mean(1)
    return np.stack([*settings.bounds(draws), *settings.bounds(contrast_of(draws, own))])


def cross_lingual(table: pd.DataFrame, column: str = "value") -> pd.Series[float]:
    """Cross-lingual reliance of each probe language: 1 - the share of its own language; of `"null"`, what it is by chance.

    It is 1 by construction for a language without train samples; `mean_cross_lingual` leaves such languages out.

    Example:
        >>> shares = {"train_language": ["de", "de"], "value": [0.75, 0.5]}
        >>> cross_lingual(pd.DataFrame({"probe_language": ["de", "fr"], **shares})).to_dict()
        {'de': 0.25, 'fr': 1.0}
    """
    own: pd.Series[float] = own_language(table).set_index("probe_language")[column]
    return own.reindex(sorted(table["probe_language"].unique()), fill_value=0.0).rsub(1)


def mean_cross_lingual(table: pd.DataFrame, column: str = "value") -> float:
    """Mean cross-lingual reliance over the probe languages that have train samples (over all, if none has).

    Example:
        >>> shares = {"train_language": ["de", "de"], "value": [0.75, 0.5]}
        >>> mean_cross_lingual(pd.DataFrame({"probe_language": ["de", "fr"], **shares}))
        0.25
    """
    values = cross_lingual(table, column)
    trained = values[values.index.isin(own_language(table)["probe_language"])]
    return float((trained if len(trained) else values).mean())
