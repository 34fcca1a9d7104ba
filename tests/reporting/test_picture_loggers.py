"""Figures, tables and files in the loggers that have a place for them, read back from disk."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning.loggers import CometLogger, MLFlowLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_tracin import ContributionCallback, TracInCallback, TracInRun
from lightning_tracin.analysis.contributions import whole_fit
from lightning_tracin.analysis.resampling import NO_INTERVAL
from tests.reporting.test_loggers import text_loaders
from tests.support.fits import LANGUAGES, Classifier, trainer

FIGURES = {"tracin/heat_map", "tracin/curves", "tracin/lift", *(f"tracin/contributions/{name}" for name in LANGUAGES)}
TABLES = {"tracin/reliance_table", "tracin/top", "tracin/contribution_table"}


def fitted(folder: Path, logger: Any) -> TracInRun:
    """A fit with both callbacks, whose texts try to break out of tables."""
    pl.seed_everything(0)
    callbacks = [TracInCallback(folder / "run", top_k=5), ContributionCallback(folder / "run")]
    trainer(folder, callbacks, logger=logger).fit(Classifier(), *text_loaders())
    return TracInRun.open(folder / "run")


def summed(run: TracInRun) -> pd.DataFrame:
    """Influence over the whole run: a row for each probe language, a column for each train language."""
    table = run.reliance(k=5, cumulative=True, snapshots=[2], interval=NO_INTERVAL)
    return table.pivot(index="probe_language", columns="train_language", values="value").loc[list(LANGUAGES), list(LANGUAGES)]


def is_drawn(picture: bytes) -> bool:
    """Whether a picture shows more than a background."""
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("L"))
    return pixels.shape[0] > 100 and pixels.shape[1] > 100 and len(np.unique(pixels)) > 10


def cells(markdown: str) -> list[list[str]]:
    """The cells of a table in Markdown, without the line below its head."""
    lines = [line.strip("| ").split(" | ") for line in markdown.splitlines()]
    assert set(lines[1]) == {"---"}
    return [[unescape(cell) for cell in line] for line in (lines[0], *lines[2:])]


class Unplugged(TensorBoardLogger):
    """Its pictures cannot be written."""

    @property
    def experiment(self) -> Any:
        real = super().experiment
        real.add_figure = self.refuse
        return real

    def refuse(self, *_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of a fit with two such loggers, the first unplugged, and the warnings of it."""
    folder = tmp_path_factory.mktemp("logged")
    both = [kind(folder, name=name, version="") for kind, name in ((Unplugged, "unplugged"), (TensorBoardLogger, "tb"))]
    with pytest.warns(UserWarning, match="A logger failed") as warned:
        fitted(folder, both)
    return folder, [str(one.message) for one in warned]


def test_tensorboard_has_figures_and_tables(logged: tuple[Path, list[str]]) -> None:
    folder, _ = logged
    run = TracInRun.open(folder / "run")
    events = EventAccumulator(str(folder / "tb"), size_guidance={"tensors": 0, "images": 0})
    events.Reload()
    assert set(events.Tags()["images"]) == FIGURES
    for name in FIGURES:
        (one,) = events.Images(name)
        assert is_drawn(one.encoded_image_string)
        assert one.step == 15
    texts = {name.removesuffix("/text_summary"): events.Tensors(name) for name in events.Tags()["tensors"]}
    assert set(texts) >= TABLES
    said = {name: texts[name][0].tensor_proto.string_val[0].decode() for name in TABLES}
    head, *rows = cells(said["tracin/reliance_table"])
    assert head == ["probe_language", *LANGUAGES]
    assert [row[0] for row in rows] == list(LANGUAGES)
    np.testing.assert_allclose([[float(cell) for cell in row[1:]] for row in rows], summed(run), rtol=6e-3, atol=6e-4)
    head, *rows = cells(said["tracin/top"])
    assert len(rows) == 9 * 2 * 3  # probes shown, signs, ranks
    for row in rows:
        line = dict(zip(head, row, strict=True))
        assert line["text"] == f'<b>text {line["train"]}</b>, "quoted"'
    assert "<b>" not in said["tracin/top"]
    head, *rows = cells(said["tracin/contribution_table"])
    whole = whole_fit(run.contributions(cumulative=True, interval=NO_INTERVAL)).set_index(["probe_language", "train_language"])
    for row in rows:
        line = dict(zip(head, row, strict=True))
        for name in LANGUAGES:
            assert float(line[name]) == pytest.approx(whole.loc[(line["probe_language"], name), "nats"], rel=6e-3, abs=6e-4)


