"""Facts about samples: language, item, text and label.

Tuples, not a data frame: `None` stays `None`, equal words are held once, and ranks hash and exchange them byte for byte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

_Entry = TypeVar("_Entry")


@dataclass(frozen=True)
class SampleTable:
    """Facts about samples, one entry a sample, in the order of their indices."""

    language: tuple[str, ...]
    item: tuple[str | None, ...]
    text: tuple[str, ...]
    label: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.language)

    def counts(self) -> dict[str, int]:
        """Number of samples of each language, in alphabetical order."""
        return dict(sorted(Counter(self.language).items()))

    def take(self, indices: Sequence[int]) -> SampleTable:
        """The table of the samples at these indices."""

        def chosen(column: tuple[_Entry, ...]) -> tuple[_Entry, ...]:
            return tuple(column[index] for index in indices)

        return SampleTable(chosen(self.language), chosen(self.item), chosen(self.text), chosen(self.label))

    def followed_by(self, other: SampleTable) -> SampleTable:
        """Both tables, one after the other."""
        return SampleTable(
            self.language + other.language, self.item + other.item, self.text + other.text, self.label + other.label
        )

    def rows(self) -> list[dict[str, str | int | None]]:
        """One record a sample: index, language, item, text, label."""
        columns = zip(self.language, self.item, self.text, self.label, strict=True)
        return [
            {"index": index, "language": language, "item": item, "text": text, "label": label}
            for index, (language, item, text, label) in enumerate(columns)
        ]


def table_of_rows(rows: Iterable[Any]) -> SampleTable:
    """A table of samples from its rows; words that many samples share are held once."""
    shared: dict[Any, Any] = {}
    language: list[str] = []
    text: list[str] = []
    item: list[str | None] = []
    label: list[str | None] = []
    for row in rows:
        language.append(shared.setdefault(row["language"], row["language"]))
        item.append(shared.setdefault(row["item"], row["item"]))
        text.append(row["text"])
        label.append(shared.setdefault(row["label"], row["label"]))
    return SampleTable(tuple(language), tuple(item), tuple(text), tuple(label))
