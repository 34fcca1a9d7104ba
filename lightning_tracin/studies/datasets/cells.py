"""One cell of a table as a string: what is a value, what is missing, and what is refused."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Collection
from decimal import Decimal
from typing import Any

from lightning_tracin.errors import TracInError

#: A number with more digits than this before or after its point keeps its exponent.
_DIGITS = 30

#: Types of values that are written as they print: dates and identifiers.
_PRINTED = (datetime.date, datetime.time, uuid.UUID)


def cell_text(value: Any, roles: Collection[str], place: str) -> str:
    """The string that a typed value of a table stands for.

    Strings stay as they are: `"000"`, `"nan"` and `"NA"` are values. A number is written by its value, so 1 and 1.0 are both
    `"1"`, because libraries turn whole numbers into floats when one of them is missing. None and NaN are missing.

    Args:
        value: a value from JSON, Arrow or numpy.
        roles: what the column is used for, such as `label`.
        place: name of the cell's column and row in messages.

    Returns:
        The string; empty if the value is missing.

    Raises:
        TracInError: the value is a list, an object or infinite, is true or false and no label, or is a string with a NUL or
            half a character.

    Example:
        >>> [cell_text(value, ("label",), "line 1") for value in (1, 1.0, "1", "01", True, None, float("nan"), "nan")]
        ['1', '1', '1', '01', 'True', '', '', 'nan']
    """
    if isinstance(value, str):
        return _checked(value, place)
    value = value.item() if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0 else value
    if value is None:
        return ""
    if isinstance(value, bool):
        others = [role for role in roles if role != "label"]
        if others:
            raise TracInError(
                f"{place} is {str(value).lower()} without quotes, but is used as the {others[0]}: put it in quotes, "
                "or as null if it is missing."
            )
        return str(value)
    if isinstance(value, (int, float, Decimal)):
        return _number(value, place)
    if isinstance(value, _PRINTED):
        return str(value)
    raise TracInError(
        f"{place} is {_short(value)}, of type {type(value).__name__}: it should be a string or a number; correct it, or name "
        "another column."
    )


def _checked(text: str, place: str) -> str:
    if "\0" in text:
        raise TracInError(f"{place} is {_short(text)}, which has a NUL character: remove it from the file.")
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise TracInError(
            f"{place} is {_short(text)}, which has half a character (a surrogate without its partner): write all of it, "
            "or remove it from the file."
        )
    return text


def _number(value: int | float | Decimal, place: str) -> str:
    exact = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    if exact.is_nan():
        return ""
    if exact.is_infinite():
        raise TracInError(f"{place} is {_short(value)}, an infinite number: correct it, or write null if it is missing.")
    if exact and not -_DIGITS < exact.adjusted() < _DIGITS:
        return str(value)
    digits = f"{exact:f}"
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if digits == "-0" else digits


def _short(value: Any) -> str:
    shown = ascii(value) if isinstance(value, str) else str(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
