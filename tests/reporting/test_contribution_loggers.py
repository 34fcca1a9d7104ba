"""Contributions in the Trainer's loggers, read back from disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import wandb
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_tracin import TracInError
from lightning_tracin.analysis.contributions import contribution_table
from lightning_tracin.reporting.contribution_points import ContributionPoint, ContributionPoints, final_point
from lightning_tracin.reporting.loggers import sinks_for
from lightning_tracin.storage.account import AccountStore
from tests.reporting.test_loggers import history, shown
from tests.support.accounts import append, record_of, small_account

PAIRS = [f"{probe}/{train}" for probe in ("de", "fr") for train in ("de", "en", "decay")]
CURVES = {
    *(f"tracin/contribution/{pair}" for pair in PAIRS),
    *(f"tracin/{kind}/{probe}" for kind in ("unexplained", "unexplained_share", "loss") for probe in ("de", "fr")),
}


def points_of(store: AccountStore, windows: int) -> list[ContributionPoint]:
    """The point after each window, as the fit would log them."""
    every = contribution_table(store.record(), store.windows(), cumulative=True)
    losses = [(2.55, 3.05), (2.15, 2.85)]
    return [
        ContributionPoint(2 * n, n, every[every["window"] == n].reset_index(drop=True), {"de": german, "fr": french})
        for n, (german, french) in zip(range(1, windows + 1), losses, strict=True)
    ]


def test_a_point_is_the_sum_of_the_windows_so_far(tmp_path: Path) -> None:
    found = ContributionPoints(small_account(tmp_path)).latest()
    assert (found.step, found.epoch) == (4, 2)
    assert found.table["window"].unique().tolist() == [2]
    assert found.losses == {"de": pytest.approx(2.15), "fr": pytest.approx(2.85)}
    values = found.scalars
    assert set(values) == CURVES
    assert values["tracin/contribution/de/en"] == pytest.approx((0.3 + 0.2) / 2)
    assert values["tracin/contribution/fr/decay"] == pytest.approx(0.02)
    assert values["tracin/unexplained/fr"] == pytest.approx(0.55 - 0.575 - 0.02)
    assert values["tracin/unexplained_share/fr"] == pytest.approx((0.55 - 0.575 - 0.02) / 0.55)
    assert values["tracin/loss/de"] == pytest.approx(2.15)


def test_points_of_a_growing_account_are_those_of_the_account(tmp_path: Path) -> None:
    store = AccountStore(tmp_path)
    store.write(record_of(("de", "fr")))
    points = ContributionPoints(store)
    with pytest.raises(TracInError, match="has no windows"):
        points.latest()
    for later in ([2.5, 2.0], [2.0, 1.0], [1.5, 0.5]):
        append(store, {"en": [0.5, 0.25]}, [3.0, 3.0], later)
        assert points.latest().scalars == ContributionPoints(store).latest().scalars
    store.cut_back(1)
    append(store, {"en": [1.0, 1.0]}, [3.0, 3.0], [2.0, 2.0], epoch=3)
    assert points.latest().scalars == ContributionPoints(store).latest().scalars


def test_losses_are_of_all_measured_probes(tmp_path: Path) -> None:
    store = AccountStore(tmp_path)
    store.write(record_of(("de", "de", "fr"), queries=(0,)))
    append(store, {"en": [0.5]}, [3.0, 3.0, 3.0], [2.0, 1.0, 4.0])
    assert ContributionPoints(store).latest().losses == {"de": 1.5, "fr": 4.0}


def test_no_share_of_a_loss_that_did_not_fall_and_safe_keys(tmp_path: Path) -> None:
    store = AccountStore(tmp_path)
    store.write(record_of(("zh-Hans",)))
    append(store, {("decay", True): [0.25], ("decay", False): [0.125], "mean": [0.5]}, [3.0], [3.5])
    values = ContributionPoints(store).latest().scalars
    keys = {key.rpartition("/")[2]: value for key, value in values.items() if key.startswith("tracin/contribution/zh_Hans/")}
    assert keys.pop("decay") == 0.125
    assert {key.rpartition("_")[0]: value for key, value in keys.items()} == {"decay": 0.25, "mean": 0.5}
    assert not any("unexplained_share" in key for key in values)


def test_wandb_holds_every_curve_table_and_chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    store = small_account(tmp_path / "run")
    logger = WandbLogger(save_dir=tmp_path, project="test")
    (sink,) = sinks_for([logger])
    points = points_of(store, 2)
    for point in points:
        logger.log_metrics({"train_loss": 1.0}, step=point.step)
        sink.window(point)
    table = contribution_table(store.record(), store.windows(), cumulative=True)
    for log in sink.finishing_contributions(table):
        log()
    logger.experiment.finish()
    wandb.teardown()
    records = history(tmp_path)
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    logged = [{shown(name): value for name, value in row.items()} for row in rows if "tracin_values/contribution_step" in row]
    assert [row["tracin/contribution_step"] for row in logged] == [2, 4]
    for row, point in zip(logged, points, strict=True):
        assert {name for name in row if name.startswith("tracin/")} == CURVES | {"tracin/contribution_step"}
        assert {name: row[name] for name in CURVES} == pytest.approx(point.scalars)
    assert len([row for row in rows if "train_loss" in row]) == 2  # no row is dropped
    defined = {r["metric"]["name"]: r["metric"].get("step_metric") for r in records if "name" in r.get("metric", {})}
    assert {shown(name) for name, step in defined.items() if step == "tracin_values/contribution_step"} == CURVES

    summary: dict[str, Any] = {}
    for record in records:
        summary.update(record.get("summary", {}).get("update", {}))
    for name, value in final_point(table).scalars.items():
        assert summary[name.replace("tracin/", "tracin_values/")] == pytest.approx(value)
    media = next(tmp_path.glob("wandb/offline-run-*/files/media"))
    (written,) = [json.loads(path.read_text()) for path in media.rglob("*.table.json")]
    assert written["columns"] == list(table.columns)
    assert len(written["data"]) == len(table)
    assert len(list(media.rglob("contributions*.png"))) == 2  # one panel, a picture for each probe language


def test_csv_logger_gets_the_scalars(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, version="", name="csv")
    (sink,) = sinks_for([logger])
    store = small_account(tmp_path / "run")
    points = points_of(store, 2)
    for point in points:
        sink.window(point)
    for log in sink.finishing_contributions(points[-1].table):
        log()
    logged = pd.read_csv(tmp_path / "csv" / "metrics.csv")
    assert logged["step"].tolist() == [2, 4]
    assert set(logged.filter(like="tracin/")) == CURVES
    for name in CURVES:
        assert logged[name].tolist() == pytest.approx([point.scalars[name] for point in points])


def test_tensorboard_logger_gets_the_scalars(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="tb", version="")
    (sink,) = sinks_for([logger])
    points = points_of(small_account(tmp_path / "run"), 2)
    for point in points:
        sink.window(point)
    for log in sink.finishing_contributions(points[-1].table):
        log()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= CURVES
    found = events.Scalars("tracin/contribution/de/en")
    assert [(event.step, event.value) for event in found] == [(2, pytest.approx(0.15)), (4, pytest.approx(0.25))]
