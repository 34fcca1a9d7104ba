"""Tables of strings from files: CSV, TSV, JSON lines, CoNLL; no types are guessed, so ``NA`` stays a text and ``01`` a label."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets.conll_comments import sentences_of
from lightning_tracin.studies.datasets.json_lines import cells_of, objects_of

#: What the names of files end in.
SUFFIXES = (".csv", ".tsv", ".jsonl", ".conll")

#: Of these, the files whose cells have their column's name beside them, so that there is no header.
NAMED_CELLS = (".jsonl", ".conll")

#: Name of the index of a table from a file: the number of the line in which a row begins.
LINE = "line"

#: What to do about a blank line between rows, after which row numbers would not tell which rows are translations.
_BLANK = "delete that line if no translation is missing there, or name the column that translations share as item"

_Row = TypeVar("_Row")


def read_table(
    path: Path,
    header: Sequence[str] | None = None,
    roles: Mapping[str, Collection[str]] | None = None,
    *,
    skip_blank: bool = False,
) -> pd.DataFrame:
    r"""Read a file as a table of strings, whose index is the number of each row's line.

    A ``.tsv`` file is split at tabs only, and quotes have no meaning; a ``.csv`` file is quoted as in RFC 4180; a ``.jsonl``
    file has one object per line, with numbers and missing values as in `cell_text`; a row of a ``.conll`` file is a sentence,
    and its cells are the sentence's comments, ``# name = value``. Blank lines at the end are ignored.

    Args:
        path: a file with one of these extensions.
        header: names of the columns, for a file without a header.
        roles: what columns are used for: column -> roles, such as `label`; their values are checked.
        skip_blank: whether to skip blank lines before the last row. They are an error otherwise, because row numbers that say
            which rows are translations would shift.

    Raises:
        TracInError: the file does not exist, has another extension or another format, or has rows of different lengths.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "samples.tsv"
        >>> _ = path.write_text('text\tlabel\n"NA"\t01\n')
        >>> read_table(path).values.tolist()
        [['"NA"', '01']]
    """
    if path.suffix not in SUFFIXES:
        *others, last = SUFFIXES
        raise TracInError(f"{path} ends in {path.suffix!r}: only {', '.join(others)} and {last} files can be read.")
    if not path.is_file():
        raise TracInError(f"There is no file {path}: correct the path.")
    text = _decoded(path)
    if path.suffix == ".jsonl":
        return _from_objects(_to_last(objects_of(text, path), path, skip_blank), roles or {}, path)
    if path.suffix == ".conll":
        return _from_objects(_to_last(sentences_of(text, path), path, skip_blank), roles or {}, path)
    return _from_rows(_to_last(_rows(text, path), path, skip_blank), header, path)


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise TracInError(
            f"{path} cannot be read as UTF-8 {path.suffix}: line {line} has the byte {content[error.start]:#04x} "
            f"({error.reason}); correct the file, or save it as UTF-8."
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise TracInError(f"{path} has a NUL character in line {line}: remove it, or save the file as UTF-8 if it is UTF-16.")
    return text


def _rows(text: str, path: Path) -> dict[int, list[str] | None]:
    """The rows of a CSV or TSV file by the number of their first line; None for a blank line."""
    lines = io.StringIO(text, newline="")
    tabbed = path.suffix == ".tsv"
    rows: dict[int, list[str] | None] = {}
    with _fields_of_any_size():
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if tabbed else csv.reader(lines, strict=True)
        line = 1
        try:
            for row in reader:
                rows[line] = None if not row or (len(row) == 1 and not row[0].strip()) else row
                line = reader.line_num + 1
        except csv.Error as error:
            raise TracInError(
                f"{path} cannot be read as UTF-8 {path.suffix}: {error}, in the row that begins in line {line}; correct "
                "the file: "
                'a cell with a quote in it is written in quotes, with that quote doubled, as in "say ""hi""".'
            ) from error
    return rows


@contextmanager
def _fields_of_any_size() -> Iterator[None]:
    """Inside, `csv` reads cells of more than 131,072 characters."""
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _to_last(rows: Mapping[int, _Row | None], path: Path, skip_blank: bool) -> dict[int, _Row | None]:
    """The rows without blank lines at the end, and without all others that are to be skipped.

    Raises:
        TracInError: there are no rows.
    """
    last = max((line for line, row in rows.items() if row is not None), default=0)
    if not last:
        raise TracInError(f"{path} is empty: correct the path or the file.")
    return {line: row for line, row in rows.items() if line <= last and (row is not None or not skip_blank)}


def _from_rows(rows: dict[int, list[str] | None], header: Sequence[str] | None, path: Path) -> pd.DataFrame:
    names = list(header) if header is not None else _own_header(rows)
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise TracInError(
            f"{path} has more than one column {twice[0]!r}: give them different names in the file or as header, which is also "
            "needed if the first row is a sample."
        )
    for i, (line, row) in enumerate(rows.items()):
        if row is None or len(row) != len(names):
            remedy = _BLANK if row is None else "correct that line, or give the names of the columns as header"
            raise TracInError(
                f"{path} has {len(row or ())} columns in data row {i + 1}, but the header {names} has {len(names)} (line {line} "
                f"of the file): {remedy}."
            )
    table: pd.DataFrame = pd.DataFrame(list(rows.values()), columns=names, dtype=str, index=pd.Index(rows, name=LINE))
    return table


def _own_header(rows: dict[int, list[str] | None]) -> list[str]:
    """Take the first row that is not blank out of the rows."""
    while (first := rows.pop(min(rows))) is None:
        pass
    return first


def _from_objects(
    objects: Mapping[int, Mapping[str, Any] | None], roles: Mapping[str, Collection[str]], path: Path
) -> pd.DataFrame:
    rows = []
    for line, found in objects.items():
        if found is None:
            raise TracInError(f"{path} has a blank line before its last object (line {line} of the file): {_BLANK}.")
        rows.append(cells_of(found, roles, f"{path}, line {line}"))
    names = list(dict.fromkeys(name for row in rows for name in row))
    texts = [[row.get(name, "") for name in names] for row in rows]
    table: pd.DataFrame = pd.DataFrame(texts, columns=names, dtype=str, index=pd.Index(objects, name=LINE))
    return table
