"""Columns of a table that hold the text, the label, the language and the item."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from lightning_tracin.errors import TracInError


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read; other columns are ignored.

    Attributes:
        text: the sentence, or the first of a pair.
        text_pair: the second sentence of a pair.
        label: the class, as a word or a number.
        language: the language of the row, if one table holds several languages.
        item: the value that translations share; by default the row number.

    Example:
        >>> Columns(text="sentence", item="id").named
        {'text': 'sentence', 'label': 'label', 'item': 'id'}
    """

    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    language: str | None = None
    item: str | None = None

    @property
    def named(self) -> dict[str, str]:
        """The columns in use: role -> name."""
        return {role: name for role, name in vars(self).items() if name is not None}


def pick_columns(
    table: pd.DataFrame, columns: Columns, *, source: str, language: str | None = None, item_prefix: str = ""
) -> pd.DataFrame:
    """Select the columns to read, and rename them to their standard names.

    Args:
        table: any table of strings.
        columns: the columns to read.
        source: name of the table in messages.
        language: the language of the whole table, if it has no column for it.
        item_prefix: prefix of row numbers used as items, so that rows of unrelated tables differ.

    Raises:
        TracInError: a named column does not exist, there is no row, or a row has no language or item.

    Example:
        >>> table = pd.DataFrame({"sentence": ["Hallo"], "label": ["yes"]})
        >>> pick_columns(table, Columns(text="sentence"), source="de.csv", language="de").values.tolist()
        [['Hallo', 'yes', 'de', '0']]
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
    """Raise a `TracInError` if a named column does not exist."""
    for role, name in columns.named.items():
        if name not in found:
            raise TracInError(
                f"{source} has no column {name!r} for the {role}; its columns are {list(found)}: name the right one as {role}."
            )


def rows_of_monolingual_tables(
    tables: Iterable[tuple[str, str, pd.DataFrame]], columns: Columns, parallel: bool, item_prefix: str
) -> pd.DataFrame:
    """Join tables that hold one language each.

    Args:
        tables: language, name in messages, and table.
        columns: the columns to read.
        parallel: whether rows with the same number are translations.
        item_prefix: see `pick_columns`.

    Raises:
        TracInError: see `pick_columns`.
    """
    parts = []
    for language, source, table in tables:
        prefix = item_prefix if parallel else f"{item_prefix}{language}:"
        parts.append(pick_columns(table, columns, source=source, language=language, item_prefix=prefix))
    rows: pd.DataFrame = pd.concat(parts, ignore_index=True)
    return rows


def rows_of_multilingual_table(
    read: Callable[[], pd.DataFrame],
    columns: Columns,
    languages: Sequence[str] | None,
    parallel: bool,
    source: str,
    item_prefix: str,
) -> pd.DataFrame:
    """Read a table with a language column; returns the rows of some languages, grouped by language.

    Args:
        read: reads the table.
        columns: the columns to read.
        languages: languages to return, in order; None returns all rows.
        parallel: whether samples with the same item are translations.
        source: name of the table in messages.
        item_prefix: see `pick_columns`.

    Raises:
        TracInError: a language is missing, the data are parallel but have no item column, or see `pick_columns`.
    """
    if parallel and columns.item is None:
        raise TracInError(
            f"{source} holds several languages, so row numbers cannot tell which samples are translations: name a "
            "column as item, or set parallel to false."
        )
    rows = pick_columns(read(), columns, source=source, item_prefix=item_prefix)
    if languages is None:
        return rows
    check_languages(languages, list(rows["language"].unique()), source)
    selected: pd.DataFrame = pd.concat([rows[rows["language"] == language] for language in languages], ignore_index=True)
    return selected


def check_languages(asked: Sequence[str], found: Sequence[str], source: str) -> None:
    """Raise a `TracInError` if a requested language is missing."""
    missing = [language for language in asked if language not in found]
    if missing:
        raise TracInError(f"{source} has no language {missing[0]!r}; it has {sorted(found)}: name only these.")
