"""JSON lines: one object a line, whose keys are the names of the columns."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets.cells import cell_text


class _Object(dict[str, Any]):
    """An object of a file, with the keys that it has more than once."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        names = [name for name, _ in pairs]
        self.repeated = {name for name in names if names.count(name) > 1} if len(self) < len(names) else set()


def objects_of(text: str, path: Path) -> dict[int, dict[str, Any] | None]:
    r"""The objects of a file, by the number of their line; None for a blank line.

    Args:
        text: what the file holds.
        path: of the file, for messages.

    Raises:
        TracInError: a line is not JSON, or something other than an object.

    Example:
        >>> objects_of('{"text": "a"}\n\n{"text": "b"}\n', Path("a.jsonl"))
        {1: {'text': 'a'}, 2: None, 3: {'text': 'b'}}
    """
    return dict(_numbered(text, path))


def _numbered(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    for number, line in enumerate(io.StringIO(text, newline=""), start=1):
        if not line.strip():
            yield number, None
            continue
        if number == 1 and line.strip() == "[":
            raise TracInError(_is_array(path))
        try:
            found = json.loads(line, object_pairs_hook=_Object, parse_float=_number, parse_int=Decimal, parse_constant=Decimal)
        except RecursionError as error:
            raise TracInError(f"{path} is nested too deeply in line {number}: correct the file.") from error
        except json.JSONDecodeError as error:
            raise TracInError(
                f"{path} cannot be read as UTF-8 .jsonl: {error.msg} in line {number}, at character {error.colno} of "
                f"{line.strip()[:60]!r}; correct the file, which should have one object a line."
            ) from error
        if number == 1 and isinstance(found, list) and all(isinstance(one, dict) for one in found):
            raise TracInError(_is_array(path))
        if not isinstance(found, dict):
            raise TracInError(f"{path} has something other than an object in line {number}: correct the file.")
        yield number, found


def _number(digits: str) -> Decimal | float:
    """A number as it is written; infinity where its exponent has more digits than any number needs."""
    try:
        return Decimal(digits)
    except InvalidOperation:
        return float(digits)


def _is_array(path: Path) -> str:
    return (
        f"{path} is one JSON array, but should have one object a line: write it with "
        f"pandas.read_json({path.name!r}, dtype=False).to_json(..., orient='records', lines=True)."
    )


def cells_of(found: Mapping[str, Any], roles: Mapping[str, Collection[str]], place: str) -> dict[str, str]:
    """The cells of one object as strings; only those of columns with a role are checked.

    Args:
        found: an object from `objects_of`.
        roles: what each column is used for: column -> roles.
        place: name of the object in messages.

    Raises:
        TracInError: a column with a role is there twice, or see `cell_text`.
    """
    repeated = sorted(getattr(found, "repeated", set()) & roles.keys())
    if repeated:
        raise TracInError(f"{place} has {repeated[0]!r} more than once: remove one of them.")
    cells = {}
    for name, value in found.items():
        if name in roles:
            cells[name] = cell_text(value, roles[name], f"{place}, column {name!r},")
        else:
            cells[_whole(name)] = "" if value is None else _whole(str(value))
    return cells


def _whole(text: str) -> str:
    """A text that UTF-8 can hold: a surrogate without its partner is written as its code."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
