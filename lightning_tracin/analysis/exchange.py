"""Which train samples could swap languages if languages did not matter, and what a measure would then be on average.

This is the null of every measure. A probe's strongest proponents mostly have its own label, so a language with many samples of
that label has a large share of them whatever the language is worth. So languages are shuffled among samples with the same
label, or, where items are translated, among the translations of one item. The mean over all these shuffles needs no drawing: a
sample in a stratum of n samples, of which m are German, counts as m/n of a German sample. Where most labels occur in one language
only (targets of a regression, lists of tags), they leave little to shuffle, so languages are shuffled among all samples.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lightning_tracin.storage.sample_table import SampleTable

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Exchange:
    """Strata of train samples whose languages the null shuffles.

    Attributes:
        stratum: number of each train sample's stratum: [train].
        part: fraction of each language in each stratum: [strata, languages].

    Example:
        >>> exchange = Exchange.of(["de", "en", "en"], strata=["sports", "sports", "politics"])
        >>> exchange.expected([0, 1, 2]).tolist()  # de, en
        [[0.5, 0.5], [0.5, 0.5], [0.0, 1.0]]
    """

    stratum: Integers
    part: Floats

    @classmethod
    def of(cls, languages: Sequence[str], strata: Sequence[Hashable] | None = None) -> Exchange:
        """Strata by name; None: all train samples are in one."""
        names, language = np.unique(np.asarray(languages), return_inverse=True)
        numbers: dict[Hashable, int] = {}
        stratum = np.asarray([numbers.setdefault(name, len(numbers)) for name in strata or [None] * len(languages)])
        counts = np.zeros((len(numbers), len(names)))
        np.add.at(counts, (stratum, language), 1.0)
        return cls(stratum, counts / counts.sum(1, keepdims=True))

    def expected(self, train: Sequence[int] | Integers) -> Floats:
        """How much of each language each of these samples counts as: [..., languages]."""
        found: Floats = self.part[self.stratum[np.asarray(train)]]
        return found


def strata_of(train: SampleTable) -> list[Hashable] | None:
    """What to shuffle languages within: items if every item has several languages, otherwise labels.

    None (all train samples are one stratum) if there are neither, or if fewer than half of the samples have a label that occurs
    in two languages. Shuffles within such labels would change next to nothing, and a value would be its own null: targets of a
    regression, for example, are all different.

    Example:
        >>> strata_of(SampleTable(("de", "en", "en"), (None,) * 3, ("", "", ""), ("sports", "sports", "politics")))
        ['sports', 'sports', 'politics']
        >>> strata_of(SampleTable(("de", "en"), ("1", "1"), ("Hund", "dog"), ("animal", "animal")))
        ['1', '1']
        >>> strata_of(SampleTable(("de", "en"), (None, None), ("", ""), ("0.25", "0.75"))) is None
        True
    """
    if is_parallel(train):
        return list(train.item)
    languages = _languages_of(train.label, train.language)
    mixed = sum(len(languages[label]) > 1 for label in train.label)
    return list(train.label) if languages.keys() != {None} and 2 * mixed >= len(train.label) else None


def is_parallel(table: SampleTable) -> bool:
    """Whether every sample has an item, and every item has samples in at least two languages.

    Example:
        >>> is_parallel(SampleTable(("de", "en"), ("1", "1"), ("Hund", "dog"), (None, None)))
        True
    """
    languages = _languages_of(table.item, table.language)
    return None not in languages and all(len(found) > 1 for found in languages.values())


def _languages_of(names: Sequence[str | None], languages: Sequence[str]) -> dict[str | None, set[str]]:
    """The languages of the samples of each name."""
    found: dict[str | None, set[str]] = {}
    for name, language in zip(names, languages, strict=True):
        found.setdefault(name, set()).add(language)
    return found


def units_of(table: SampleTable) -> list[Hashable]:
    """What is resampled as one: the samples of an item, because they are not independent; or a single sample without an item.

    Example:
        >>> units_of(SampleTable(("de", "en", "en"), ("1", "1", None), ("Hund", "dog", "cat"), (None,) * 3))
        [('item', '1'), ('item', '1'), 2]
    """
    return [index if item is None else ("item", item) for index, item in enumerate(table.item)]
