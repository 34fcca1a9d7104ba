r"""Whether the first row of a file is its header, as the settings say: a header read as a sample would be a class of its own.

With names given for the columns, the first row of every file is data. It is a header all the same if its cells are names of
columns, or if it has a label that no other row has, and the files tell it in another way: all first rows are alike, all other
labels are numbers, or all others are repeated. Without names, the first row is the header;
it is a sample if a column that is read is not among its cells, and they do not look like names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from lightning_tracin.attribution.language_names import trimmed
from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets.column_roles import Columns
from lightning_tracin.studies.datasets.table_files import NAMED_CELLS

#: Names that people give to columns: no label and no text.
_USUAL = frozenset(
    {"text", "sentence", "sentence1", "sentence2", "premise", "hypothesis", "review"}
    | {"label", "class", "category", "target", "gold_label", "language", "lang", "item", "id", "index"}
)

#: Rows of a file from which its labels tell that its first row is a header.
_MANY = 10

#: More letters or words than the name of a column has.
_LONG, _WORDS = 60, 5


@dataclass(frozen=True)
class FileTable:
    """The table of one file.

    Attributes:
        source: the file, in messages.
        table: its cells as strings; the index is the number of each row's line.
        columns: the columns to read.
    """

    source: str
    table: pd.DataFrame
    columns: Columns


def check_headers(files: Sequence[FileTable], header: Sequence[str] | None) -> None:
    """Check that no header is read as a sample, and no sample as a header.

    Args:
        files: the tables of one data set.
        header: the names of the columns that are given for files without a header.

    Raises:
        TracInError: a row is a header, or a header is a row; the message names file, row and remedy.

    Example:
        >>> table = pd.DataFrame([["Text", "Label"], ["dog", "animal"]], columns=["text", "label"])
        >>> check_headers([FileTable("en.csv", table, Columns())], ["text", "label"])
        Traceback (most recent call last):
        lightning_tracin.errors.TracInError: The first row of en.csv is a header, ['Text', 'Label'], but ...
    """
    for file in files:
        if header is None and not file.source.endswith(NAMED_CELLS):
            _check_names(file, files)
    if header is not None:
        _check_first(files, header)
    for file in files:
        _check_repeated(file, header or ())


def _check_first(files: Sequence[FileTable], header: Sequence[str]) -> None:
    """Check that no first row is a header, where names are given."""
    files = [
        file for file in files if file.columns.label in file.table and len(file.table) and not file.source.endswith(NAMED_CELLS)
    ]
    counts = Counter(label for file in files for label in _labels(file)[1:])
    repeated = all(count > 1 for count in counts.values())
    numbers = bool(counts) and all(map(_is_number, counts))
    same = len(files) > 1 and len({tuple(map(_plain, file.table.iloc[0])) for file in files}) == 1
    for file in files:
        if _labels(file)[0] not in {"", *counts} and _is_header(file, header, same or numbers, repeated):
            raise TracInError(
                f"The first row of {file.source} is a header, {_short(list(file.table.iloc[0]))}, but header={list(header)} is "
                "for files without one: leave out header, and name the file's own columns."
            )


def _is_header(file: FileTable, header: Sequence[str], odd: bool, repeated: bool) -> bool:
    """Whether a first row, whose label no other row has, is a header.

    Args:
        file: a file.
        header: the names of the columns that are given.
        odd: whether the first row is the same in all files, or all other labels are numbers.
        repeated: whether all other labels are repeated.
    """
    names = _known(file, header)
    by_name = _labels(file)[0] in _label_names(file) or sum(_plain(cell) in names for cell in file.table.iloc[0]) > 1
    may_be = _not_a_name(list(file.table.iloc[0])) is None
    return by_name or (may_be and (odd or (repeated and len(file.table) >= _MANY)))


def _known(file: FileTable, header: Sequence[str]) -> set[str]:
    """What may be the name of a column."""
    return {*_USUAL, *map(_plain, (*header, *file.columns.named.values(), *file.table.columns))}


def _label_names(file: FileTable) -> set[str]:
    return {"label", _plain(file.columns.label)}


def _labels(file: FileTable) -> list[str]:
    return [_plain(label) for label in file.table[file.columns.label]]


def _check_repeated(file: FileTable, header: Sequence[str]) -> None:
    """Check that no row repeats the names of the columns, as where files were joined."""
    if file.columns.label not in file.table:
        return
    names, own = _known(file, header), _label_names(file)
    for place, label in enumerate(_labels(file)):
        row = list(file.table.iloc[place]) if label in own else []
        if sum(_plain(cell) in names for cell in row) > 1:
            raise TracInError(
                f"Line {file.table.index[place]} of {file.source} is a header, {_short(row)}, and no sample: delete it from the "
                "file, or leave out header if it is given and that is the first line."
            )


def _check_names(file: FileTable, files: Sequence[FileTable]) -> None:
    names = list(file.table.columns)
    missing = {role: name for role, name in file.columns.named.items() if name not in names}
    if not missing:
        return
    odd = _not_a_name(names)
    if odd is None and len(files) > 1 and not any(_alike(file, other) for other in files if other is not file):
        odd = "no other file has any of these names"
    if odd is not None:
        role, name = next(iter(missing.items()))
        raise TracInError(
            f"{file.source} has no column {name!r} for the {role}, and its first row, {_short(names)}, looks like a "
            f"sample ({odd}): "
            f"give the names of its columns as header, or name the right one as {role}."
        )


def _alike(one: FileTable, other: FileTable) -> bool:
    """Whether two files have the name of a column in common."""
    return bool({_plain(name) for name in one.table.columns} & {_plain(name) for name in other.table.columns})


def _not_a_name(names: Sequence[str]) -> str | None:
    """Why one of these is no name of a column; None if all may be."""
    for name in names:
        plain = trimmed(name)
        if _is_number(plain):
            return f"{plain!r} is a number"
        if len(plain) > _LONG or len(plain.split()) > _WORDS or plain.endswith((".", "!", "。", "！", "।")):
            return f"{_short([name])[1:-1]} is a text"
    return None


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"[-+]?\d+([.,]\d+)?", cell) is not None


def _short(cells: Sequence[str]) -> str:
    return repr([cell if len(cell) <= _LONG else f"{cell[: _LONG - 3]}..." for cell in cells])


def _plain(cell: str) -> str:
    """A cell without case, blanks and quotes: `"Gold Label"` is `gold_label`."""
    return re.sub(r"[\s_-]+", "_", trimmed(cell).strip("\"'#").strip().casefold())
