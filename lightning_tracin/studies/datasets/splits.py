"""Train samples, probes and test samples: the data are split by whole items, seeded, the same in every language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from datasets import Dataset

from lightning_tracin.errors import TracInError
from lightning_tracin.storage.languages import own_languages
from lightning_tracin.studies.datasets.corpus import text_columns

#: Language -> item -> row of its sample.
Rows = Mapping[str, Mapping[str, int]]

#: Language -> items of one part of the data.
Part = Mapping[str, Sequence[str]]

LEAST = {"train_per_language": 1, "probes_per_language": 1, "extra_per_language": 0, "test_per_language": 0}


@dataclass(frozen=True)
class SplitPlan:
    """How to split samples.

    Attributes:
        train_languages: languages to train on.
        probe_languages: languages to probe and test; one that is not trained on is zero-shot.
        train_per_language: number of train samples per language; in parallel data, the same items in every language.
        probes_per_language: number of probes per language, likewise.
        test_per_language: largest number of test samples per language; by default all that are left.
        seed: seed of the order of items.
        share_items: whether translations of the probes (never the probes themselves) may be in the train data.
        different_items: whether every train language has items of its own, so that no train sample is a translation of another.
        extra_per_language: number of additional train samples per train language. They come after the train samples of all
            languages in the order of items, so they do not change train samples or probes.
    """

    train_languages: Sequence[str]
    probe_languages: Sequence[str]
    train_per_language: int
    probes_per_language: int
    test_per_language: int | None = None
    seed: int = 0
    share_items: bool = False
    different_items: bool = False
    extra_per_language: int = 0

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise TracInError(f"SplitPlan.{name} should be at least {least}, but got {value}.")


def _nothing() -> Dataset:
    return Dataset.from_dict({name: [] for name in ("text", "label", "language", "item")})


@dataclass(frozen=True)
class Split:
    """Parts that share no sample.

    Attributes:
        train: samples to fine-tune on.
        probes: samples whose reliance on the train samples is measured.
        test: samples to measure accuracy on; they share no item with the other parts.
        extra: additional train samples of every train language, which experiments add to the train part; empty by default.
    """

    train: Dataset
    probes: Dataset
    test: Dataset
    extra: Dataset = field(default_factory=_nothing)


def split_by_item(dataset: Dataset, plan: SplitPlan) -> Split:
    """Split one data set so that neither a probe nor a translation of it is in the train data.

    If the plan shares items, each language has probes from different items, which the other languages train on first.

    Raises:
        TracInError: a language is missing, or has too few items.

    Example:
        >>> rows = [(language, item) for language in ("de", "en") for item in "abcdef"]
        >>> samples = Dataset.from_dict({"language": [one for one, _ in rows], "item": [item for _, item in rows]})
        >>> split = split_by_item(samples, SplitPlan(["de", "en"], ["de"], train_per_language=3, probes_per_language=2))
        >>> len(split.train), len(split.probes), set(split.train["item"]) & set(split.probes["item"])
        (6, 2, set())
    """
    rows = _rows_by_language(dataset, [*plan.train_languages, *plan.probe_languages])
    order = _shuffled_items(rows, plan.seed)
    probes: dict[str, list[str]] = {}
    for language in plan.probe_languages:
        taken = _union(probes.values()) if plan.share_items else frozenset()
        probes[language] = _take(rows, language, order, plan.probes_per_language, "probes", exclude=taken)
    if plan.share_items:
        own = own_languages(plan.probe_languages, plan.train_languages)
        hidden = {one: _union(probes[name] for name in probes if own.get(name) == one) for one in plan.train_languages}
    else:
        hidden = dict.fromkeys(plan.train_languages, _union(probes.values()))
    train, extra = _train_and_extra(rows, order, plan, hidden)
    used = _union([*probes.values(), *train.values(), *extra.values()])
    test = _rest(rows, plan.probe_languages, order, used, plan.test_per_language)
    return Split(*(_select(dataset, rows, items) for items in (train, probes, test, extra)))


def split_two(train_data: Dataset, probe_data: Dataset, plan: SplitPlan) -> Split:
    """Take the train samples from one data set, probes and test samples from another, again by item.

    An item in both data sets counts as a translation: if it is probed, it is not trained on unless the plan shares items.

    Raises:
        TracInError: a language is missing, or has too few items.
    """
    rows = _rows_by_language(probe_data, plan.probe_languages)
    train_rows = _rows_by_language(train_data, plan.train_languages)
    order = _shuffled_items(rows, plan.seed)
    probes = {name: _take(rows, name, order, plan.probes_per_language, "probes") for name in rows}
    hidden = {} if plan.share_items else dict.fromkeys(plan.train_languages, _union(probes.values()))
    train, extra = _train_and_extra(train_rows, _shuffled_items(train_rows, plan.seed), plan, hidden)
    used = _union([*probes.values(), *train.values(), *extra.values()])
    test = _rest(rows, plan.probe_languages, order, used, plan.test_per_language)
    return Split(
        train=_select(train_data, train_rows, train),
        probes=_select(probe_data, rows, probes),
        test=_select(probe_data, rows, test),
        extra=_select(train_data, train_rows, extra),
    )


def repeated_texts(split: Split) -> Counter[str]:
    """Count the probes of each language whose text is also that of a train sample with another item, in any language.

    Example:
        >>> columns = ("text", "language", "item")
        >>> train = Dataset.from_dict(dict(zip(columns, (["Berlin", "Paris"], ["de", "de"], ["1", "2"]))))
        >>> probes = Dataset.from_dict(dict(zip(columns, (["Berlin", "Paris"], ["en", "en"], ["1", "3"]))))
        >>> dict(repeated_texts(Split(train, probes, probes)))
        {'en': 1}
    """
    items_of_text: dict[tuple[str, ...], set[str]] = {}
    for texts, _, item in _samples(split.train):
        items_of_text.setdefault(texts, set()).add(item)
    return Counter(language for texts, language, item in _samples(split.probes) if items_of_text.get(texts, set()) - {item})


def _samples(dataset: Dataset) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """The texts, the language and the item of every sample."""
    plain = dataset.with_format(None)
    columns = [plain[name][:] for name in text_columns(plain.column_names)]
    texts = zip(*([text.strip() for text in column] for column in columns), strict=True)
    return zip(texts, plain["language"][:], plain["item"][:], strict=True)


def _train_and_extra(
    rows: Rows, order: Sequence[str], plan: SplitPlan, hidden: Mapping[str, Collection[str]]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The items to train on and, after those of all languages in the order, those to add; hidden items are in neither."""
    train: dict[str, list[str]] = {}
    extra: dict[str, list[str]] = {}
    for part, count, what in (
        (train, plan.train_per_language, "train samples"),
        (extra, plan.extra_per_language, "extra train samples"),
    ):
        for language in plan.train_languages:
            taken = [*train.values(), *extra.values()] if plan.different_items else [train.get(language, [])]
            held = _union([*taken, hidden.get(language, ())])
            part[language] = _take(rows, language, order, count, what, exclude=held)
    return train, extra


