"""Columns of a table that hold the text, the label, the language and the item."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from lightning_tracin.attribution.language_names import language_name, trimmed
from lightning_tracin.errors import TracInError

#: Stands for the language in paths and names of columns.
PLACEHOLDER = "{language}"


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read; other columns are ignored.

    ``{language}`` in a name is replaced by the language: ``{language}_review`` is ``de_review`` for German.

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

    @property
    def roles(self) -> dict[str, tuple[str, ...]]:
        """What each column is used for: name -> roles."""
        return {name: tuple(role for role, other in self.named.items() if other == name) for name in self.named.values()}

    def of_language(self, language: str) -> Columns:
        """The columns of one language.

        Example:
            >>> Columns(text="{language}_review").of_language("de").text
            'de_review'
        """
        return replace(self, **{role: name.replace(PLACEHOLDER, language) for role, name in self.named.items()})

    def check(self) -> None:
        """Raise a `TracInError` if columns differ by language although one table holds several languages in its rows."""
        differing = [name for name in self.named.values() if PLACEHOLDER in name]
        if differing and self.language is not None:
            raise TracInError(
                f"The column {differing[0]!r} is one for each language, but {self.language!r} is named as the column of the "
                "language: leave out one of them."
            )


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
    if columns.language is not None:
        rows["language"] = rows["language"].map({name: language_name(name) or "" for name in rows["language"].unique()})
    rows["label"] = rows["label"].map({name: trimmed(name) for name in rows["label"].unique()})
    if columns.item is not None:
        rows["item"] = rows["item"].map(trimmed)
    for role in ("language", "item"):
        blank = rows.index[rows[role] == ""]
        if role in columns.named and len(blank):
            first = f" (the first in line {blank[0]} of the file)" if rows.index.name == "line" else ""
            raise TracInError(
                f"{source} has {len(blank):,} rows without a value in column {columns.named[role]!r}, the {role}: fill it "
                f"in{first}."
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
        parts.append(pick_columns(table, columns.of_language(language), source=source, language=language, item_prefix=prefix))
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
    languages = [language_name(language) or language for language in languages]
    check_languages(languages, list(rows["language"].unique()), source)
    selected: pd.DataFrame = pd.concat([rows[rows["language"] == language] for language in languages], ignore_index=True)
    return selected


def check_languages(asked: Sequence[str], found: Sequence[str], source: str) -> None:
    """Raise a `TracInError` if a requested language is missing."""
    missing = [language for language in asked if language not in found]
    if missing:
        raise TracInError(f"{source} has no language {missing[0]!r}; it has {sorted(found)}: name only these.")
