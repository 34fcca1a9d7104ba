"""What a run directory holds survives the way to disk and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_tracin import TracInError
from lightning_tracin.directory import RunDirectory, RunRecord, Settings, known_samples
from lightning_tracin.tables import SampleTable

_ODD = ('two\nlines, "quoted"', "separators \u2028 \x85 \x0c", "lone surrogate \ud800", "", "tab\tand \x1b[31mred", "한국어")


def record(table: SampleTable, **changes: object) -> RunRecord:
    settings = Settings(
        every_n_epochs=1,
        every_n_train_steps=None,
        parameters=None,
        dtype="float32",
        batch_size=32,
        method="exact",
        projection_dim=None,
        preconditioner=None,
        per_layer=True,
    )
    known = known_samples(table)
    facts = {
        "run": "r",
        "loss": "per_sample_loss",
        "train": known,
        "probes": known,
        "parameters": 1,
        "elements": 1,
        "coverage": {"Linear": (1, 1)},
    }
    return RunRecord(**{**facts, "settings": settings, "versions": {}, **changes})  # type: ignore[arg-type]


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
