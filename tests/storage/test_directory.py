"""What a run directory holds survives the way to disk and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_tracin import TracInError
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.records import RunRecord
from lightning_tracin.storage.sample_table import SampleTable
from lightning_tracin.storage.snapshots import SnapshotRecord
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


def snapshot_record(run: str, index: int, plain: bool) -> SnapshotRecord:
    return SnapshotRecord(
        index=index,
        epoch=1,
        step=index,
        steps=1,
        visits=1.0,
        learning_rates=(0.1,),
        last_learning_rates=(0.1,),
        groups={"weight": 0},
        elements=1,
        plain_steps=plain,
        run=run,
    )


@pytest.mark.parametrize("plain", [[True, True], [True, False]], ids=["plain steps", "not all plain"])
def test_which_metrics_follow_the_optimizers_steps(tmp_path: Path, plain: list[bool]) -> None:
    """Adam's scales always, plain gradients if every snapshot's steps are plain, and a method's own metric never."""
    table, directory = SampleTable(("de",), (None,), ("first",), (None,)), RunDirectory(tmp_path)
    directory.start(record(table), table, table)
    for index, one in enumerate(plain):
        directory.ledger.append(snapshot_record("drawn", index, one), {"weight": torch.zeros(1)})
    wanted = {"none": all(plain), "fisher": all(plain), "adam": True, "adam-factored": True, "adam-fisher": True, "ekfac": False}
    assert {metric: directory.follows_steps(metric) for metric in wanted} == wanted
