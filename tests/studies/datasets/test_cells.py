import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets.cells import cell_text

LABEL = ("label",)


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        *((0, "0"), (0.0, "0"), (-0.0, "0"), ("0", "0"), ("0.0", "0.0"), ("000", "000"), (Decimal("0.0"), "0")),
        *(
            (1, "1"),
            (1.0, "1"),
            ("1", "1"),
            (0.5, "0.5"),
            (Decimal("0.50"), "0.5"),
            (100.0, "100"),
            (1e22, "10000000000000000000000"),
        ),
        *((True, "True"), (False, "False"), (None, ""), (float("nan"), ""), (Decimal("NaN"), ""), (np.float32("nan"), "")),
        *((np.int64(7), "7"), (np.str_("nan"), "nan"), (np.bool_(True), "True"), (np.float64(2.0), "2")),
        *(
            ("nan", "nan"),
            ("NA", "NA"),
            ("null", "null"),
            ("None", "None"),
            (" a ", " a "),
            (datetime.date(2026, 1, 2), "2026-01-02"),
        ),
        *((12345678901234567890123, "12345678901234567890123"), (Decimal("12345678901234567.0"), "12345678901234567")),
    ],
)
def test_a_value_is_what_a_person_reads(value: Any, meant: str) -> None:
    assert cell_text(value, LABEL, "a.jsonl, line 1") == meant


@given(st.integers(-(10**25), 10**25))
def test_whole_numbers_are_one_value_however_they_are_typed(number: int) -> None:
    typed = {cell_text(one, (), "x") for one in (number, str(number), Decimal(number), Decimal(f"{number}.00"))}
    assert typed == {str(number)}


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_no_float_loses_its_value(number: float) -> None:
    assert float(cell_text(number, (), "x")) == number


@pytest.mark.parametrize(
    ("value", "roles", "reason"),
    [
        (float("inf"), LABEL, "is inf, an infinite number: correct it, or write null"),
        (Decimal("-Infinity"), LABEL, "is -Infinity, an infinite number"),
        (False, ("text",), "is false without quotes, but is used as the text: put it in quotes, or as null"),
        (True, ("label", "language"), "is true without quotes, but is used as the language"),
        ([1], LABEL, r"is \[1\], of type list: it should be a string or a number; correct it, or name another column"),
        ({"de": "x"}, ("text",), r"is \{'de': 'x'\}, of type dict"),
        (b"x", ("text",), "is b'x', of type bytes"),
        ("a\0b", ("text",), r"is 'a\\x00b', which has a NUL character: remove it"),
        ("a\ud800", ("text",), r"is 'a\\ud800', which has half a character .*: write all of it, or remove it"),
    ],
)
def test_a_value_that_means_nothing_is_refused_with_its_place(value: Any, roles: tuple[str, ...], reason: str) -> None:
    with pytest.raises(TracInError, match=f"^a.jsonl, line 3, column 'x', {reason}"):
        cell_text(value, roles, "a.jsonl, line 3, column 'x',")
