"""Tables of strings from CSV, TSV and JSON-lines files: nothing is guessed, ``NA`` stays a text and ``01`` a label."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lightning_tracin.errors import TracInError


def read_table(path: Path, header: Sequence[str] | None = None) -> pd.DataFrame:
    """Read a file as a table of strings.

    A ``.tsv`` file is split at its tabs and nothing else, so a quote in a sentence is just a quote; a ``.csv`` file is
    quoted as RFC 4180 says; a ``.jsonl`` file has one object per line.

    Args:
        path: A file that ends in one of these.
        header: The names of the columns, if the first row is data already.

    Raises:
        TracInError: The file does not exist, ends in something else, is not what its ending says, or has rows of
            different lengths.
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
            raise TracInError(f"{path} has something else than an object in line {i + 1}: correct the file.")
    names = list(dict.fromkeys(name for row in objects for name in row))
    texts = [[_as_text(row.get(name)) for name in names] for row in objects]
    table: pd.DataFrame = pd.DataFrame(texts, columns=names, dtype=str)
    return table


def _as_text(value: object) -> str:
    return "" if value is None else str(value)
