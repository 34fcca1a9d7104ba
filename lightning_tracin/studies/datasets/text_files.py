"""Data from local files: one file per language, or one with a language column."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets.column_roles import (
    Columns,
    check_languages,
    rows_of_monolingual_tables,
    rows_of_multilingual_table,
)
from lightning_tracin.studies.datasets.corpus import Cleaning, Corpus, build_corpus
from lightning_tracin.studies.datasets.table_files import read_table

if TYPE_CHECKING:
    from typing_extensions import Unpack

PLACEHOLDER = "{language}"


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
    r"""Load samples from local CSV, TSV or JSON-lines files (see `read_table` for the formats).

    Args:
        pattern: a path with ``{language}`` in it (one file per language), or the path of a file with a language column.
        languages: the languages, in order; by default all in the data.
        columns: the columns to read; by default ``text`` and ``label``, with the row number as the item.
        header: names of the columns, for files without a header.
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
    if PLACEHOLDER in pattern:
        found = files_by_language(pattern)
        if not found:
            raise TracInError(f"No file matches {pattern}: correct the path; {PLACEHOLDER} stands for the language.")
        check_languages(languages or (), list(found), pattern)
        tables = ((one, str(found[one]), read_table(found[one], header)) for one in languages or found)
        rows = rows_of_monolingual_tables(tables, columns, parallel, item_prefix)
    else:
        path = Path(pattern)
        if columns.language is None:
            raise TracInError(
                f"{path} is one file, and no column is named as its language: name one as language, or put {PLACEHOLDER} "
                "in place of the language in the path."
            )
        rows = rows_of_multilingual_table(partial(read_table, path, header), columns, languages, parallel, str(path), item_prefix)
    return build_corpus(rows, source=pattern, parallel=parallel, **cleaning)


def files_by_language(pattern: str) -> dict[str, Path]:
    """The files that match a pattern, by the text in place of ``{language}``."""
    first, *rest = (re.escape(part) for part in Path(pattern).as_posix().split(PLACEHOLDER))
    regex = re.compile(f"{first}(?P<language>[^/]+)" + "(?P=language)".join(rest))
    anchor = Path(pattern.split(PLACEHOLDER)[0] + "x").parent
    matches = (
        (regex.fullmatch(path.as_posix()), path)
        for path in sorted(anchor.glob(Path(pattern).relative_to(anchor).as_posix().replace(PLACEHOLDER, "*")))
    )
    return {match["language"]: path for match, path in matches if match}
