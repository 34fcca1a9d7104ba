"""Tables of several snapshots of a run, and what is held while they are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from weakref import WeakSet

import pandas as pd
import pytest

from lightning_tracin import TracInRun
from lightning_tracin.analysis.reliance_by_snapshot import reliance_by_snapshot
from lightning_tracin.analysis.resampling import NO_INTERVAL
from lightning_tracin.analysis.scorer import Scorer
from lightning_tracin.analysis.tally import Tally
from lightning_tracin.config import Scoring
from lightning_tracin.storage.sample_table import SampleTable
from tests.support.hand_made import run_directory

SAMPLES = SampleTable(("de", "en") * 4, (None,) * 8, tuple(map(str, range(8))), (None,) * 8)


@pytest.mark.parametrize(("cumulative", "most"), [(False, 1), (True, 4)])
def test_the_tally_of_a_snapshot_alone_is_let_go_before_the_next(cumulative: bool, most: int, tmp_path: Path) -> None:
    directory = run_directory(tmp_path / "run", SAMPLES, SAMPLES, snapshots=4)
    run, alive, held = TracInRun(directory), WeakSet[Tally](), []

    class Watched(Tally):
        def add(self, train: Any, scores: Any) -> None:
            alive.add(self)
            held.append(len(alive))
            super().add(train, scores)

    def tally() -> Tally:
        return Watched(SAMPLES.language, 3, measure="sum")

    table = reliance_by_snapshot(
        Scorer(directory, run.method), Scoring(), run.snapshots, [0, 1, 2, 3], tally, SAMPLES.language, cumulative
    )
    assert max(held) == most
    assert table["snapshot"].drop_duplicates().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("measure", ["sum", "mean", "share", "mass"])
def test_without_intervals_a_table_says_the_same(measure: Any, tmp_path: Path) -> None:
    run = TracInRun(run_directory(tmp_path / "run", SAMPLES, SAMPLES))
    bounds = ["low", "high", "contrast_low", "contrast_high"]
    whole, alone = run.reliance(3, measure=measure), run.reliance(3, measure=measure, interval=NO_INTERVAL)
    pd.testing.assert_frame_equal(alone.drop(columns=bounds), whole.drop(columns=bounds), rtol=1e-12)
    assert alone[bounds].isna().all(axis=None)
