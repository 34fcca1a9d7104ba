"""Awkward language names in the keys of real loggers, in result files and in charts."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import wandb
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_tracin import TracInCallback
from lightning_tracin.reporting.language_keys import file_part, language_keys
from lightning_tracin.reporting.loggers.wandb_charts import PROBES
from tests.reporting.test_loggers import history, shown
from tests.support.fits import Classifier, loaders, trainer

NAMES = [
    "mean",
    "../x",
    "x" * 300,
    "a/b",
    "a b",
    "\U0001f642",
    "%s",
    '"q",',
    "a\nb",
    "$x$",
    "__",
    "EN",
    "nan",
    "zh-Hans",
    "zh_Hans",
]


def test_ordinary_codes_are_their_own_keys() -> None:
    assert language_keys(["en", "de", "nan", "EN"]) == {"en": "en", "de": "de", "nan": "nan", "EN": "EN"}
    assert language_keys(["zh-Hans", "pt-BR"]) == {"zh-Hans": "zh_Hans", "pt-BR": "pt_BR"}


def test_any_names_have_safe_keys_of_their_own() -> None:
    names = [*NAMES, "a,b", "a-b", "a_b", "e\u0301", "\u00e9", "1", "", "\ud800", "..", *language_keys(NAMES).values()]
    keys = language_keys(names)
    assert len(set(keys.values())) == len(set(names))
    assert all(re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", key) for key in keys.values())
    assert "mean" not in keys.values()
    assert language_keys(reversed(names)) == keys


def test_keys_do_not_depend_on_the_names_beside_them() -> None:
    names = [name for name in [*NAMES, "Min Nan", "1", "..", "a.b"] if name != "zh_Hans"]
    whole = language_keys(names)
    for name in names:
        assert language_keys([name]) == {name: whole[name]}
    added = language_keys([*names, "a_b", "a.b", "_1", "__ ", *(key for key in whole.values() if key != "zh_Hans")])
    assert {name: added[name] for name in names} == whole
    assert len(set(added.values())) == len(added)


def test_parts_of_file_names_stay_in_their_folder(tmp_path: Path) -> None:
    names = [*NAMES, "..", ".", "", "a\\b", "CON/..", "x_d6b96a97", "\u4e2d\u6587", "\ud800", "e" * 81, "a."]
    parts = {name: file_part(name) for name in names}
    assert len(set(parts.values())) == len(names)
    for part in parts.values():
        (tmp_path / f"seed0-without-{part}-exact.done").touch()
    assert len(list(tmp_path.iterdir())) == len(names)
    assert {parts[name] == name for name in ("en", "zh-Hans", "Min Nan", "\u4e2d\u6587") if name in parts} == {True}


@pytest.mark.slow
def test_real_loggers_and_files_take_any_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    sinks: list[Any] = [
        WandbLogger(save_dir=tmp_path, project="test"),
        CSVLogger(tmp_path, version="", name="csv"),
        TensorBoardLogger(tmp_path, name="tb", version=""),
    ]
    train, probes = (NAMES * 2, NAMES[:12])
    callback = TracInCallback(tmp_path / "run", top_k=5, languages=train, languages_of_probes=probes)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Glyph|A logger failed|.*are incomplete")
        trainer(tmp_path, [callback], logger=sinks, max_epochs=1).fit(Classifier(), *loaders())
    sinks[0].experiment.finish()
    wandb.teardown()
    keys = language_keys(NAMES)
    kinds, alone = ("influence", "contrast", "mean_influence", "reliance", "lift"), ("cross_lingual", "cross_lingual_null")
    expected = {f"tracin/{kind}/{keys[one]}/{keys[other]}" for kind in kinds for one in probes for other in NAMES}
    expected |= {f"tracin/{kind}/{name}" for kind in alone for name in (*(keys[one] for one in probes), "mean")}
    assert set(pd.read_csv(tmp_path / "csv" / "metrics.csv").filter(like="tracin/")) == expected
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert {tag for tag in events.Tags()["scalars"] if tag.startswith("tracin/")} == expected
    records = history(tmp_path)
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert expected <= {shown(name) for row in rows for name in row}
    charts = {path.name.split("_table_")[0] for path in tmp_path.rglob("influence/*.table.json")}
    assert charts <= {keys[one] for one in probes}
    assert len(charts) == min(PROBES, len(probes))
    assert {file.name for file in (tmp_path / "run" / "results").iterdir()} >= {"curves.png", "heat_map.png", "report.html"}
    read = pd.read_csv(tmp_path / "run" / "results" / "reliance.csv", keep_default_na=False)
    assert set(read["train_language"]) == set(NAMES)
    listed = pd.read_csv(tmp_path / "run" / "results" / "language_keys.csv", keep_default_na=False)
    assert dict(zip(listed["language"], listed["key"], strict=True)) == keys
