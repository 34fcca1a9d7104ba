"""What the Trainer's loggers get, read back from disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import pytorch_lightning as pl
import wandb
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_tracin import TracInCallback, TracInRun
from tests.support.fits import LANGUAGES, Classifier, Samples, loaders, trainer

PAIRS = [f"{probe}/{train}" for probe in LANGUAGES for train in LANGUAGES]
SIGNED = {f"tracin/{kind}/{pair}" for kind in ("influence", "contrast", "mean_influence") for pair in PAIRS}
CURVES = {
    *SIGNED,
    *(f"tracin/{kind}/{pair}" for kind in ("reliance", "lift") for pair in PAIRS),
    *(f"tracin/{kind}/{name}" for kind in ("cross_lingual", "cross_lingual_null") for name in (*LANGUAGES, "mean")),
}


def influence_in_nats(run: TracInRun, snapshot: int) -> dict[str, float]:
    """The sum over each language's train samples, from the matrix of scores: the mean over the probes of each language."""
    about = run.snapshots[snapshot]
    nats = run.influence("dot", "learning_rate", [snapshot]) * about.steps / (len(run.train) * about.visits)
    by_train = nats.groupby("train_language").sum("train")
    by_both = by_train.groupby("probe_language").mean("probe")
    return {
        f"tracin/influence/{probe}/{train}": float(by_both.sel(probe_language=probe, train_language=train))
        for probe in LANGUAGES
        for train in LANGUAGES
    }


