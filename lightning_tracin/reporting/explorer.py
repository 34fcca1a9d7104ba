"""What a page lets readers explore: probes with their strongest train samples, train samples, and links of languages.

Everything is bounded (`Bounds`), so that a page stays small whatever the size of the run, and `Explorer.shown` says what is left
out. Two passes over the scores are made, block by block: the first finds the strongest train samples, the second what each of
these does to the probes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_tracin.analysis.scores import Scores
from lightning_tracin.analysis.top_k import Strongest
from lightning_tracin.config import Scoring, View
from lightning_tracin.run import TracInRun
from lightning_tracin.storage.sample_table import SampleTable

_Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Bounds:
    """How much an explorer holds at most.

    Attributes:
        probes: of all languages together; each language has the same number, the first in the data.
        strongest: proponents, and opponents, of each probe.
        helped: probes that a train sample helps most, and that it harms most.
        carriers: train samples that carry most of what a language does for another, and that counter it most.
        characters: of a text.
    """

    probes: int = 3000
    strongest: int = 10
    helped: int = 5
    carriers: int = 5
    characters: int = 240

    def smaller(self) -> Bounds:
        """The next smaller bounds, for a page that would be too large; the same if there are none.

        Example:
            >>> Bounds().smaller().characters, Bounds(characters=120).smaller().helped
            (160, 3)
        """
        for name, least in _SMALLER:
            value = getattr(self, name)
            if value > least:
                return replace(self, **{name: max(least, value * 2 // 3)})
        return self


#: What makes a page smaller, in this order: each bound is lowered as far as this before the next one is.
_SMALLER = (
    *(("characters", 120), ("helped", 3), ("strongest", 6), ("characters", 80), ("helped", 2), ("strongest", 4)),
    *(("characters", 60), ("carriers", 2), ("strongest", 1), ("helped", 1), ("carriers", 1)),
)


@dataclass(frozen=True)
class Strong:
    """Samples and the scores that tie them to another, strongest first."""

    samples: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()

    def first(self, most: int) -> Strong:
        """The strongest of them."""
        return Strong(self.samples[:most], self.scores[:most])


@dataclass(frozen=True)
class Carriers:
    """The train samples of a language that do most for the probes of another, by their mean score on these.

    Attributes:
        helping: those with the largest scores above 0.
        harming: those with the smallest below 0.
        mass: sum of the absolute mean scores of all train samples of the language, so that parts of it are known.
    """

    helping: Strong
    harming: Strong
    mass: float


@dataclass(frozen=True)
class Explorer:
    """Bounded contents of a run, by index of probe and train sample.

    Attributes:
        probes: the probes (or queries) shown: index -> proponents and opponents among all train samples.
        sums: [train languages, probes shown]: summed scores of each language's train samples, languages in alphabetical order.
        train: train samples that stand in any list -> the probes shown that they help most and harm most.
        links: (probe language, train language) -> what carries this link.
        queries: table of all probes.
        samples: table of all train samples.
        bounds: what it was bounded by.
    """

    probes: dict[int, tuple[Strong, Strong]]
    sums: Scores
    train: dict[int, tuple[Strong, Strong]]
    links: dict[tuple[str, str], Carriers]
    queries: SampleTable
    samples: SampleTable
    bounds: Bounds

    @property
    def shown(self) -> str:
        """What is shown and what is left out, in a sentence or two."""
        bounds, left = self.bounds, len(self.queries) - len(self.probes)
        most = max(self.queries.take(list(self.probes)).counts().values())
        said = f"All {len(self.probes):,} probes" if not left else f"The first {most:,} probes of each language"
        if left:
            said += f" ({len(self.probes):,} of {len(self.queries):,})"
        return (
            f"{said}, each with at most {bounds.strongest} proponents and opponents among all {len(self.samples):,} train "
            f"samples; {len(self.train):,} train samples that are among these or carry a link of languages, each with at most "
            f"{bounds.helped} of these probes that it helps, and harms. Texts are cut after {bounds.characters} characters."
        )

    def within(self, bounds: Bounds) -> Explorer:
        """The same with shorter lists and texts; the train samples that are then in no list are left out. Probes are kept."""
        k = bounds.strongest
        probes = {index: (first.first(k), last.first(k)) for index, (first, last) in self.probes.items()}
        links = {
            pair: replace(one, helping=one.helping.first(bounds.carriers), harming=one.harming.first(bounds.carriers))
            for pair, one in self.links.items()
        }
        needed = _in_lists(probes.values(), links.values())
        train = {
            index: (first.first(bounds.helped), last.first(bounds.helped))
            for index, (first, last) in self.train.items()
            if index in needed
        }
        return replace(self, probes=probes, links=links, train=train, bounds=replace(bounds, probes=self.bounds.probes))


def _in_lists(probes: Iterable[tuple[Strong, ...]], links: Iterable[Carriers]) -> set[int]:
    """The train samples that stand in a list of a probe or carry a link."""
    lists = chain(chain.from_iterable(probes), chain.from_iterable((one.helping, one.harming) for one in links))
    return {sample for one in lists for sample in one.samples}


def explorer_of(run: TracInRun, view: View, bounds: Bounds | None = None) -> Explorer:
    """Find what an explorer of a run shows; the scores are those of `run.top` with the view's similarity and weighting.

    Args:
        run: a run whose snapshots all have influence; one with language means has a language in place of a probe.
        view: the score.
        bounds: how much to show. None: the defaults.

    Raises:
        TracInError: a snapshot has no stored products.

    Example:
        Skipped: needs a run directory.

        >>> explorer_of(run, View()).probes[3]  # its proponents and opponents  # doctest: +SKIP
    """
    bounds = bounds or Bounds()
    scoring = Scoring(similarity=view.similarity, weighting=view.weighting)
    queries, samples = run.queries, run.train
    shown = _first_of_each(queries.language, bounds.probes)
    proponents, opponents = (Strongest(bounds.strongest, sign) for sign in ("positive", "negative"))
    by_language = _positions(samples.language)
    links = _Links(queries.language, by_language, bounds.carriers)
    sums = np.zeros((len(by_language), len(shown)))
    code = {name: row for row, name in enumerate(by_language)}
    languages = np.asarray([code[name] for name in samples.language])
    for train, scores in _in_small_blocks(run, scoring):
        mine = scores[:, shown]
        proponents.add(train, mine)
        opponents.add(train, mine)
        for row in np.unique(languages[train]):
            sums[row] += mine[languages[train] == row].sum(0)
        links.add(train, languages[train], scores)
    found = [_columns(one, sign) for one, sign in ((proponents, 1), (opponents, -1))]
    carriers = links.found()
    probes = {index: (first, last) for index, first, last in zip(shown, *found, strict=True)}
    needed = _in_lists(probes.values(), carriers.values())
    return Explorer(
        probes,
        sums,
        _helped(run, scoring, sorted(needed), shown, bounds.helped),
        carriers,
        queries,
        samples,
        bounds,
    )


def _in_small_blocks(run: TracInRun, scoring: Scoring) -> Iterator[tuple[_Indices, Scores]]:
    """The scores in blocks of at most `_ROWS` train samples: what is kept of a block is sorted, what is too weak is not."""
    for train, scores in run.influence_by_block(scoring):
        for start in range(0, len(train), _ROWS):
            yield train[start : start + _ROWS], scores[start : start + _ROWS]


#: Train samples of a block.
_ROWS = 256


def _first_of_each(languages: Sequence[str], most: int) -> list[int]:
    """The first probes of each language, as many of each, in order."""
    each = _positions(languages)
    return sorted(index for mine in each.values() for index in mine[: max(1, most // len(each))])


def _positions(languages: Sequence[str]) -> dict[str, list[int]]:
    """Language -> positions, in alphabetical order of the languages."""
    found: dict[str, list[int]] = defaultdict(list)
    for index, language in enumerate(languages):
        found[language].append(index)
    return dict(sorted(found.items()))


class _Links:
    """Collects the carriers of every pair of languages, from blocks of scores."""

    def __init__(self, probe_languages: Sequence[str], train: Iterable[str], most: int) -> None:
        self._probes, self._train = _positions(probe_languages), list(train)
        self._helping = [Strongest(most, "positive") for _ in self._train]
        self._harming = [Strongest(most, "negative") for _ in self._train]
        self._mass = np.zeros((len(self._train), len(self._probes)))

    def add(self, train: _Indices, languages: _Indices, scores: Scores) -> None:
        """Add a block: train samples, the rows of their languages, and [block, queries]."""
        means = np.stack([scores[:, mine].mean(1) for mine in self._probes.values()], axis=1)
        for row in np.unique(languages):
            mine = languages == row
            self._helping[row].add(train[mine], means[mine])
            self._harming[row].add(train[mine], means[mine])
            self._mass[row] += np.abs(means[mine]).sum(0)

    def found(self) -> dict[tuple[str, str], Carriers]:
        """(Probe language, train language) -> carriers."""
        found = {}
        for row, train in enumerate(self._train):
            lists = zip(_columns(self._helping[row], 1), _columns(self._harming[row], -1), self._mass[row], strict=True)
            for probe, (helping, harming, mass) in zip(self._probes, lists, strict=True):
                found[probe, train] = Carriers(helping, harming, float(mass))
        return dict(sorted(found.items()))


def _columns(strongest: Strongest, sign: int) -> list[Strong]:
    """The samples of each column whose scores have the sign."""
    return [_signed(samples, scores, sign) for samples, scores in zip(*(found.T for found in strongest.found()), strict=True)]


def _signed(samples: npt.NDArray[Any], scores: Scores, sign: int) -> Strong:
    kept = scores * sign > 0
    return Strong(tuple(samples[kept].tolist()), tuple(scores[kept].tolist()))


def _helped(run: TracInRun, scoring: Scoring, needed: list[int], shown: list[int], most: int) -> dict[int, tuple[Strong, Strong]]:
    """Train sample -> the probes shown that it helps most, and those that it harms most."""
    wanted, probes = np.asarray(needed, dtype=np.int64), np.asarray(shown)
    found: dict[int, tuple[Strong, Strong]] = {}
    for train, scores in run.influence_by_block(scoring):
        rows = np.flatnonzero(np.isin(train, wanted))
        for sample, mine in zip(train[rows].tolist(), scores[rows][:, probes], strict=True):
            found[sample] = (_strongest(probes, mine, most, 1), _strongest(probes, mine, most, -1))
    return dict(sorted(found.items()))


def _strongest(samples: _Indices, scores: Scores, most: int, sign: int) -> Strong:
    """The strongest samples whose scores have the sign; NaN counts as weakest."""
    keys = -sign * scores
    chosen = np.argpartition(keys, most - 1)[:most] if most < len(keys) else np.arange(len(keys))
    order = chosen[np.argsort(keys[chosen], kind="stable")]
    return _signed(samples[order], scores[order], sign)