def _rows_by_language(dataset: Dataset, languages: Sequence[str]) -> Rows:
    plain = dataset.with_format(None)
    rows: dict[str, dict[str, int]] = {}
    for i, (language, item) in enumerate(zip(plain["language"], plain["item"], strict=True)):
        rows.setdefault(language, {})[item] = i
    missing = [language for language in languages if language not in rows]
    if missing:
        raise TracInError(f"The data have no language {missing[0]!r}; they have {sorted(rows)}: choose from these.")
    return {language: rows[language] for language in dict.fromkeys(languages)}


def _shuffled_items(rows: Rows, seed: int) -> list[str]:
    """The items of all languages, in an order that depends only on them and the seed."""
    items = sorted(_union(rows.values()))
    return [items[i] for i in np.random.default_rng(seed).permutation(len(items))]


def _take(rows: Rows, language: str, order: Sequence[str], count: int, what: str, *, exclude: Collection[str] = ()) -> list[str]:
    """The first items in the order that the language has and that are not excluded."""
    hidden = frozenset(exclude)
    items = [item for item in order if item in rows[language] and item not in hidden]
    if len(items) < count:
        raise TracInError(
            f"Language {language!r} has {len(items):,} items to choose {what} from, but {count:,} are needed: choose fewer "
            f"{what}, or provide more data."
        )
    return items[:count]


def _rest(
    rows: Rows, languages: Sequence[str], order: Sequence[str], used: Collection[str], count: int | None
) -> dict[str, list[str]]:
    """The items left to test on, at most `count` of each language."""
    rest = {language: [item for item in order if item in rows[language] and item not in used] for language in languages}
    for language, items in rest.items():
        if not items and count != 0:
            raise TracInError(
                f"Language {language!r} has no item left to test on: choose fewer train samples or probes, or no test samples."
            )
    return {language: items[:count] for language, items in rest.items()}


def _union(groups: Iterable[Iterable[str]]) -> frozenset[str]:
    return frozenset(item for group in groups for item in group)


def _select(dataset: Dataset, rows: Rows, chosen: Part) -> Dataset:
    return dataset.select([rows[language][item] for language, items in chosen.items() for item in items])
