"""What each probe's influences say of each train language, from scores that arrive block by block.

A tally counts one measure of influence: the signed sum of a language's samples, their mean, the language's share of the
strongest k, or its share of all influence of a sign. It also knows what the measure would be by chance, and how it varies when
train samples and probes are drawn again.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import sparse

from lightning_tracin.analysis.exchange import Exchange, strata_of, units_of
from lightning_tracin.analysis.resampling import Interval, Weights, random_groups
from lightning_tracin.analysis.scores import Scores, require_k
from lightning_tracin.analysis.top_k import Strongest
from lightning_tracin.config import Measure, Sign, check_choice
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.sample_table import SampleTable

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

#: Measures that add up influence with its sign.
SIGNED: tuple[Measure, ...] = ("sum", "mean")

#: Values that are computed at once while resampling (0.2 MB, which stays in cache).
_AT_ONCE = 20_000


@dataclass(frozen=True)
class TrainLanguages:
    """The languages of the train samples, what may be exchanged between them, and the groups in which they are resampled.

    Example:
        >>> TrainLanguages.of(["de", "en", "de"]).names
        ('de', 'en')
    """

    names: tuple[str, ...]  # in alphabetical order
    code: Integers  # number of each train sample's language: [train]
    counts: Integers  # number of samples of each language: [languages]
    exchange: Exchange
    group: Integers  # number of each train sample's random group: [train]

    @classmethod
    def of(
        cls, languages: Sequence[str], strata: Sequence[Hashable] | None = None, units: Sequence[Hashable] | None = None
    ) -> TrainLanguages:
        """From the language of each train sample.

        Args:
            languages: [train].
            strata: what the null shuffles languages within; see `exchange`. None: all train samples.
            units: what is resampled as one; see `resampling`. None: every sample alone.
        """
        names, code, counts = np.unique(np.asarray(languages), return_inverse=True, return_counts=True)
        return cls(tuple(map(str, names)), code, counts, Exchange.of(languages, strata), random_groups(languages, units))

    @classmethod
    def of_table(cls, train: SampleTable) -> TrainLanguages:
        """From the table of the train samples, with its labels and items."""
        return cls.of(train.language, strata_of(train), units_of(train))

    def in_one_group(self) -> TrainLanguages:
        """The same samples in one group: enough where nothing is resampled, and a tally needs a group's memory only."""
        return replace(self, group=np.zeros_like(self.group))


