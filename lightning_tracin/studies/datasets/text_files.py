"""Data from local files: one file per language, or one with a language column."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from lightning_tracin.attribution.language_names import language_name, trimmed
from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets.column_roles import (
    PLACEHOLDER,
    Columns,
    check_languages,
    rows_of_monolingual_tables,
    rows_of_multilingual_table,
)
from lightning_tracin.studies.datasets.corpus import Cleaning, Corpus, build_corpus
from lightning_tracin.studies.datasets.file_headers import FileTable, check_headers
from lightning_tracin.studies.datasets.table_files import read_table

if TYPE_CHECKING:
    from typing_extensions import Unpack


def load_files(
    pattern: str | Path,
    *,
    languages: Sequence[str] | None = None,
    columns: Columns | None = None,
    header: Sequence[str] | None = None,
    parallel: bool = True,
    item_prefix: str = "",
    **cleaning: Unpack[Cleaning],
) -> Corpus:
    r"""Load samples from local CSV, TSV, JSON-lines or CoNLL files (see `read_table` for the formats).

    Args:
        pattern: a path with ``{language}`` in it (one file per language), or the path of a file with a language column or with
            columns for each language (such as ``{language}_review``).
        languages: the languages, in order; by default all in the data.
        columns: the columns to read; by default ``text`` and ``label``, with the row number as the item.
        header: names of the columns, for files without a header; a file that has one all the same is refused.
        parallel: whether samples with the same item are translations; then only items that every language has are kept.
            Otherwise, row numbers of different languages are unrelated.
        item_prefix: prefix of row numbers used as items; give unrelated files different ones.
        **cleaning: see `Cleaning`.

    Raises:
        TracInError: a file, language or column is missing, a file has another format than its name says, or the samples are
            invalid (see `build_corpus`).

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for language, text in (("de", "Hund"), ("en", "dog")):
        ...     _ = (folder / f"{language}.csv").write_text(f"text,label\n{text},animal\n")
        >>> load_files(folder / "{language}.csv").dataset["text"][:]
        ['Hund', 'dog']
    """
    pattern, columns = str(pattern), columns or Columns()
    columns.check()
    if PLACEHOLDER in pattern:
        files = _files_by_language(pattern, languages, columns, header)
    elif any(PLACEHOLDER in name for name in columns.named.values()):
        files = _columns_by_language(Path(pattern), languages, columns, header)
    elif columns.language is None:
        raise TracInError(
            f"{pattern} is one file, and no column is named as its language: name one as language, or put {PLACEHOLDER} "
            "in place of the language in the path, or in the name of a column."
        )
    else:
        read = partial(_table, Path(pattern), columns, header)
        rows = rows_of_multilingual_table(read, columns, languages, parallel, pattern, item_prefix)
        return build_corpus(rows, source=pattern, parallel=parallel, **cleaning)
    check_headers(list(files.values()), header)
    tables = ((language, file.source, file.table) for language, file in files.items())
    rows = rows_of_monolingual_tables(tables, columns, parallel, item_prefix)
    return build_corpus(rows, source=pattern, parallel=parallel, **cleaning)


def _files_by_language(
    pattern: str, languages: Sequence[str] | None, columns: Columns, header: Sequence[str] | None
) -> dict[str, FileTable]:
    """The tables of the files that match a pattern, by language."""
    found = files_by_language(pattern)
    if not found:
        raise TracInError(f"No file matches {pattern}: correct the path; {PLACEHOLDER} stands for the language.")
    asked = _named(languages) or list(found)
    check_languages(asked, list(found), pattern)
    files = {}
    for language in asked:
        own = columns.of_language(language)
        names = header and [name.replace(PLACEHOLDER, language) for name in header]
        files[language] = FileTable(str(found[language]), _read(found[language], own, names), own)
    return files


def _columns_by_language(
    path: Path, languages: Sequence[str] | None, columns: Columns, header: Sequence[str] | None
) -> dict[str, FileTable]:
    """The table of one file that has columns for each language, by language."""
    table = _read(path, columns, header)
    asked = _named(languages) or languages_of_columns(list(table.columns), columns, str(path))
    # Read again for the roles of each language's columns, by which values are checked.
    return {one: FileTable(str(path), _read(path, columns.of_language(one), header), columns.of_language(one)) for one in asked}


def languages_of_columns(names: Sequence[str], columns: Columns, source: str) -> list[str]:
    """The languages for which a table has a column of each role.

    Args:
        names: of the table's columns.
        columns: the columns to read, some with ``{language}`` in their names.
        source: name of the table in messages.

    Raises:
        TracInError: there is no such language, or every column may be one.

    Example:
        >>> languages_of_columns(["de_review", "en_review", "label"], Columns(text="{language}_review"), "reviews.csv")
        ['de', 'en']
    """
    patterns = [name for name in columns.named.values() if PLACEHOLDER in name]
    if any(not trimmed(name.replace(PLACEHOLDER, "")) for name in patterns):
        raise TracInError(f"Any column of {source} may be that of a language: name the languages (they are among {list(names)}).")
    found = [language for name in names for language in _matches(patterns[0], name)]
    found = [one for one in found if all(pattern.replace(PLACEHOLDER, one) in names for pattern in patterns)]
    if not found:
        raise TracInError(
            f"{source} has no column {patterns[0]!r} for any language; its columns are {list(names)}: name the right one."
        )
    return found


def _matches(pattern: str, name: str) -> list[str]:
    """The text in place of ``{language}``, if a name matches a pattern."""
    match = re.fullmatch(_regex(pattern, ".+"), name)
    return [match["language"]] if match else []


def _regex(pattern: str, language: str) -> str:
    """A regular expression for a pattern, in which ``{language}`` is the same text wherever it stands."""
    first, *rest = (re.escape(part) for part in pattern.split(PLACEHOLDER))
    return f"{first}(?P<language>{language})" + "(?P=language)".join(rest)


def _named(languages: Sequence[str] | None) -> list[str]:
    """The languages without what cannot be seen in their names."""
    return [language_name(language) or language for language in languages or ()]


def _read(path: Path, columns: Columns, header: Sequence[str] | None) -> pd.DataFrame:
    return read_table(path, header, columns.roles, skip_blank=columns.item is not None)


def _table(path: Path, columns: Columns, header: Sequence[str] | None) -> pd.DataFrame:
    """The table of a file that holds several languages, with its header checked."""
    table = _read(path, columns, header)
    check_headers([FileTable(str(path), table, columns)], header)
    return table


def files_by_language(pattern: str) -> dict[str, Path]:
    """The files that match a pattern, by the text in place of ``{language}``; hidden files are left out.

    Raises:
        TracInError: two files have the same language, written in two ways.
    """
    whole = Path(pattern).as_posix()
    anchor = Path(pattern.split(PLACEHOLDER)[0] + "x").parent
    rest = Path(pattern).relative_to(anchor).as_posix()
    regex = re.compile(_regex(whole, r"[^/.][^/]*"))
    found: dict[str, Path] = {}
    for path in sorted(anchor.glob("*".join(map(glob.escape, rest.split(PLACEHOLDER))))):
        match = regex.fullmatch(path.as_posix())
        language = language_name(match["language"]) if match and path.is_file() else None
        if language is None:
            continue
        if language in found:
            raise TracInError(f"{found[language]} and {path} are both of language {language!r}: join them, or rename one.")
        found[language] = path
    return found