def test_without_matplotlib_there_are_numbers_and_tables_and_one_line_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    fit = trainer(
        tmp_path, [TracInCallback(tmp_path / "run", top_k=5)], logger=TensorBoardLogger(tmp_path, name="tb", version="")
    )
    with pytest.warns(UserWarning, match="TracIn: the results in") as warned:
        fit.fit(Classifier(), *text_loaders())
    (said,) = [str(one.message) for one in warned if "TracIn" in str(one.message) or "logger" in str(one.message)]
    assert "Figures need matplotlib, which is not installed: pip install 'lightning-tracin[report]'." in said
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert events.Tags()["images"] == []
    assert [event.step for event in events.Scalars("tracin/influence/de/en")] == [5, 10, 15]
    assert {"tracin/reliance_table/text_summary", "tracin/top/text_summary"} <= set(events.Tags()["tensors"])


def test_a_figure_that_cannot_be_logged_costs_no_table_and_no_other_logger(logged: tuple[Path, list[str]]) -> None:
    """What the other logger has is in `test_tensorboard_has_figures_and_tables`."""
    folder, warned = logged
    assert any("A logger failed (ConnectionError: no route to host)" in said for said in warned)
    events = EventAccumulator(str(folder / "unplugged"))
    events.Reload()
    assert events.Tags()["images"] == []
    assert {f"{name}/text_summary" for name in TABLES} <= set(events.Tags()["tensors"])
    assert (folder / "run" / "results" / "heat_map.png").exists()


def test_mlflow_has_figures_tables_and_the_files_of_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow (or mlflow-skinny) is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # asked for by new versions
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    logger = MLFlowLogger("tracin", tracking_uri=f"file:{tmp_path / 'mlruns'}")
    run = fitted(tmp_path, logger)
    client = mlflow.MlflowClient(f"file:{tmp_path / 'mlruns'}")
    kept = Path(client.get_run(logger.run_id).info.artifact_uri.removeprefix("file://"))
    written = {path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file()}
    results = {f"tracin-results/{path.name}" for path in (run.path / "results").iterdir() if path.suffix != ".safetensors"}
    assert written == {f"{name}.png" for name in FIGURES} | {f"{name}.json" for name in TABLES} | results
    assert all(is_drawn((kept / f"{name}.png").read_bytes()) for name in FIGURES)
    table = json.loads((kept / "tracin" / "reliance_table.json").read_text())
    assert table["columns"] == ["probe_language", *LANGUAGES]
    np.testing.assert_allclose(np.array([row[1:] for row in table["data"]], dtype=float), summed(run), rtol=1e-6)
    top = (run.path / "results" / "top.csv").read_bytes()
    assert (kept / "tracin-results" / "top.csv").read_bytes() == top
    curve = client.get_metric_history(logger.run_id, "tracin/influence/de/en")
    assert [point.step for point in curve] == [5, 10, 15]


def test_comet_has_figures_tables_and_the_files_of_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("comet_ml", reason="comet_ml is not installed")
    monkeypatch.setenv("COMET_START_ONLINE", "0")  # `CometLogger(online=False)` of Lightning 2.6 logs nothing at all
    monkeypatch.setenv("COMET_OFFLINE_DIRECTORY", str(tmp_path / "comet"))
    (tmp_path / "comet").mkdir()
    logger = CometLogger(project="tracin")
    run = fitted(tmp_path, logger)
    logger.experiment.end()
    (archive,) = (tmp_path / "comet").glob("*.zip")
    with zipfile.ZipFile(archive) as packed:
        messages = [json.loads(line)["payload"] for line in packed.read("messages.json").decode().splitlines()]
        uploads = [one for one in messages if "upload_type" in one and one["additional_params"] is not None]
        drawn = [one["additional_params"]["figName"] for one in uploads if one["upload_type"] == "visualization"]
        sent = {one["additional_params"].get("fileName"): packed.read(one["file_path"]) for one in uploads}
    assert sorted(drawn) == sorted(FIGURES)
    assert {f"{name}.csv" for name in TABLES} <= sent.keys()
    table = pd.read_csv(io.BytesIO(sent["tracin/reliance_table.csv"]), index_col="probe_language")
    np.testing.assert_allclose(table, summed(run), rtol=1e-6)
    assert sent["tracin-results/top.csv"] == (run.path / "results" / "top.csv").read_bytes()
    assert "tracin-results/report.html" in sent
