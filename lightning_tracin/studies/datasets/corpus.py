"""One shape for every source: text, label, language and item, with an account of the rows left out.

A loader turns its source into a table of strings (columns ``text``, perhaps ``text_pair``, ``label``, ``language`` and
``item``); everything below works on such tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import pandas as pd
from datasets import ClassLabel, Dataset, Features, Value

from lightning_tracin.errors import TracInError

#: What to do with an item whose translations do not have one label.
DifferingLabels: TypeAlias = Literal["error", "drop", "keep"]


@dataclass(frozen=True)
class Dropped:
    """How many rows of a language were left out, and why."""

    language: str
    reason: str
    count: int


@dataclass(frozen=True)
class Corpus:
    """Samples in several languages, and the account of what was left out on the way.

    Attributes:
        dataset: Columns ``text`` (``text_pair`` for sentence pairs), ``label`` (a ``ClassLabel``), ``language`` and
            ``item``. Samples that are translations of each other have the same item.
        dropped: One entry per language and reason; empty if every row of the source is in ``dataset``.
    """

    dataset: Dataset
    dropped: tuple[Dropped, ...] = ()

    def summary(self) -> str:
        """Say, a line per language, how many samples it has and how many rows were dropped for which reason."""
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
    label_names: Sequence[str] | None = None,
    drop_texts: Sequence[str] = (),
    merge_labels: Mapping[str, str | None] | None = None,
    differing_labels: DifferingLabels = "error",
    dropped: Sequence[Dropped] = (),
) -> Corpus:
    """Clean a table of strings and make a `Corpus` of it.

    Args:
        rows: Columns ``text``, perhaps ``text_pair``, ``label``, ``language`` and ``item``, all strings; a label that
            is missing is an empty string.
        source: What to call the data in messages.
        parallel: Keep only the items that every language has (an item dropped in one language is dropped in all).
        label_names: The labels in the order of their numbers; by default those of the rows, sorted.
        drop_texts: Rows with exactly one of these as a text (or second text) are placeholders and dropped.
        merge_labels: New names of labels; None drops the label's rows. Labels not named stay as they are.
        differing_labels: Where the data are parallel, an item that has one label in one language and another elsewhere (after
            merging) is an error; it may instead be dropped in every language, or kept as it is.
        dropped: What the loader itself left out already.

    Raises:
        TracInError: A text is empty, an item stands twice in a language, a label is unknown or differs between translations,
            or nothing is left.
    """
    languages = list(rows["language"].unique())
    rows, placeholders = _drop_where(rows, _is_placeholder(rows, drop_texts), "with a placeholder for a text")
    rows, unlabelled = _drop_where(rows, rows["label"] == "", "without a label")
    rows, unwanted = _merge(rows, merge_labels or {})
    rows, untranslated = keep_parallel(rows, len(languages)) if parallel else (_told_apart(rows), ())
    _check_left(rows, languages, source)
    _check(rows, source)
    rows, disputed = _settle_labels(rows, differing_labels, source) if parallel else (rows, ())
    _check_left(rows, languages, source)
    names = list(label_names) if label_names is not None else sorted_labels(rows["label"])
    left_out = (*dropped, *placeholders, *unlabelled, *unwanted, *untranslated, *disputed)
    return Corpus(_to_dataset(rows, names, source), left_out)


def keep_parallel(rows: pd.DataFrame, languages: int) -> tuple[pd.DataFrame, tuple[Dropped, ...]]:
    """Keep the items that stand in so many languages."""
    missing = rows.groupby("item")["language"].transform("nunique") < languages
    return _drop_where(rows, missing, "missing in another language")


def _told_apart(rows: pd.DataFrame) -> pd.DataFrame:
    """Items that mean nothing across languages, with their language in front where another language has the same."""
    if not (rows.groupby("item")["language"].nunique() > 1).any():
        return rows
    apart: pd.DataFrame = rows.assign(item=rows["language"] + ":" + rows["item"])
    return apart


def sorted_labels(labels: pd.Series[str]) -> list[str]:
    """Return the distinct labels, in numeric order if all of them are whole numbers, else alphabetically."""
    names = sorted(set(labels))
    return sorted(names, key=int) if all(name.removeprefix("-").isdecimal() for name in names) else names


def text_columns(rows: pd.DataFrame) -> list[str]:
    """Return the names of the text columns: one, or two for sentence pairs."""
    return [name for name in ("text", "text_pair") if name in rows]


def _is_placeholder(rows: pd.DataFrame, placeholders: Sequence[str]) -> pd.Series[bool]:
    found: pd.Series[bool] = pd.Series(False, index=rows.index)
    for name in text_columns(rows):
        found |= rows[name].str.strip().isin(list(placeholders))
    return found


def _merge(rows: pd.DataFrame, names: Mapping[str, str | None]) -> tuple[pd.DataFrame, tuple[Dropped, ...]]:
    unwanted = rows["label"].isin([label for label, name in names.items() if name is None])
    kept, entries = _drop_where(rows, unwanted, "with a label that is left out")
    return kept.assign(label=kept["label"].map(lambda label: names.get(label, label))), entries


def _settle_labels(
    rows: pd.DataFrame, differing_labels: DifferingLabels, source: str
) -> tuple[pd.DataFrame, tuple[Dropped, ...]]:
    """Drop, keep or refuse the items whose translations do not have one label."""
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
        f"{source} has {items['item'].nunique():,} items whose translations differ in their label, the first is item "
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
                "look at the placeholders, labels and items asked for."
            )


def _check(rows: pd.DataFrame, source: str) -> None:
    blank = _is_placeholder(rows, [""])
    if blank.any():
        first = rows[blank].iloc[0]
        raise TracInError(
            f"{source} has {int(blank.sum())} rows without a text, the first is item {first['item']!r} in language "
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
