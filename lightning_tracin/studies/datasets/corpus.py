"""The common format of all sources: text, label, language and item, with the number of rows left out.

A loader turns its source into a table of strings (columns ``text``, optionally ``text_pair``, ``label``, ``language`` and
``item``); everything below works on such tables.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, get_args

import pandas as pd
from datasets import ClassLabel, Dataset, Features, Value

from lightning_tracin.attribution.language_names import trimmed
from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets.label_spelling import check_spelling

if TYPE_CHECKING:
    from typing_extensions import Unpack  # typing has it from Python 3.11 on

#: What to do with an item whose translations have different labels.
DifferingLabels: TypeAlias = Literal["error", "drop", "keep"]


class Cleaning(TypedDict, total=False):
    """How to clean a table of samples.

    Attributes:
        label_names: the labels in the order of their numbers, such as those of the train data; by default those of the rows,
            sorted.
        drop_texts: placeholders; rows with one of them as a text (or second text) are dropped and counted.
        merge_labels: new names of labels; None drops the label's rows. Other labels stay as they are.
        differing_labels: what to do with items of parallel data whose translations have different labels (after merging):
            ``error`` refuses the data, ``drop`` leaves them out in every language, ``keep`` keeps them.
    """

    label_names: Sequence[str] | None
    drop_texts: Sequence[str] | None
    merge_labels: Mapping[str, str | None] | None
    differing_labels: DifferingLabels


@dataclass(frozen=True)
class Dropped:
    """How many rows of a language were left out, and why."""

    language: str
    reason: str
    count: int


@dataclass(frozen=True)
class Corpus:
    """Samples in several languages, and the number of rows left out.

    Attributes:
        dataset: columns ``text`` (``text_pair`` for sentence pairs), ``label`` (a ``ClassLabel``), ``language`` and
            ``item``. Samples that are translations of each other have the same item.
        dropped: one entry per language and reason; empty if every row of the source is in ``dataset``.
    """

    dataset: Dataset
    dropped: tuple[Dropped, ...] = ()

    def summary(self) -> str:
        """The number of samples and of rows dropped for each reason, one line per language.

        Example:
            >>> samples = Dataset.from_dict({"text": ["a", "b"], "language": ["de", "en"]})
            >>> print(Corpus(samples, (Dropped("de", "without a label", 3),)).summary())
            de: 1 samples; dropped 3 without a label
            en: 1 samples; dropped none
        """
        counts = pd.Series(self.dataset.with_format(None)["language"], dtype=str).value_counts(sort=False)
        languages = dict.fromkeys([*counts.index, *(entry.language for entry in self.dropped)])
        return "\n".join(self._line(language, int(counts.get(language, 0))) for language in languages)

    def _line(self, language: str, kept: int) -> str:
        reasons = [f"{entry.count:,} {entry.reason}" for entry in self.dropped if entry.language == language]
        return f"{language}: {kept:,} samples; dropped {', '.join(reasons) or 'none'}"


def build_corpus(
    rows: pd.DataFrame,
    *,
    source: str,
    parallel: bool,
    dropped: Sequence[Dropped] = (),
    **cleaning: Unpack[Cleaning],
) -> Corpus:
    """Clean a table of strings and turn it into a `Corpus`.

    Args:
        rows: columns ``text``, optionally ``text_pair``, ``label``, ``language`` and ``item``, all strings; a missing label is
            an empty string.
        source: name of the data in messages.
        parallel: whether samples with the same item are translations; then only items that every language has are kept.
        dropped: rows that the loader has already left out.
        **cleaning: see `Cleaning`.

    Raises:
        TracInError: a text is empty, an item occurs twice in a language, a label is unknown, is spelled in two ways or differs
            between translations, or nothing is left.

    Example:
        >>> rows = [("Hund", "animal", "de", "1"), ("dog", "animal", "en", "1"), ("NS", "tool", "en", "2")]
        >>> table = pd.DataFrame(rows, columns=["text", "label", "language", "item"])
        >>> print(build_corpus(table, source="the table", parallel=True, drop_texts=["NS"]).summary())
        de: 1 samples; dropped none
        en: 1 samples; dropped 1 with a placeholder for a text
    """
    languages, names = list(rows["language"].unique()), cleaning.get("label_names")
    placeholder = _is_placeholder(rows, cleaning.get("drop_texts") or ())
    rows, placeholders = _drop_where(rows, placeholder, "with a placeholder for a text")
    rows, unlabelled = _drop_where(rows, rows["label"] == "", "without a label")
    rows, unwanted = _merge(rows, cleaning.get("merge_labels") or {})
    untranslated: tuple[Dropped, ...] = ()
    disputed: tuple[Dropped, ...] = ()
    if parallel:
        missing = rows.groupby("item")["language"].transform("nunique") < len(languages)
        rows, untranslated = _drop_where(rows, missing, "missing in another language")
    else:
        rows = _with_distinct_items(rows)
    _check_left(rows, languages, source)
    _check(rows, source)
    check_spelling(rows, source)
    if parallel:
        rows, disputed = _settle_labels(rows, cleaning.get("differing_labels", "error"), source)
        _check_left(rows, languages, source)
    left_out = (*dropped, *placeholders, *unlabelled, *unwanted, *untranslated, *disputed)
    return Corpus(_to_dataset(rows, sorted_labels(rows["label"]) if names is None else list(names), source), left_out)


def _with_distinct_items(rows: pd.DataFrame) -> pd.DataFrame:
    """Prefix the items of unrelated languages with the language if two languages share an item."""
    if not (rows.groupby("item")["language"].nunique() > 1).any():
        return rows
    apart: pd.DataFrame = rows.assign(item=rows["language"] + ":" + rows["item"])
    return apart


def sorted_labels(labels: pd.Series[str]) -> list[str]:
    """The distinct labels, in numeric order if all are whole numbers, otherwise alphabetically.

    Example:
        >>> sorted_labels(pd.Series(["10", "2", "2"])), sorted_labels(pd.Series(["b", "a"]))
        (['2', '10'], ['a', 'b'])
    """
    names = sorted(set(labels))
    return sorted(names, key=int) if all(name.removeprefix("-").isdecimal() for name in names) else names


def text_columns(names: Container[Any]) -> list[str]:
    """The text columns among these: one, or two for sentence pairs.

    Example:
        >>> text_columns(["label", "text_pair", "text"])
        ['text', 'text_pair']
    """
    return [name for name in ("text", "text_pair") if name in names]


def _is_placeholder(rows: pd.DataFrame, placeholders: Sequence[str]) -> pd.Series[bool]:
    found: pd.Series[bool] = pd.Series(False, index=rows.index)
    for name in text_columns(rows):
        found |= rows[name].map(trimmed).isin(list(placeholders))
    return found


def _merge(rows: pd.DataFrame, names: Mapping[str, str | None]) -> tuple[pd.DataFrame, tuple[Dropped, ...]]:
    unwanted = rows["label"].isin([label for label, name in names.items() if name is None])
    kept, entries = _drop_where(rows, unwanted, "with a label that is left out")
    return kept.assign(label=kept["label"].map(lambda label: names.get(label, label))), entries


def _settle_labels(
    rows: pd.DataFrame, differing_labels: DifferingLabels, source: str
) -> tuple[pd.DataFrame, tuple[Dropped, ...]]:
    """Drop, keep or refuse items whose translations have different labels."""
    if differing_labels not in get_args(DifferingLabels):
        raise TracInError(f"differing_labels should be one of {list(get_args(DifferingLabels))}, but got {differing_labels!r}.")
    differing = rows.groupby("item")["label"].transform("nunique") > 1
    if differing_labels == "keep" or not differing.any():
        return rows, ()
    if differing_labels == "drop":
        return _drop_where(rows, differing, "with labels that differ between translations")
    items = rows[differing]
    one = items.iloc[0]
    other = items[(items["item"] == one["item"]) & (items["label"] != one["label"])].iloc[0]
    raise TracInError(
        f"{source} has {items['item'].nunique():,} items whose translations differ in their label; the first is item "
        f"{one['item']!r}: {one['label']!r} in language {one['language']!r}, {other['label']!r} in language "
        f"{other['language']!r}; correct the labels, name the column that translations share as item, name placeholder texts as "
        "drop_texts, or set differing_labels to 'drop' (such items are left out in every language) or 'keep'."
    )


def _drop_where(rows: pd.DataFrame, drop: pd.Series[bool], reason: str) -> tuple[pd.DataFrame, tuple[Dropped, ...]]:
    counts = rows.loc[drop, "language"].value_counts(sort=False)
    return rows[~drop], tuple(Dropped(str(language), reason, int(count)) for language, count in counts.items())


def _check_left(rows: pd.DataFrame, languages: Sequence[str], source: str) -> None:
    for language in languages:
        if not (rows["language"] == language).any():
            raise TracInError(
                f"{source} has no sample left in language {language!r} (of {languages}): leave out that language, or "
                "check the settings for placeholders, labels and items."
            )


def _check(rows: pd.DataFrame, source: str) -> None:
    blank = _is_placeholder(rows, [""])
    if blank.any():
        first = rows[blank].iloc[0]
        raise TracInError(
            f"{source} has {int(blank.sum())} rows without a text; the first is item {first['item']!r} in language "
            f"{first['language']!r}: correct them, or add '' to drop_texts to leave such rows out."
        )
    twice = rows.duplicated(["language", "item"])
    if twice.any():
        first = rows[twice].iloc[0]
        raise TracInError(
            f"{source} has item {first['item']!r} more than once in language {first['language']!r}: name a column as "
            "item that tells the samples of a language apart."
        )


def _to_dataset(rows: pd.DataFrame, names: list[str], source: str) -> Dataset:
    unknown = sorted(set(rows["label"]) - set(names))
    if unknown:
        raise TracInError(
            f"{source} has the label {unknown[0]!r}, but the labels are {names}: correct it, or merge it into one of them."
        )
    columns = {name: rows[name].tolist() for name in [*text_columns(rows), "label", "language", "item"]}
    number = {name: i for i, name in enumerate(names)}
    columns["label"] = [number[label] for label in columns["label"]]
    features = Features({name: ClassLabel(names=names) if name == "label" else Value("string") for name in columns})
    return Dataset.from_dict(columns, features=features)
