"""Resampling of train samples and probes at once, for intervals that hold for other data of both kinds.

An interval over probes alone takes the train samples as given: under shuffled languages, a quarter of such intervals leave out
what chance gives. So both sides are drawn again with replacement (the "pigeonhole" bootstrap, Owen 2007, arXiv 0712.1111,
which errs on the wide side). What belongs together, such as the translations of an item, is drawn together. Many train samples
are first dealt out into `GROUPS` random groups, and groups are drawn (Wolter 2007, "Introduction to Variance Estimation",
chapter 2), so that a run of any size is read once and memory stays small.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from lightning_tracin.errors import TracInError

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

#: Number of random groups, and up to how many units every unit is a group of its own.
GROUPS, _ALONE = 100, 500


@dataclass(frozen=True)
class Interval:
    """Settings of the bootstrap over train samples and probes.

    Example:
        >>> Interval(confidence=0.9)
        Interval(confidence=0.9, resamples=999, seed=0)
    """

    confidence: float = 0.95
    resamples: int = 999
    seed: int = 0

    def bounds(self, draws: Floats) -> tuple[Floats, Floats]:
        """The percentiles of the known (finite) draws, of [resamples, ...]; NaN where fewer than half are known."""
        tail, known = (1 - self.confidence) / 2, np.isfinite(draws)
        if known.all():
            low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
            return low, high
        enough = 2 * known.sum(0) >= len(draws)
        usable = np.where(enough, np.where(known, draws, np.nan), 0.0)
        low, high = np.where(enough, np.nanquantile(usable, [tail, 1 - tail], axis=0), np.nan)
        return low, high


#: Leaves intervals out (NaN), which saves the time for the bootstrap.
NO_INTERVAL = Interval(resamples=0)


def checked_interval(interval: Interval | None) -> Interval:
    """The settings of a bootstrap; None: 95 %.

    Raises:
        TracInError: they are something else, such as a number.

    Example:
        >>> checked_interval(None)
        Interval(confidence=0.95, resamples=999, seed=0)
    """
    if interval is not None and not isinstance(interval, Interval):
        raise TracInError(
            "interval should be None or an `Interval` of lightning_tracin.analysis.resampling, such as "
            f"`Interval(confidence=0.9)`, but is {interval!r}."
        )
    return interval or Interval()


def random_groups(languages: Sequence[str], units: Sequence[Hashable] | None = None) -> Integers:
    """Deal the train samples out into groups of about the same size and mix of languages: [train].

    Args:
        languages: language of each train sample.
        units: samples of the same unit go into the same group. None: every sample is a unit.

    Example:
        >>> random_groups(["de", "en", "de", "en"], units=["1", "1", "2", "2"]).tolist()
        [0, 0, 1, 1]
    """
    numbers: dict[Hashable, int] = {}
    unit = np.asarray([numbers.setdefault(name, len(numbers)) for name in units or range(len(languages))])
    first = np.zeros(len(numbers), dtype=np.int64)
    first[unit[::-1]] = np.arange(len(unit))[::-1]  # a unit's first sample
    shuffled = np.random.default_rng(0).permutation(len(numbers))
    by_language = shuffled[np.argsort(np.asarray(languages)[first[shuffled]], kind="stable")]
    group = np.zeros(len(numbers), dtype=np.int64)
    group[by_language] = np.arange(len(numbers)) % (len(numbers) if len(numbers) <= _ALONE else GROUPS)
    dealt: Integers = group[unit]
    return dealt


class Weights:
    """How often train samples and probes are drawn, a few resamples at a time.

    Args:
        groups: number of groups of train samples.
        languages: language of each probe.
        units: probes of the same unit are drawn together. Units are drawn among all units of the languages that share some,
            directly or through other languages: where all items are in all languages, all are drawn together; where no item is
            in two, each language's are drawn on their own, and always as many as there are. None: every probe is a unit.
        interval: settings.

    Example:
        >>> weights = Weights(3, ["de", "en", "de", "en"], ["1", "1", "2", "2"], Interval())
        >>> train, probes = weights.draw(resamples=5)
        >>> train.sum(1).tolist(), bool((probes[:, 0] == probes[:, 1]).all()), probes[:, ::2].sum(1).tolist()
        ([3.0, 3.0, 3.0, 3.0, 3.0], True, [2.0, 2.0, 2.0, 2.0, 2.0])
    """

    def __init__(self, groups: int, languages: Sequence[str], units: Sequence[Hashable] | None, interval: Interval) -> None:
        self._groups, self._probes = groups, len(languages)
        self._generator = np.random.default_rng(interval.seed)
        members: dict[Hashable, list[int]] = {}
        for probe, unit in enumerate(units or range(len(languages))):
            members.setdefault(unit, []).append(probe)
        connected: dict[str, frozenset[str]] = {}  # language -> the languages that share units with it
        for probes in members.values():
            named = {languages[probe] for probe in probes}
            joined = frozenset(named).union(*(connected.get(language, ()) for language in named))
            connected.update(dict.fromkeys(joined, joined))
        self._strata: dict[frozenset[str], list[list[int]]] = {}
        for probes in members.values():
            self._strata.setdefault(connected[languages[probes[0]]], []).append(probes)

    def draw(self, resamples: int) -> tuple[Floats, Floats]:
        """The weights of the next resamples: [resamples, groups] and [resamples, probes]."""
        probes = np.zeros((resamples, self._probes))
        for units in self._strata.values():
            for count, together in zip(self._drawn(len(units), resamples).T, units, strict=True):
                probes[:, together] = count[:, None]
        return self._drawn(self._groups, resamples), probes

    def _drawn(self, count: int, resamples: int) -> Floats:
        return self._generator.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)


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
    """Percentile interval of the mean over probes alone: two arrays [columns]; NaN with fewer than two probes.

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
