"""Worlds: train samples and probes in languages of which it is known what they share, and whose labels are known to be wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from benchmarks.known_truth.documents import Document
from benchmarks.known_truth.plan import Plan
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.sample_table import SampleTable
from lightning_tracin.studies.datasets.clones import Clone


@dataclass(frozen=True)
class World:
    """Data for fits.

    Attributes:
        arm: which question it is for.
        setting: what is varied, such as "p = 0.5".
        level: its number.
        train: the train samples.
        probes: the probes: the same documents in every language.
        noisy: the language with wrong labels.
    """

    arm: str
    setting: str
    level: float
    train: SampleTable
    probes: SampleTable
    noisy: str | None = None

    @property
    def languages(self) -> list[str]:
        """The languages, in alphabetical order."""
        return sorted(set(self.train.language))

    @property
    def labels(self) -> list[str]:
        """The labels, in alphabetical order."""
        return sorted({str(label) for label in (*self.train.label, *self.probes.label)})


#: Language -> how its words are made.
Clones = Mapping[str, Clone]


class Pool:
    """Documents in random order, from which parts are taken that do not overlap."""

    def __init__(self, documents: Sequence[Document], seed: int) -> None:
        order = np.random.default_rng(seed).permutation(len(documents))
        self._left = [documents[i] for i in order]

    def take(self, count: int, wanted: Callable[[Document], bool] = lambda _: True) -> list[Document]:
        """The next documents, of those that are wanted.

        Raises:
            TracInError: too few are left.
        """
        found = [one for one in self._left if wanted(one)][:count]
        if len(found) < count:
            raise TracInError(f"Only {len(found)} of {count} documents are left for a world: choose smaller sizes, or more text.")
        taken = {one.item for one in found}
        self._left = [one for one in self._left if one.item not in taken]
        return found


def worlds(arm: str, documents: Sequence[Document], plan: Plan) -> Iterator[World]:
    """The worlds of an arm, from the same documents at every level."""
    make = {
        "different": _different,
        "parallel": _parallel,
        "noise": _noise,
        "sizes": _sizes,
        "labels": _labels,
        "families": _families,
    }
    yield from make[arm](documents, plan)


def four(shared: float) -> Clones:
    """Four languages that share a part of their words."""
    return {name: Clone(number, shared) for number, name in enumerate("ABCD", 1)}


def world_of(
    arm: str, setting: str, level: float, clones: Clones, train: Mapping[str, Sequence[Document]], probes: Sequence[Document]
) -> World:
    """The documents of each language in its own words, and the probes in the words of each."""
    return World(arm, setting, level, _table(clones, train), _table(clones, dict.fromkeys(clones, probes)))


def _table(clones: Clones, documents: Mapping[str, Sequence[Document]]) -> SampleTable:
    rows = [(name, one.item, clones[name].text(one.text), one.label) for name in clones for one in documents[name]]
    return SampleTable(*zip(*rows, strict=True))


def _different(documents: Sequence[Document], plan: Plan) -> Iterator[World]:
    pool = Pool(documents, plan.seed)
    probes, train = pool.take(plan.probes), {name: pool.take(plan.train) for name in "ABCD"}
    for part in plan.parts:
        yield world_of("different", f"p = {part:g}", part, four(part), train, probes)


def _parallel(documents: Sequence[Document], plan: Plan) -> Iterator[World]:
    pool = Pool(documents, plan.seed)
    probes, train = pool.take(plan.probes), pool.take(plan.train)
    for part in plan.parallel_parts:
        yield world_of("parallel", f"p = {part:g}", part, four(part), dict.fromkeys("ABCD", train), probes)


def _noise(documents: Sequence[Document], plan: Plan) -> Iterator[World]:
    pool = Pool(documents, plan.seed)
    probes, train = pool.take(plan.probes), {name: pool.take(plan.train) for name in "ABCD"}
    for part in plan.noise:
        given = {**train, "D": with_wrong_labels(train["D"], part, plan.seed)}
        world = world_of("noise", f"{part:.0%} wrong", part, four(1.0), given, probes)
        yield replace(world, noisy="D")


def with_wrong_labels(documents: Sequence[Document], part: float, seed: int) -> list[Document]:
    """The documents, a part of them with the next label, as by someone who confuses two labels.

    Example:
        >>> documents = [Document(str(number), "", "ab"[number % 2]) for number in range(10)]
        >>> wrong = with_wrong_labels(documents, 0.4, seed=0)
        >>> sum(one.label != other.label for one, other in zip(documents, wrong))
        4
    """
    generator = np.random.default_rng([seed, 1])
    wrong = set(generator.permutation(len(documents))[: round(part * len(documents))].tolist())
    labels = sorted({one.label for one in documents})
    following = dict(zip(labels, [*labels[1:], labels[0]], strict=True))
    return [replace(one, label=following[one.label]) if number in wrong else one for number, one in enumerate(documents)]


def _sizes(documents: Sequence[Document], plan: Plan) -> Iterator[World]:
    pool = Pool(documents, plan.seed)
    sizes = {"A": plan.train // 2, "B": plan.train, "C": plan.train, "D": 2 * plan.train}
    probes, train = pool.take(plan.probes), {name: pool.take(size) for name, size in sizes.items()}
    yield world_of("sizes", "p = 0.5", 0.5, four(0.5), train, probes)


def _has_label(document: Document, labels: Set[str]) -> bool:
    return document.label in labels


def _labels(documents: Sequence[Document], plan: Plan) -> Iterator[World]:
    pool = Pool(documents, plan.seed)
    probes = pool.take(plan.probes)
    ranked = [label for label, _ in Counter(one.label for one in documents).most_common()]
    often = round(0.8 * plan.fewer)
    rarely = plan.fewer - often
    train = {}
    for name, first in zip("ABCD", (0, 0, 1, 1), strict=True):
        mine, others = set(ranked[first::2]), set(ranked[1 - first :: 2])
        train[name] = pool.take(often, partial(_has_label, labels=mine)) + pool.take(rarely, partial(_has_label, labels=others))
    yield world_of("labels", "p = 0.5", 0.5, four(0.5), train, probes)


def _families(documents: Sequence[Document], plan: Plan) -> Iterator[World]:
    pool = Pool(documents, plan.seed)
    clones = {
        **{f"A{number}": Clone(number, 0.75, family=10) for number in (1, 2, 3)},
        **{f"B{number}": Clone(number + 3, 0.75, family=11) for number in (1, 2)},
        "I": Clone(6),
    }
    probes, train = pool.take(plan.probes), {name: pool.take(plan.fewer) for name in clones}
    yield world_of("families", "p = 0.75 within a family", 0.75, clones, train, probes)
