"""The command saves the dashboard in W&B, and says in a sentence what stands in its way."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb

from lightning_tracin.cli.main import main
from lightning_tracin.reporting.dashboard import dashboard
from tests.support.wandb_server import ENTITY, PROJECT, RUN, Server, running

pytest.importorskip("wandb_workspaces", reason="the extra `dashboard` is not installed")

KEY = "0123456789" * 4
TRACIN = {"languages": {"de": "de", "en": "en", "zh_Hans": "zh-Hans"}, "top_k": 5}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    with running(Server(config={"tracin": TRACIN}, summary={"tracin_values/influence/zh_Hans/en": 0.5})) as one:
        monkeypatch.setenv("WANDB_BASE_URL", one.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        wandb.teardown()  # the settings of a process are read once
        yield one
        wandb.teardown()


def command(*more: str, project: str = PROJECT) -> None:
    main(["dashboard", "--entity", ENTITY, "--project", project, *more])


def test_the_workspace_and_the_report_are_saved(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    command("--run", RUN)
    expected = dashboard(ENTITY, PROJECT, RUN, ["zh-Hans"]).specs()  # the probe languages of the run
    views = server.views()
    assert set(views) == {"project-view", "runs"}
    assert all((one["entityName"], one["projectName"]) == (ENTITY, PROJECT) for one in views.values())
    assert all(one["displayName"] == f"TracIn, run {RUN}" for one in views.values())
    assert json.loads(views["project-view"]["spec"]) == expected["workspace"]["spec"]
    sent = json.loads(views["runs"]["spec"])
    numbered = [block["metadata"]["runSets"] for block in sent["blocks"] if "metadata" in block]
    assert all(runs.pop("project")["id"] == "17" for one in numbered for runs in one)  # as the server says
    assert sent == expected["report"]["spec"]
    (credentials,) = server.keys
    assert credentials.startswith("Basic ")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"Workspace: {server.url}/{ENTITY}/{PROJECT}?nw=")
    assert second.startswith(f"Report: {server.url}/{ENTITY}/{PROJECT}/reports/TracIn,-run-{RUN}--")


def test_without_a_run_panels_are_of_all_languages(server: Server) -> None:
    command()
    expected = dashboard(ENTITY, PROJECT).specs()["workspace"]["spec"]
    assert json.loads(server.views()["project-view"]["spec"]) == expected


def refused(*more: str, project: str = PROJECT) -> str:
    with pytest.raises(SystemExit) as caught:
        command(*more, project=project)
    return str(caught.value)


def test_a_project_that_is_not_there(server: Server) -> None:
    assert refused(project="xnil") == (
        "Error: W&B has no project team/xnil that your login may see; give `--entity` and `--project` as they are in its "
        "address, https://wandb.ai/ENTITY/PROJECT."
    )
    assert server.views() == {}


def test_a_run_that_is_not_there(server: Server) -> None:
    assert refused("--run", "a fit") == (
        "Error: team/xnli has no run with the id a fit; give `--run` as it is in the run's address, which may differ from its "
        "name."
    )
    assert server.views() == {}


def test_a_run_without_tracin(server: Server) -> None:
    server.config = {"lr": 0.1}
    assert refused("--run", RUN) == (
        f"Error: The run {RUN} has nothing of TracIn; give one that was logged by a WandbLogger in a fit with a TracInCallback "
        "or a ContributionCallback."
    )
    assert server.views() == {}


def test_nobody_is_logged_in(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    assert refused() == (
        "Error: Nobody is logged in to W&B; run `wandb login` first, or give `--spec FOLDER` to write the dashboard to files."
    )
    assert server.asked == []


def test_a_login_that_is_refused(server: Server) -> None:
    server.refuses = True
    said = refused()
    assert said.startswith("Error: W&B refused or did not answer (Failed to verify credentials")
    assert said.endswith("check `wandb login` and WANDB_BASE_URL, or give `--spec FOLDER` to write the dashboard to files.")


def test_the_package_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    for name in [name for name in sys.modules if name.startswith("wandb_workspaces.")]:
        monkeypatch.delitem(sys.modules, name)
    for more in ((), ("--spec", str(tmp_path))):
        assert refused(*more) == (
            "Error: Dashboards need wandb_workspaces, which is not installed: pip install 'lightning-tracin[dashboard]'."
        )


def test_the_spec_is_written_without_a_login(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    command("--languages", "[de, zh-Hans]", "--spec", str(tmp_path / "spec"))
    assert capsys.readouterr().out == f"Written to {tmp_path / 'spec'}: workspace.json, report.json. Nothing was sent to W&B.\n"
    written = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "spec").iterdir()}
    assert written == dashboard(ENTITY, PROJECT, languages=["de", "zh-Hans"]).specs()
    assert server.asked == []