class TextSamples(Samples):
    """With a column of text that tries to break out of tables and pages."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**super().__getitem__(index), "text": f'<b>text {index}</b>, "quoted"'}


def text_loaders() -> tuple[Any, Any]:
    train, probes = loaders()
    train.dataset.__class__ = probes.dataset.__class__ = TextSamples
    return train, probes


def history(folder: Path) -> list[dict[str, Any]]:
    """The records of an offline W&B run."""
    (run,) = folder.glob("wandb/offline-run-*")
    executable = Path(sys.executable).with_name("wandb")
    output = subprocess.run([executable, "leet", "inspect", "--json", run], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in output.stdout.splitlines() if line.startswith("{")]


def shown(name: str) -> str:
    """The key that other loggers have."""
    return name.replace("tracin_values/", "tracin/")


def config_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    """What the configuration of an offline run says of the callback."""
    found: dict[str, Any] = {}
    for record in records:
        found.update(record.get("config", {}).get("update", {}))
    said: dict[str, Any] = found["tracin"]
    return said


def lines_of(chart: dict[str, Any]) -> list[tuple[int, str, float]]:
    """The points of a line chart: step, name of the line, value."""
    columns = [chart["columns"].index(name) for name in ("step", "lineKey", "lineVal")]
    return [tuple(row[column] for column in columns) for row in chart["data"]]


@pytest.mark.slow
@pytest.mark.parametrize("when", ["fit_end", "snapshot"])
def test_wandb_holds_every_curve_table_and_chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: Any) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    pl.seed_everything(0)
    logger = WandbLogger(save_dir=tmp_path, project="test")
    fit = trainer(tmp_path, [TracInCallback(tmp_path / "run", top_k=5, when=when)], logger=logger, log_every_n_steps=1)
    fit.fit(Classifier(), *text_loaders())
    logger.experiment.finish()
    wandb.teardown()
    run = TracInRun.open(tmp_path / "run")
    shares, sums, means = (run.reliance(k=5, measure=measure) for measure in ("share", "sum", "mean"))
    records = history(tmp_path)
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    points = [{shown(name): value for name, value in row.items()} for row in rows if "tracin_values/checkpoint_step" in row]
    assert [row["tracin/checkpoint_step"] for row in points] == [5, 10, 15]
    for row, (snapshot, expected) in zip(points, shares.groupby("snapshot"), strict=True):
        assert {name for name in row if name.startswith("tracin/")} == CURVES | {"tracin/checkpoint_step"}
        for line in expected.itertuples():
            assert row[f"tracin/reliance/{line.probe_language}/{line.train_language}"] == pytest.approx(line.value)
            assert row[f"tracin/lift/{line.probe_language}/{line.train_language}"] == pytest.approx(line.lift)
            if line.probe_language == line.train_language:
                assert row[f"tracin/cross_lingual/{line.probe_language}"] == pytest.approx(1 - line.value)
                assert row[f"tracin/cross_lingual_null/{line.probe_language}"] == pytest.approx(1 - line.null)
        for name, value in influence_in_nats(run, int(str(snapshot))).items():
            assert row[name] == pytest.approx(value, rel=1e-5, abs=1e-9)
        for line in sums[sums["snapshot"] == snapshot].itertuples():
            assert row[f"tracin/contrast/{line.probe_language}/{line.train_language}"] == pytest.approx(line.contrast)
        for line in means[means["snapshot"] == snapshot].itertuples():
            assert row[f"tracin/mean_influence/{line.probe_language}/{line.train_language}"] == pytest.approx(line.value)
    assert len([row for row in rows if "train_loss" in row]) == 15  # the fit's own rows are all there
    defined = {r["metric"]["name"]: r["metric"].get("step_metric") for r in records if "name" in r.get("metric", {})}
    assert {shown(name) for name, step in defined.items() if step == "tracin_values/checkpoint_step"} == CURVES

    summary: dict[str, Any] = {}
    for record in records:
        summary.update(record.get("summary", {}).get("update", {}))
    for kind, measure in (("reliance", "share"), ("influence", "sum")):
        for line in run.reliance(k=5, cumulative=True, measure=measure, snapshots=[2]).itertuples():
            key = f"tracin_values/{kind}/{line.probe_language}/{line.train_language}"
            assert summary[key] == pytest.approx(line.value)

    said = config_of(records)
    assert (said["top_k"], said["when"], said["preconditioner"]) == (5, when, "adam-factored")
    assert said["train"] == run.record.train.model_dump()
    assert said["versions"] == run.record.versions
    assert said["languages"] == {name: name for name in LANGUAGES}
    files = [record["artifact"] for record in records if record["type"] == "artifact"]
    (kept,) = [one for one in files if one["name"] == "tracin-results"]
    assert {"report.html", "reliance.csv"} < {entry["path"] for entry in kept["manifest"]["contents"]}

    media = next(tmp_path.glob("wandb/offline-run-*/files/media"))
    written = [(path.name.split("_table_")[0], json.loads(path.read_text())) for path in media.rglob("*.table.json")]
    tables = dict(sorted(written, key=lambda one: len(one[1]["data"])))  # of a chart that is drawn again, the last
    assert set(tables) == {
        *LANGUAGES,
        "own_language",
        "languages",
        "reliance",
        *(next(name for name in tables if name.startswith(start)) for start in ("layers", "top")),
    }
    assert len(tables["reliance"]["data"]) == 3 * 9  # measures, pairs of languages
    for language in LANGUAGES:
        expected = sums[sums["probe_language"] == language].set_index(["step", "train_language"])["value"].to_dict()
        drawn = {(step, name): value for step, name, value in lines_of(tables[language]) if name in LANGUAGES}
        assert drawn == pytest.approx(expected)
    top = next(value for name, value in tables.items() if name.startswith("top"))
    texts = [line[top["columns"].index("text")] for line in top["data"]]
    trains = [line[top["columns"].index("train")] for line in top["data"]]
    assert texts == [f'<b>text {index}</b>, "quoted"' for index in trains]
    assert len(texts) == 9 * 2 * 3  # probes shown, signs, ranks
    assert len(list(media.rglob("heat_map*.png"))) == 1


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fit with a logger to CSV files and one to TensorBoard."""
    folder = tmp_path_factory.mktemp("logged")
    both = [CSVLogger(folder, version="", name="csv"), TensorBoardLogger(folder, name="tb", version="")]
    trainer(folder, [TracInCallback(folder / "run", top_k=5)], logger=both).fit(Classifier(), *loaders())
    return folder


