"""The dashboard shows keys that the sink logs, and is the same each time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import wandb
from pytorch_lightning.loggers import WandbLogger

from lightning_tracin import ContributionCallback, TracInCallback
from lightning_tracin.config import Options
from lightning_tracin.errors import TracInError
from lightning_tracin.reporting.dashboard import COMPARED, dashboard
from tests.reporting.test_loggers import config_of, history, text_loaders
from tests.support.fits import LANGUAGES, Classifier, trainer

pytest.importorskip("wandb_workspaces", reason="the extra `dashboard` is not installed")

GOLDEN = Path(__file__).with_name("dashboard_spec.json")
LINES, BARS, MATRIX = "wandb/lineseries/v0", "wandb/bar/v0", "wandb/confusion_matrix/v1"
SECTIONS = ["Reliance", "Influence by probe language", "Contributions", "Layers", "Top samples", "Runs by configuration"]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What a fit with both callbacks logs offline."""
    folder = tmp_path_factory.mktemp("logged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        pl.seed_everything(0)
        logger = WandbLogger(save_dir=folder, project="test")
        callbacks = [TracInCallback(folder / "run", top_k=5), ContributionCallback(folder / "run")]
        trainer(folder, callbacks, logger=logger).fit(Classifier(), *text_loaders())
        logger.experiment.finish()
        wandb.teardown()
        return history(folder)


def logged(records: list[dict[str, Any]]) -> set[str]:
    """The keys in the history; a table's and a picture's are those of its file."""
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    return {key for row in rows for key in row}


def within(value: Any, name: str) -> Iterator[Any]:
    """Every value with this name, however deep."""
    if isinstance(value, dict):
        for key, one in value.items():
            if key == name:
                yield one
            yield from within(one, name)
    elif isinstance(value, list):
        for one in value:
            yield from within(one, name)


def tables(spec: dict[str, Any]) -> set[str]:
    """The tables that panels and charts ask for."""
    asked = {arg["value"] for args in within(spec, "args") for arg in args if arg["name"] == "tableKey"}
    picked = {one["val"] for one in within(spec, "key") if isinstance(one, dict) and one.get("nodeType") == "const"}
    return asked | picked


@pytest.mark.parametrize("languages", [(), LANGUAGES])
@pytest.mark.parametrize("page", ["workspace", "report"])
def test_every_panel_shows_what_a_fit_logs(records: list[dict[str, Any]], page: str, languages: tuple[str, ...]) -> None:
    spec, found = dashboard("team", "xnli", languages=languages).specs()[page], logged(records)
    steps = {r["metric"]["name"]: r["metric"].get("step_metric") for r in records if "name" in r.get("metric", {})}
    patterns = list(within(spec, "metricRegex"))
    assert len(patterns) == (4 + 3 if not languages else 4 + 3 * len(LANGUAGES))
    for pattern in patterns:
        matched = [key for key in found if re.search(pattern, key)]
        assert matched, pattern
        (drawn,) = [one for one in within(spec, "config") if isinstance(one, dict) and one.get("metricRegex") == pattern]
        assert {steps[key] for key in matched} == {drawn["xAxis"]}  # of the step that the sink defined for each
    files = {key.removesuffix("._type") for key in found} | {key.split(".")[0] for key in found}
    assert tables(spec) == {
        *(f"tracin/{name}" for name in ("own_language_table", "languages_table", "reliance_table", "top", "contribution_table")),
        "tracin_values/layers",
    }
    assert tables(spec) <= files
    assert {key for keys in within(spec, "mediaKeys") for key in keys} == {"tracin/heat_map", "tracin/contributions"}
    assert {"tracin/heat_map", "tracin/contributions"} <= files
    assert {metric for metrics in within(spec, "metrics") for metric in metrics} == {"tracin_values/cross_lingual/mean"}
    assert "tracin_values/cross_lingual/mean" in found
    assert {one["val"] for one in within(spec, "artifactName") if isinstance(one, dict)} == {"tracin-results"}


def test_charts_have_the_fields_of_the_charts_that_the_sink_logs(records: list[dict[str, Any]]) -> None:
    drawn: dict[str, dict[str, Any]] = {}
    for record in records:
        for name, chart in record.get("config", {}).get("update", {}).items():
            if name.startswith("_wandb.visualize."):
                drawn[f"{name.removeprefix('_wandb.visualize.')}_table"] = chart["panel_config"]
    panels = [one for one in within(dashboard("team", "xnli").specs()["workspace"], "config") if "panelDefId" in one]
    assert [panel["panelDefId"] for panel in panels] == [LINES, MATRIX, BARS, BARS]
    for panel in panels[:2]:
        (key,) = tables({"args": panel["userQuery"]["queryFields"][0]["fields"][0]["args"]})
        assert (panel["panelDefId"], panel["fieldSettings"]) == (drawn[key]["panelDefId"], drawn[key]["fieldSettings"])


def test_options_that_runs_are_compared_by_are_in_their_configuration(records: list[dict[str, Any]]) -> None:
    assert set(COMPARED) <= config_of(records).keys() & Options.model_fields.keys()
    spec = dashboard("team", "xnli").specs()["report"]
    columns = {f"config:tracin.value.{name}" for name in COMPARED}
    assert {column for order in within(spec, "columnOrder") for column in order} == columns
    accessors = {column["accessor"] for one in within(spec, "columns") for column in one}
    assert accessors == {*columns, "summary:tracin_values/cross_lingual/mean"}


def test_the_spec_is_the_one_that_was_looked_at() -> None:
    """After a change that is meant, look at the difference and write the file again, as the assertion's message says."""
    made = dashboard("team", "xnli", run="abc123", languages=["de", "zh-Hans"]).specs()
    written = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
    assert written == GOLDEN.read_text(), (
        "lightning-tracin dashboard --entity team --project xnli --run abc123 --languages '[de, zh-Hans]' --spec FOLDER"
    )


def test_ids_are_the_same_each_time_and_no_two_are_equal() -> None:
    first, second = (dashboard("team", "xnli", languages=["de"]).specs() for _ in range(2))
    assert first == second
    for page in first.values():
        ids = list(within(page, "__id__"))
        assert len(ids) == len(set(ids)) > 20


def test_a_run_restricts_the_report_and_is_the_one_that_the_workspace_compares_with() -> None:
    made = dashboard("team", "xnli", run="abc123")
    assert [runs.filters for runs in made.runsets] == ["Metric(\"ID\") == 'abc123'"] * 5 + [""]
    assert made.workspace.runset_settings.baseline_run == "abc123"
    assert [section.name for section in made.workspace.sections] == SECTIONS
    assert [runs.filters for runs in dashboard("team", "xnli").runsets] == [""] * 6


@pytest.mark.parametrize("empty", ["entity", "project", "run"])
def test_an_empty_name_is_an_error_with_the_remedy(empty: str) -> None:
    given = {"entity": "team", "project": "xnli", "run": "abc123", empty: ""}
    with pytest.raises(TracInError, match=rf"^{empty} is empty; give the one in the address of the project, https://wandb.ai/"):
        dashboard(**given)


@pytest.mark.parametrize("run", ["a'b", 'a"b', "team/xnli/abc123"])
def test_what_cannot_be_the_id_of_a_run_is_an_error_with_the_remedy(run: str) -> None:
    with pytest.raises(TracInError, match=r"is not the id of a run; give the last part of the run's address\.$"):
        dashboard("team", "xnli", run=run)


@pytest.mark.parametrize("run", ["lr=0.1", "x" * 128])
def test_any_id_of_a_run_makes_a_title_that_the_package_takes(run: str) -> None:
    made = dashboard("team", "xnli", run=run)
    assert made.runsets[0].filters == f"Metric(\"ID\") == '{run}'"
    assert made.report.title == ("TracIn, run lr-0.1" if run == "lr=0.1" else f"TracIn, run {'x' * 116}")
    assert made.workspace.name == made.report.title
