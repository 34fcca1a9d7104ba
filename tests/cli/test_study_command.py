"""The command line, on a study of one fit, and what W&B gets of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import wandb
import yaml

from lightning_tracin.cli.main import main, settings_from
from lightning_tracin.errors import TracInError
from lightning_tracin.studies.settings import FitSettings
from tests.reporting.test_loggers import history
from tests.support.small import settings


@pytest.fixture
def config(tmp_path: Path) -> Path:
    asked = dataclasses.asdict(
        settings(tmp_path, seeds=1, experiments=["zero_shot"], scores=["cosine"], baselines=["random"], wandb_mode="offline")
    )
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(asked), encoding="utf-8")
    return path


def test_a_study_from_a_file_ends_in_a_page_and_in_wandb(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["study", str(config)])
    wandb.teardown()
    folder = config.parent / "small"
    said = capsys.readouterr().out
    page = folder / "results" / "report.html"
    assert f"Page: {page}\n" in said
    zero_shot = pd.read_csv(folder / "results" / "zero_shot-zero_shot.csv").query("measure == 'translations'").iloc[0]
    assert f"de: without its samples, {zero_shot['share']:.2f} of the top are translations" in said
    records = history(folder)
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [row["tracin_values/checkpoint_step"] for row in rows if "tracin_values/checkpoint_step" in row] == [6, 12, 18]
    summary: dict[str, Any] = {}
    for record in records:
        summary.update(record.get("summary", {}).get("update", {}))
    for finding in summary["study/zero_shot/findings"].split("\n"):
        assert finding in said
    media = next(folder.glob("wandb/offline-run-*/files/media"))
    (stored,) = media.glob("table/study/zero_shot/zero_shot_*.table.json")
    logged = json.loads(stored.read_text())
    at = logged["columns"].index("share")
    expected = pd.read_csv(folder / "results" / "zero_shot-zero_shot.csv")["share"].tolist()
    assert [float("nan") if line[at] is None else line[at] for line in logged["data"]] == pytest.approx(expected, nan_ok=True)
    (picture,) = media.glob("images/study/zero_shot/zero_shot_figure_*.png")
    assert picture.read_bytes() == (folder / "results" / "zero_shot-zero_shot.png").read_bytes()


def test_an_error_is_one_sentence(config: Path) -> None:
    with pytest.raises(SystemExit, match=r"^Error: seeds should be 1 or more, but is 0\.$"):
        main(["study", str(config), "--seeds=0"])
    with pytest.raises(SystemExit, match=r"^Error: There is no file none\.yaml"):
        main(["study", "none.yaml"])


def test_an_unknown_setting_is_named(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["study", str(config), "--sedes=2"])
    assert "sedes" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["study"], ["study", "--config"]], ids=" ".join)
@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("fit: {train_languages: [no, de]}", "fit.train_languages has False"),
        ("fit: {probe_languages: [de, on]}", "fit.probe_languages has True"),
        ("fit: {probe_languages: [~]}", "fit.probe_languages has None"),
        ("fit: {train_languages: [7]}", "fit.train_languages has 7"),
        ("fit: {merge_labels: {no: other}}", "fit.merge_labels has False"),
        ("zero_shot: [off]", "zero_shot has False"),
        ("imbalance: [yes]", "imbalance has True"),
    ],
)
def test_a_word_that_yaml_reads_as_something_else_needs_quotes(tmp_path: Path, command: list[str], line: str, named: str) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(f"name: small\n{line}\n")
    with pytest.raises(
        SystemExit, match=rf'^Error: {named} in place of a word: YAML reads `no`, .*quote the word, as in "no"\.$'
    ):
        main([*command, str(path)])


def test_quoted_words_are_languages(tmp_path: Path) -> None:
    words = ["no", "on", "nan", "null", "true", "7", "~", "None"]
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({"name": "small", "fit": {"train_languages": words}, "zero_shot": words}))
    settings = settings_from(path, '--fit.probe_languages=["no", "nan"]')
    assert (settings.fit.train_languages, settings.zero_shot, settings.fit.probe_languages) == (words, words, ["no", "nan"])
    again = settings_from(path, "--fit.train_languages+=no")
    assert again.fit.train_languages == [*words, "no"]


@pytest.mark.parametrize(("field", "value"), [("train_languages", [False]), ("probe_languages", ["de", None])])
def test_settings_made_in_python_hold_words_too(field: str, value: list[Any]) -> None:
    with pytest.raises(TracInError, match=rf"fit\.{field} has .* in place of a word"):
        FitSettings(**{field: value})
    with pytest.raises(TracInError, match=rf"fit\.{field} should be a list of languages, but is 'de'"):
        FitSettings(**{field: "de"})