def test_csv_logger_gets_the_scalars(logged: Path) -> None:
    rows = pd.read_csv(logged / "csv" / "metrics.csv").dropna(subset=["tracin/cross_lingual/mean"])
    assert rows["step"].tolist() == [5, 10, 15]
    assert set(rows.filter(like="tracin/")) == CURVES
    run = TracInRun.open(logged / "run")
    for kind, measure in (("reliance", "share"), ("influence", "sum"), ("mean_influence", "mean")):
        table = run.reliance(k=5, measure=measure)
        expected = table[(table["probe_language"] == "de") & (table["train_language"] == "ru")]["value"]
        assert rows[f"tracin/{kind}/de/ru"].tolist() == pytest.approx(expected.tolist())


def test_language_means_are_logged_without_shares(tmp_path: Path) -> None:
    callback = TracInCallback(tmp_path / "run", top_k=5, language_means=True)
    fit = trainer(tmp_path, [callback], logger=CSVLogger(tmp_path, version="", name="csv"))
    fit.fit(Classifier(), *loaders())
    logged = pd.read_csv(tmp_path / "csv" / "metrics.csv").dropna(subset=["tracin/influence/de/de"])
    assert set(logged.filter(like="tracin/")) == SIGNED
    assert (logged["tracin/influence/de/ru"] / logged["tracin/mean_influence/de/ru"]).tolist() == pytest.approx([10] * 3)


def test_tensorboard_logger_gets_the_scalars(logged: Path) -> None:
    events = EventAccumulator(str(logged / "tb"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= CURVES
    assert [event.step for event in events.Scalars("tracin/cross_lingual/mean")] == [5, 10, 15]


def test_default_directory_stands_beside_the_loggers_files(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="name", version=4)
    trainer(tmp_path, [TracInCallback(top_k=5)], logger=logger, max_epochs=1).fit(Classifier(), *loaders())
    assert (tmp_path / "name" / "version_4" / "tracin" / "run.json").exists()


def test_without_a_logger_the_result_files_are_written(tmp_path: Path) -> None:
    trainer(tmp_path, [TracInCallback(top_k=5)]).fit(Classifier(), *text_loaders())
    results = tmp_path / "tracin" / "results"
    tables, pictures = ("reliance", "top", "compared", "changes"), ("curves", "heat_map", "lift")  # no items, so no translations
    assert {path.name for path in results.iterdir()} == {
        "report.html",
        "representations.safetensors",
        *(f"{name}.csv" for name in tables),
        *(f"{name}.png" for name in pictures),
    }
    run = TracInRun.open(tmp_path / "tracin")
    written = pd.read_csv(results / "reliance.csv")
    for measure, sign in (("share", "negative"), ("share", "positive"), ("sum", "positive"), ("mean", "positive")):
        of_it = written.query(f"measure == '{measure}' and sign == '{sign}' and cumulative")
        expected = run.reliance(k=5, sign=sign, cumulative=True, measure=measure)
        pd.testing.assert_frame_equal(
            of_it.drop(columns=["measure", "sign", "cumulative"]).reset_index(drop=True), expected, check_dtype=False
        )
    top = pd.read_csv(results / "top.csv").query("probe == 0 and sign == 'positive'")
    expected = run.top(0, 3, similarity="dot", weighting="learning_rate")
    assert top["train"].tolist() == expected["train"].tolist()
    assert top["text"].tolist() == expected["text"].tolist()


def test_text_is_escaped_in_the_page(tmp_path: Path) -> None:
    trainer(tmp_path, [TracInCallback(top_k=5)], max_epochs=1).fit(Classifier(), *text_loaders())
    page = (tmp_path / "tracin" / "results" / "report.html").read_text()
    assert "&lt;b&gt;text" in page
    assert "<b>text" not in page
