"""Tables of strings from CSV, TSV and JSON-lines files; no types are guessed, so ``NA`` stays a text and ``01`` a label."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lightning_tracin.errors import TracInError


def read_table(path: Path, header: Sequence[str] | None = None) -> pd.DataFrame:
    r"""Read a file as a table of strings.

    A ``.tsv`` file is split at tabs only, and quotes have no meaning; a ``.csv`` file is quoted as in RFC 4180; a ``.jsonl``
    file has one object per line.

    Args:
        path: a file with one of these extensions.
        header: names of the columns, for a file without a header.

    Raises:
        TracInError: the file does not exist, has another extension or another format, or has rows of different lengths.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "samples.tsv"
        >>> _ = path.write_text('text\tlabel\n"NA"\t01\n')
        >>> read_table(path).values.tolist()
        [['"NA"', '01']]
    """
    if path.suffix not in {".csv", ".tsv", ".jsonl"}:
        raise TracInError(f"{path} ends in {path.suffix!r}: only .csv, .tsv and .jsonl files can be read.")
    if not path.is_file():
        raise TracInError(f"There is no file {path}: correct the path.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".jsonl":
                return _from_objects([json.loads(line) for line in file], path)
            tabbed = path.suffix == ".tsv"
            rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if tabbed else csv.reader(file, strict=True)
            return _from_rows(list(rows), header, path)
    except (csv.Error, ValueError) as error:  # ValueError: not UTF-8, or not JSON
        raise TracInError(f"{path} cannot be read as UTF-8 {path.suffix}: {error}; correct the file.") from error


def _from_rows(rows: list[list[str]], header: Sequence[str] | None, path: Path) -> pd.DataFrame:
    if not rows:
        raise TracInError(f"{path} is empty: correct the path or the file.")
    names, data = (rows[0], rows[1:]) if header is None else (list(header), rows)
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise TracInError(f"{path} has more than one column {twice[0]!r}: give them different names in the file or as header.")
    for i, row in enumerate(data):
        if len(row) != len(names):
            raise TracInError(
                f"{path} has {len(row)} columns in data row {i + 1}, but the header {names} has {len(names)}: correct "
                "the file, or give the names of the columns as header."
            )
    table: pd.DataFrame = pd.DataFrame(data, columns=names, dtype=str)
    return table


def _from_objects(objects: list[dict[str, object]], path: Path) -> pd.DataFrame:
    if not objects:
        raise TracInError(f"{path} is empty: correct the path or the file.")
    for i, row in enumerate(objects):
        if not isinstance(row, dict):
            raise TracInError(f"{path} has something other than an object in line {i + 1}: correct the file.")
    names = list(dict.fromkeys(name for row in objects for name in row))
    texts = [["" if row.get(name) is None else str(row[name]) for name in names] for row in objects]
    table: pd.DataFrame = pd.DataFrame(texts, columns=names, dtype=str)
    return table