class Tally:
    """Each probe's value for each train language, from scores that arrive block by block.

    Memory does not grow with the train samples, except for a few numbers each: sums are kept for each group, language and probe
    (8 MB for 500 groups, 10 languages and 200 probes). Ranks do not depend on the blocks; sums are
    added in block order, so other blocks can change the last digits of float64.

    Args:
        train: languages of the train samples, or the language of each.
        k: number of strongest train samples to count (for `"share"`).
        sign: `"positive"` for proponents, `"negative"` for opponents.
        measure: `"sum"` of the influence of a language's samples, `"mean"` influence of one of them, `"share"` of the k
            strongest samples (Choenni et al. 2023), or `"mass"`, the share of the total influence of that sign.

    Raises:
        TracInError: `k` is not between 1 and the number of train samples, or an option is invalid.

    Example:
        >>> tally = Tally(["de", "de", "en"], k=1, measure="sum")
        >>> tally.add(np.arange(3), np.array([[3.0], [1.0], [-2.0]]))
        >>> tally.values().tolist(), tally.chance().round(3).tolist()
        ([[4.0, -2.0]], [[1.333, 0.667]])
    """

    def __init__(
        self, train: TrainLanguages | Sequence[str], k: int, sign: Sign = "positive", measure: Measure = "share"
    ) -> None:
        check_choice("measure", measure, Measure)
        check_choice("sign", sign, Sign)
        self.train = train if isinstance(train, TrainLanguages) else TrainLanguages.of(train)
        self.measure, self.k, self._sign = measure, k, sign
        samples = len(self.train.code)
        if measure == "share":
            require_k(k, samples)
        elif measure in SIGNED and sign == "negative":
            raise TracInError(
                f"measure={measure!r} adds up influence with its sign, so there is none to choose; leave `sign` out."
            )
        #: For shares under resampling: a drawn sample may count several times, so more of the ranking is kept than k.
        self._strongest = Strongest(min(samples, 2 * k + 20), sign)
        self._felt: npt.NDArray[np.bool_] | bool = False  # whether a probe has any influence: [probes]
        self._sums: Floats | float = 0.0  # influence (of the sign, for "mass"): [groups, languages, probes]
        self._exchanged: Floats | float = 0.0  # its expected value under exchange: [probes, languages]

    @property
    def languages(self) -> list[str]:
        """The train languages, in alphabetical order."""
        return list(self.train.names)

    def add(self, train: Integers, scores: Scores) -> None:
        """Add the scores of some train samples: [len(train), probes]."""
        if self.measure == "share":
            self._strongest.add(train, scores)
            self._felt = self._felt | (scores != 0).any(0)
            return
        part = scores
        if self.measure == "mass":
            part = np.clip(scores if self._sign == "positive" else -scores, 0, None)
        groups, languages = self._groups, len(self.train.names)
        cells = self.train.group[train] * languages + self.train.code[train]
        size = len(train)
        chosen = sparse.csr_matrix((np.ones(size), (cells, np.arange(size))), shape=(groups * languages, size))
        self._sums = self._sums + np.asarray(chosen @ part).reshape(groups, languages, part.shape[1])
        self._exchanged = self._exchanged + part.T @ self.train.exchange.expected(train)

    @property
    def _groups(self) -> int:
        return int(self.train.group.max()) + 1

    def values(self) -> Floats:
        """Each probe's value for each train language: [probes, languages].

        A `"sum"` or `"mean"` is always known, and 0 without any influence. A `"share"` is NaN for a probe that no train sample
        influences at all; otherwise it counts the k strongest samples, whatever their sign. A `"mass"` is NaN for a probe without
        influence of the sign that was asked for.
        """
        if self.measure == "share":
            shares: Floats = self._shares(np.ones((1, self._groups)))[0]
            return shares
        sums: Floats = np.asarray(self._sums).sum(0).T
        return self._normalised(sums, sums.sum(1, keepdims=True))

    def chance(self) -> Floats:
        """The mean of `values` over all exchanges of languages within strata: [probes, languages]; see `exchange`."""
        if self.measure == "share":
            top = self._strongest.found()[0][: self.k]
            expected: Floats = self.train.exchange.expected(top).mean(0)
            expected[~np.broadcast_to(np.asarray(self._felt), len(expected))] = np.nan
            return expected
        return self._normalised(np.asarray(self._exchanged), np.asarray(self._sums).sum((0, 1))[:, None])

    def _normalised(self, sums: Floats, whole: Floats) -> Floats:
        """Sums [..., languages] as the measure has them; `whole` is the sum over all train samples [..., 1]."""
        if self.measure == "sum":
            return sums
        if self.measure == "mean":
            return sums / self.train.counts
        return np.divide(sums, whole, out=np.full_like(sums, np.nan), where=whole > 0)

    def draws(
        self,
        probe_languages: Sequence[str],
        units: Sequence[Hashable] | None,
        interval: Interval,
        usable: npt.NDArray[np.bool_] | None = None,
    ) -> Floats:
        """Means over the probes of each language, with train samples and probes drawn again.

        Args:
            probe_languages: language of each probe.
            units: probes that are drawn together.
            interval: settings.
            usable: which probes count: [probes]. None: those with a value.

        Returns:
            [resamples, probe languages in alphabetical order, train languages].
        """
        names = sorted(set(probe_languages))
        mine = np.asarray([[language == name for language in probe_languages] for name in names], dtype=np.float64)
        counted = np.asarray(np.isfinite(self.values()).all(1)) if usable is None else usable
        weights = Weights(self._groups, probe_languages, units, interval)
        out = np.full((interval.resamples, len(names), len(self.train.names)), np.nan)
        step = max(1, _AT_ONCE // (len(probe_languages) * len(self.train.names)))
        for start in range(0, interval.resamples, step):
            here = slice(start, start + step)
            train, probes = weights.draw(len(out[here]))
            values = self._resampled(train)
            known = counted & np.isfinite(values).all(2)  # without its few train samples, a probe may have no mass
            values[~known] = 0.0
            probes = (probes * known)[:, None] * mine  # [resamples, probe languages, probes]
            sizes = probes.sum(2)[..., None]
            np.divide(probes @ values, sizes, out=out[here], where=sizes > 0)
        return out

    def _resampled(self, weights: Floats) -> Floats:
        """The values for drawn train samples: [resamples, probes, languages]."""
        if self.measure == "share":
            return self._shares(weights)
        sums: Floats = np.einsum("rg,glp->rpl", weights, np.asarray(self._sums), optimize=True)
        if self.measure == "mass":
            return self._normalised(sums, sums.sum(2, keepdims=True))
        sizes = np.zeros((self._groups, len(self.train.names)))
        np.add.at(sizes, (self.train.group, self.train.code), 1.0)
        drawn = (weights @ sizes)[:, None]  # samples of each language: [resamples, 1, languages]
        # A sum is the mean times the number of samples, which is not what is uncertain.
        means: Floats = np.divide(sums, drawn, out=np.zeros_like(sums), where=drawn > 0)
        return means * self.train.counts if self.measure == "sum" else means

    def _shares(self, weights: Floats) -> Floats:
        """Shares of the strongest k, where each train sample counts as often as its group: [resamples, probes, languages]."""
        top, _ = self._strongest.found()
        probes, languages = top.shape[1], len(self.train.names)
        cells = (np.arange(probes) * languages + self.train.code[top]).ravel()
        group, out = self.train.group[top], np.empty((len(weights), probes, languages))
        for number, weight in enumerate(weights):
            count = weight[group]
            before = np.cumsum(count, axis=0) - count
            taken = np.clip(self.k - before, 0.0, count)
            out[number] = np.bincount(cells, taken.ravel(), probes * languages).reshape(probes, languages)
        out /= np.maximum(out.sum(2, keepdims=True), 1.0)
        out[:, ~np.broadcast_to(np.asarray(self._felt), probes)] = np.nan
        return out
