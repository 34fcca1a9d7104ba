"""Which columns of a table hold the text, the label, the language and the item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import pandas as pd

from lightning_tracin.errors import TracInError


@dataclass(frozen=True)
class Columns:
    """The names of the columns that matter; the others are not read.

    Attributes:
        text: The sentence, or the first of a pair.
        text_pair: The second sentence of a pair.
        label: The class, as a word or a number.
        language: The language of the row, where one table holds several languages.
        item: What translations of each other share; by default the row number.
    """

    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    language: str | None = None
    item: str | None = None

    @property
    def named(self) -> dict[str, str]:
        """The columns in use, from the role to the name."""
        pairs = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {role: name for role, name in pairs if name is not None}


def pick_columns(
    table: pd.DataFrame, columns: Columns, *, source: str, language: str | None = None, item_prefix: str = ""
) -> pd.DataFrame:
    """Return the columns that matter, under their standard names.

    Args:
        table: Any table.
        columns: Which of its columns matter.
        source: What to call the table in messages.
        language: The language of the whole table, if it has no column for it.
        item_prefix: Stands before the row number where that is the item, so that rows of unrelated tables differ.

    Raises:
        TracInError: A named column does not exist, there is no row, or one has no language or item.
    """
    check_columns(list(table.columns), columns, source)
    if table.empty:
        raise TracInError(f"{source} has no rows: correct the path or the file.")
    rows: pd.DataFrame = pd.DataFrame({role: table[name] for role, name in columns.named.items()})
    if columns.language is None:
        rows["language"] = language
    if columns.item is None:
        rows["item"] = [f"{item_prefix}{i}" for i in range(len(rows))]
    for role in ("language", "item"):
        blank = int((rows[role].str.strip() == "").sum()) if role in columns.named else 0
        if blank:
            raise TracInError(
                f"{source} has {blank:,} rows without a value in column {columns.named[role]!r}, the {role}: fill it in."
            )
    return rows


def check_columns(found: Sequence[str], columns: Columns, source: str) -> None:
    """Raise a `TracInError` if a column that is named is not there."""
    for role, name in columns.named.items():
        if name not in found:
            raise TracInError(
                f"{source} has no column {name!r} for the {role}; its columns are {list(found)}: name the right one as {role}."
            )


def select_languages(rows: pd.DataFrame, languages: Sequence[str] | None, source: str) -> pd.DataFrame:
    """Return the rows of the languages asked for, grouped by language; by default all rows."""
    if languages is None:
        return rows
    check_languages(languages, list(rows["language"].unique()), source)
    selected: pd.DataFrame = pd.concat([rows[rows["language"] == language] for language in languages], ignore_index=True)
    return selected


def check_languages(asked: Sequence[str], found: Sequence[str], source: str) -> None:
    """Raise a `TracInError` if a language asked for is not there."""
    missing = [language for language in asked if language not in found]
    if missing:
        raise TracInError(f"{source} has no language {missing[0]!r}; it has {sorted(found)}: ask for these.")


def check_items(columns: Columns, parallel: bool, source: str) -> None:
    """Raise a `TracInError` if nothing in a table of several languages tells which samples are translations."""
    if parallel and columns.item is None:
        raise TracInError(
            f"{source} holds several languages, so row numbers cannot tell which samples are translations: name a "
            "column as item, or set parallel to false."
        )
