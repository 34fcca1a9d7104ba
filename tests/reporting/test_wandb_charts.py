"""However many languages a run has, W&B shows few charts with few lines, and the rest is in tables and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import wandb
from pytorch_lightning.loggers import WandbLogger

from lightning_tracin import TracInCallback, TracInRun
from lightning_tracin.config import View
from lightning_tracin.reporting.loggers import sinks_for
from lightning_tracin.reporting.loggers.wandb_charts import LINES, influence_lines, own_lines, shown_probes, whole_run
from lightning_tracin.reporting.results import Results
from tests.reporting.test_loggers import config_of, history
from tests.support.fits import Classifier, loaders, trainer

STEPS = (10, 20, 30)


def names(count: int) -> list[str]:
    """Codes as of languages, none of which means the same as another."""
    return [f"x{number:02}" for number in range(count)]


def results(count: int, shares: bool = True) -> Results:
    """Random tables of some languages at three snapshots, and summed up to each."""
    draw, rows = np.random.default_rng(0), []
    for measure, sign in (("sum", "positive"), ("mean", "positive"), *((("share", "positive"), ("share", "negative")) * shares)):
        for cumulative in (False, True):
            for snapshot, step in enumerate(STEPS):
                for probe in names(count):
                    for train in names(count):
                        value = draw.random() if measure == "share" else draw.normal()
                        rows.append((measure, sign, cumulative, snapshot, snapshot + 1, step, probe, train, value))
    columns = ["measure", "sign", "cumulative", "snapshot", "epoch", "step", "probe_language", "train_language", "value"]
    table = pd.DataFrame(rows, columns=columns)
    table = table.assign(contrast=table["value"] / 2, null=table["value"] / 4, low=table["value"] - 1, high=table["value"] + 1)
    table = table.assign(contrast_low=np.nan, contrast_high=np.nan, lift=1.0, probes=3, unit="nats")
    top = pd.DataFrame({"probe": [0], "probe_label": ["a"], "label": ["b"], "text": ["c"]})
    return Results(View(), table, top)


def logged(folder: Path, found: Results, files: dict[str, bytes], live: bool = False) -> tuple[list[Any], list[Any]]:
    """The records of an offline run that a sink has logged everything to, and the rows of its history."""
    logger = WandbLogger(save_dir=folder, project="test", offline=True)
    written = folder / "results"
    written.mkdir(parents=True)
    for name, content in files.items():
        (written / name).write_bytes(content)
    (sink,) = sinks_for([logger])
    for point in found.points():
        sink.point(point, live)
    for log in sink.finishing(found, written):
        log()
    logger.experiment.finish()
    wandb.teardown()
    records = history(folder)
    return records, [record["history"]["item"] for record in records if record["type"] == "history"]


@pytest.mark.parametrize("count", [5, 15, pytest.param(30, marks=pytest.mark.long)])
def test_at_most_twelve_panels_are_shown(tmp_path: Path, count: int) -> None:
    before = wandb.Table.MAX_ROWS
    records, rows = logged(tmp_path, results(count), {"reliance.csv": b"a,b\n"})
    assert before == wandb.Table.MAX_ROWS
    hidden = {r["metric"]["name"] for r in records if r.get("metric", {}).get("options", {}).get("hidden")}
    keys = {key.split(".")[0] for row in rows for key in row if key.startswith("tracin")}
    assert {key for key in keys if key.startswith("tracin_values/")} <= hidden
    shown = {key for key in keys - hidden if key.startswith("tracin/")}  # a chart has the key of its table
    assert shown == keys - hidden
    influence = {key for key in shown if key.startswith("tracin/influence/")}
    others = {f"tracin/{name}" for name in ("languages_table", "own_language_table", "heat_map", "reliance_table", "top")}
    assert (len(influence), shown - influence) == (5, others)
    assert len(shown) + 2 <= 12  # with those of contributions


def test_nothing_is_in_the_summary_twice(tmp_path: Path) -> None:
    found = results(3)
    records, _ = logged(tmp_path, found, {})
    summary: dict[str, Any] = {}
    for record in records:
        summary.update(record.get("summary", {}).get("update", {}))
    values = {key: value for key, value in summary.items() if key.startswith("tracin_values/")}
    expected = {key.replace("tracin/", "tracin_values/"): value for key, value in found.final().scalars.items()}
    assert values == pytest.approx(expected)


def test_probe_languages_keep_their_panels(tmp_path: Path) -> None:
    """Other languages are strongest at other snapshots."""
    found = results(12)
    assert len({tuple(shown_probes(point)) for point in found.points()}) > 1
    _, rows = logged(tmp_path, found, {}, live=True)
    assert len({key.split(".")[0] for row in rows for key in row if key.startswith("tracin/influence/")}) == 5


def test_two_callbacks_share_the_configuration(tmp_path: Path) -> None:
    logger = WandbLogger(save_dir=tmp_path, project="test", offline=True)
    first, second = sinks_for([logger]), sinks_for([logger])
    trainer(tmp_path, [TracInCallback(tmp_path / "run", parameters=["*.classifier.*"], top_k=5)], max_epochs=1).fit(
        Classifier(), *loaders()
    )
    first[0].settings(TracInRun.open(tmp_path / "run").record)
    second[0].point(results(3).points()[0])
    logger.experiment.finish()
    wandb.teardown()
    said = config_of(history(tmp_path))
    assert said["parameters"] == ["*.classifier.*"]
    assert said["languages"] == {name: name for name in names(3)}
    assert said["scored_parameters"] == 4


def test_a_snapshot_without_shares_keeps_its_step() -> None:
    found = results(3)
    share = found.reliance["measure"] == "share"
    at_first = found.reliance["step"] == STEPS[0]
    found.reliance.loc[share & at_first, ["value", "null"]] = np.nan
    drawn = own_lines(found.points())
    assert drawn is not None
    assert drawn.steps == list(STEPS)
    assert {len(values) for values in drawn.values.values()} == {3}


def test_charts_are_drawn_during_a_fit_that_is_watched(tmp_path: Path) -> None:
    _, watched = logged(tmp_path / "watched", results(3), {}, live=True)
    _, at_the_end = logged(tmp_path / "end", results(3), {})
    charts = [sum("tracin/influence/x00_table._type" in row for row in rows) for rows in (watched, at_the_end)]
    assert charts == [4, 1]


def test_all_files_but_tensors_are_an_artifact(tmp_path: Path) -> None:
    files = {"reliance.csv": b"a,b\n1,2\n", "report.html": b"<p>", "representations.safetensors": b"x"}
    records, _ = logged(tmp_path, results(3), files)
    artifacts = [record["artifact"] for record in records if record["type"] == "artifact"]
    (artifact,) = [one for one in artifacts if one["type"] == "tracin-results"]  # tables are artifacts, too
    assert artifact["name"] == "tracin-results"
    assert sorted(entry["path"] for entry in artifact["manifest"]["contents"]) == ["reliance.csv", "report.html"]


def test_lines_are_the_strongest_languages_and_the_sum_of_the_others() -> None:
    points = results(12).points()
    drawn = influence_lines(points, "x03")
    assert drawn.steps == list(STEPS)
    last = points[-1].tables["sum"].query("probe_language == 'x03'").set_index("train_language")["value"]
    strongest = ["x03", *last.drop("x03").abs().nlargest(LINES - 1).index]  # its own, and the strongest of the others
    assert set(drawn.values) == {*strongest, "6 others", "x03, 95 % low", "x03, 95 % high", "x03, by chance"}
    for name in strongest:
        assert drawn.values[name][-1] == last[name]
    assert drawn.values["6 others"][-1] == pytest.approx(last.drop(strongest).sum())
    assert drawn.values["x03, by chance"][-1] == pytest.approx(last["x03"] / 4)


def test_one_language_more_than_lines_has_a_line() -> None:
    assert not any("others" in name for name in influence_lines(results(LINES + 1).points(), "x00").values)


def test_own_shares_are_beside_their_mean_and_its_chance() -> None:
    points = results(3).points()
    drawn = own_lines(points)
    assert drawn is not None
    own = points[0].tables["share"].query("probe_language == train_language")
    for line in own.itertuples():
        assert drawn.values[line.probe_language][0] == line.value
    assert drawn.values["mean of all languages"][0] == pytest.approx(own["value"].mean())
    assert drawn.values["mean by chance"][0] == pytest.approx(own["null"].mean())
    assert own_lines(results(3, shares=False).points()) is None


def test_probe_languages_with_a_chart_are_those_that_others_influence_most() -> None:
    point = results(9).final()
    table = point.tables["sum"].query("probe_language != train_language")
    strongest = table["value"].abs().groupby(table["probe_language"]).max().nlargest(5)
    assert shown_probes(point) == sorted(strongest.index)


def test_a_table_with_too_many_rows_keeps_the_strongest_pairs() -> None:
    point = results(6).final()
    kept = whole_run(point, most=30)
    assert len(kept) == 30
    assert kept["measure"].value_counts().tolist() == [10, 10, 10]
    sizes = kept.query("measure == 'sum'")["value"].abs()
    assert sizes.min() >= point.tables["sum"]["value"].abs().nlargest(11).min()
