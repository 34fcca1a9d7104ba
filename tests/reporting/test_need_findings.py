"""Predicted need in sentences, and in the results of a run that holds what it is computed from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lightning_tracin import TracInRun
from lightning_tracin.analysis.tables import as_csv
from lightning_tracin.config import View
from lightning_tracin.reporting.every_result import WrittenResults, write_every_result
from lightning_tracin.reporting.need_findings import findings_of_need
from lightning_tracin.reporting.sentences import bounded
from tests.support.planes import Planes, fitted


def need(**cells: list[float | str | bool]) -> pd.DataFrame:
    return pd.DataFrame({"probe_language": "fr", **cells})


def written(run: TracInRun) -> WrittenResults:
    return write_every_result(run, View(top_k=5), lambda: (np.eye(45), np.eye(45)[:18]))


def test_only_what_the_intervals_show_is_said() -> None:
    table = need(
        train_language=["de", "en", "ru", "ko"],
        nats=[0.1, 0.3, -0.2, 0.05],
        low=[0.05, 0.2, -0.3, -0.01],
        high=[0.2, 0.4, -0.1, 0.1],
        is_own=[False] * 4,
    )
    assert [*findings_of_need(table)] == [
        "fr: its loss would be higher without en (0.3 nats [0.2, 0.4]) and de (0.1 nats [0.05, 0.2]); its loss would be lower "
        "without ru (-0.2 nats [-0.3, -0.1])."
    ]


def test_what_is_not_clear_is_not_said() -> None:
    table = need(train_language=["de"], nats=[0.1], low=[-0.1], high=[0.2], is_own=[False])
    assert [*findings_of_need(table)] == ["fr: without any one train language, its loss would not clearly change."]
    unknown = table.assign(low=np.nan, high=np.nan)
    assert [*findings_of_need(unknown)] == ["fr: no interval is known, because all of its probes are one item."]


def test_a_run_with_features_shows_it(tmp_path: Path) -> None:
    run = fitted(tmp_path)
    assert written(run).remedy is None
    results, table = run.directory.results, run.predicted_need()
    assert (results / "need.csv").read_text() == as_csv(table)
    page = (results / "report.html").read_text()
    assert '<section id="need">' in page
    clear = table[(table["low"] > 0) | (table["high"] < 0)]
    assert not clear.empty
    for line in clear.to_dict("records"):
        assert bounded(line["nats"], line["low"], line["high"], " nats") in page


@pytest.mark.parametrize(
    "settings",
    [
        {"projection_dim": None, "preconditioner": None},
        {"module": Planes(smoothing=0.1)},
        {"languages": ["de"] * 45},
    ],
    ids=["no features", "no probabilities", "one language"],
)
def test_a_run_that_cannot_tell_shows_nothing_of_it(tmp_path: Path, settings: dict[str, object]) -> None:
    run = fitted(tmp_path, **settings)  # type: ignore[arg-type]
    assert written(run).remedy is None
    assert not (run.directory.results / "need.csv").exists()
    assert 'id="need"' not in (run.directory.results / "report.html").read_text()


def test_a_failure_is_named_with_what_completes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fitted(tmp_path)

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(TracInRun, "predicted_need", full)
    remedy = written(run).remedy
    assert remedy is not None
    assert "need.csv" in remedy
    assert "No space left on device" in remedy
    assert (run.directory.results / "reliance.csv").exists()
