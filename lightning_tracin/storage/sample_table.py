"""Facts about samples: language, item, text and label.

The columns are tuples, not a data frame: `None` stays `None`, equal strings are stored once, and ranks can hash and exchange the
columns byte for byte. Lone surrogates are escaped, because they exist in no encoding: pandas, Arrow and files refuse them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class SampleTable:
    """Facts about samples, one entry for each sample, in the order of their indices.

    Example:
        >>> table = SampleTable(language=("de", "en"), item=("1", "1"), text=("Hallo", "Hello"), label=(None, None))
        >>> table.take([1]).followed_by(table).counts()
        {'de': 1, 'en': 2}
    """

    language: tuple[str, ...]
    item: tuple[str | None, ...]
    text: tuple[str, ...]
    label: tuple[str | None, ...]

    def __post_init__(self) -> None:
        for name, column in vars(self).items():
            if not all(map(_encodable, column)):
                object.__setattr__(self, name, tuple(map(escaped, column)))

    def __len__(self) -> int:
        return len(self.language)

    def counts(self) -> dict[str, int]:
        """Number of samples of each language, in alphabetical order."""
        return dict(sorted(Counter(self.language).items()))

    def take(self, indices: Sequence[int]) -> SampleTable:
        """The table of the samples at these indices."""
        return SampleTable(**{name: tuple(column[index] for index in indices) for name, column in vars(self).items()})

    def followed_by(self, other: SampleTable) -> SampleTable:
        """Both tables, one after the other."""
        return SampleTable(**{name: column + getattr(other, name) for name, column in vars(self).items()})

    def rows(self) -> list[dict[str, str | int | None]]:
        """One record for each sample: index, language, item, text, label."""
        columns = zip(*vars(self).values(), strict=True)
        return [{"index": index, **dict(zip(vars(self), values, strict=True))} for index, values in enumerate(columns)]


def table_of_rows(rows: Iterable[Any]) -> SampleTable:
    """A table of samples from its rows; strings that many samples share are stored once.

    Example:
        >>> table_of_rows([{"index": 0, "language": "de", "item": None, "text": "Hallo", "label": "1"}])
        SampleTable(language=('de',), item=(None,), text=('Hallo',), label=('1',))
    """
    shared: dict[Any, Any] = {}
    columns: dict[str, list[Any]] = {"language": [], "item": [], "text": [], "label": []}
    for row in rows:
        for name, column in columns.items():
            column.append(row[name] if name == "text" else shared.setdefault(row[name], row[name]))
    return SampleTable(**{name: tuple(column) for name, column in columns.items()})


def _encodable(value: Any) -> bool:
    return not isinstance(value, str) or value.isascii() or not _SURROGATES.search(value)


def escaped(value: Any) -> Any:
    r"""A string with lone surrogates escaped as JSON escapes them; anything else as it is.

    Example:
        >>> escaped("half \ud800 a letter"), escaped(None)
        ('half \\ud800 a letter', None)
    """
    return value if _encodable(value) else value.encode("utf-8", "backslashreplace").decode("utf-8")
