"""The user's own data where it is known what languages share: no word, or every word."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import fields
from itertools import cycle
from typing import Any, Literal, TypeAlias

from datasets import Dataset

from lightning_tracin.errors import TracInError
from lightning_tracin.storage.languages import own_languages
from lightning_tracin.studies.datasets.clones import Clone
from lightning_tracin.studies.datasets.corpus import text_columns
from lightning_tracin.studies.datasets.splits import Split

#: The part of the words that languages share.
Shared: TypeAlias = Literal[0, 1]


def cloned(split: Split, shared: Shared) -> Split:
    """A split with the same samples, labels and languages, in which languages share no word, or are all the same language.

    Args:
        split: the samples.
        shared: 0 maps the words of every language one-to-one to words of its own. 1 replaces each text by that of the same item
            in the first train language; where that has no such item, by one of its texts with the same label, in turn.

    Raises:
        TracInError: the first train language has no text with some label of another language.

    Example:
        >>> part = Dataset.from_dict({"text": ["ja", "yes"], "label": [1, 1], "language": ["de", "en"], "item": ["1", "1"]})
        >>> cloned(Split(part, part, part), 1).train["text"][:]
        ['ja', 'ja']
    """
    parts = {field.name: getattr(split, field.name) for field in fields(Split)}
    trained = list(dict.fromkeys(split.train.with_format(None)["language"]))
    every = list(dict.fromkeys(language for part in parts.values() for language in part.with_format(None)["language"]))
    own = own_languages(every, trained)  # a probe language may have another name for the same language
    if shared:
        return Split(**{name: _in_one_language(part, name, trained[0], own) for name, part in parts.items()})
    names = list(dict.fromkeys(own.get(language, language) for language in every))
    clones = {language: Clone(1 + names.index(own.get(language, language))) for language in every}
    return Split(**{name: _in_own_words(part, clones) for name, part in parts.items()})


def _in_own_words(part: Dataset, clones: Mapping[str, Clone]) -> Dataset:
    plain = part.with_format(None)
    languages = plain["language"][:]
    for column in text_columns(plain.column_names):
        texts = [clones[language].text(text) for language, text in zip(languages, plain[column][:], strict=True)]
        part = _replaced(part, column, texts)
    return part


def _in_one_language(part: Dataset, role: str, language: str, own: Mapping[str, str]) -> Dataset:
    plain = part.with_format(None)
    items, labels, languages = plain["item"][:], plain["label"][:], plain["language"][:]
    mine = [row for row, name in enumerate(languages) if own.get(name) == language]
    of_item = {items[row]: row for row in mine}
    of_label: dict[Any, list[int]] = defaultdict(list)
    for row in mine:
        of_label[labels[row]].append(row)
    in_turn = {label: cycle(rows) for label, rows in of_label.items()}
    rows = []
    for row, (item, label) in enumerate(zip(items, labels, strict=True)):
        if item in of_item and labels[of_item[item]] == label:
            rows.append(of_item[item])
        elif label in in_turn:
            rows.append(next(in_turn[label]))
        else:
            raise TracInError(
                f"Language {language!r} has no text among its {role} samples with the label of sample {row} "
                f"({languages[row]!r}), so the others cannot be made clones of it; name another language first in "
                "fit.train_languages, or take rails out of experiments."
            )
    for column in text_columns(plain.column_names):
        texts = plain[column][:]
        part = _replaced(part, column, [texts[row] for row in rows])
    return part


def _replaced(part: Dataset, column: str, texts: list[str]) -> Dataset:
    """The part with other texts in a column, which stays where it is."""
    names = part.column_names
    kept: Dataset = part.remove_columns(column).add_column(column, texts).select_columns(names)
    return kept
