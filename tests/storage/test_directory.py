"""What a run directory holds survives the way to disk and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_tracin import TracInError
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.records import RunRecord
from lightning_tracin.storage.sample_table import SampleTable
from tests.support.hand_made import record_of

_ODD = ('two\nlines, "quoted"', "separators \u2028 \x85 \x0c", "lone surrogate \ud800", "", "tab\tand \x1b[31mred", "한국어")


def record(table: SampleTable, **changes: object) -> RunRecord:
    return record_of(table, table, 14, 3).model_copy(update=changes)


def test_text_of_every_kind_comes_back(tmp_path: Path) -> None:
    table = SampleTable(("de",) * 6, (None, "a", None, "b", "c", "d"), _ODD, ("0", None, "1", "x", "y", "z"))
    directory = RunDirectory(tmp_path)
    directory.start(record(table), table, table)
    assert directory.samples("train") == table


def test_a_second_run_is_refused_and_overwrites_nothing(tmp_path: Path) -> None:
    table = SampleTable(("de",), (None,), ("first",), (None,))
    other = SampleTable(("de",), (None,), ("second",), (None,))
    directory = RunDirectory(tmp_path)
    directory.start(record(table), table, table)
    with pytest.raises(TracInError, match="holds another run"):
        directory.start(record(other, run="s"), other, other)
    with pytest.raises(TracInError, match="holds a run with train"):
        directory.resume(record(other), step=0)
    assert directory.samples("train") == table
