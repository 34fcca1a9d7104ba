"""The commands on an account of contributions."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest

from lightning_tracin import TracInRun
from lightning_tracin.analysis.contributions import whole_fit
from lightning_tracin.storage.account import AccountStore
from lightning_tracin.storage.sample_table import SampleTable
from tests.cli.test_main import failed, said
from tests.support.accounts import append, record_of, small_account, with_samples
from tests.support.hand_made import run_directory


@pytest.fixture
def path(tmp_path: Path) -> Path:
    small_account(tmp_path / "run")
    return tmp_path / "run"


def test_contributions_are_a_row_for_each_probe_language(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.split() for line in said(capsys, "contributions", "--run", path).splitlines()]
    assert lines[0] == ["probe_language", "probes", "fall", "de", "en", "decay", "unexplained"]
    assert lines[1] == ["de", "2", "0.95", "0.65", "0.25", "0.02", "0.03"]
    assert lines[2][:6] == ["fr", "2", "0.55", "0", "0.575", "0.02"]
    part = json.loads(said(capsys, "contributions", "--run", path, "--share", "true", "--output", "json"))
    assert part[0]["de"] == pytest.approx(0.65 / 0.95)


def test_long_tables_are_those_of_the_run(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = TracInRun.open(path)
    for options, expected in (
        (["--windows", "true"], run.contributions()),
        (["--cumulative", "true"], run.contributions(cumulative=True)),
        (["--cumulative", "true", "--share", "true", "--by", "language"], run.contributions(cumulative=True, share=True)),
    ):
        table = pd.read_csv(StringIO(said(capsys, "contributions", "--run", path, *options, "--output", "csv")))
        pd.testing.assert_frame_equal(table, expected)


def test_status_tells_of_the_account(tmp_path: Path, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = said(capsys, "status", "--run", path)
    assert told == (
        f"Contributions by language in {path}: 2 windows, steps 1 to 4, every step; unexplained: at most 8.2 % of the change "
        "(fr).\n"
    )
    small_account(tmp_path / "other", every_n_steps=4, approximate="LBFGS is unknown.", ended=False, began_at=3)
    other = said(capsys, "status", "--run", tmp_path / "other")
    assert "steps 4 to 7, one step in 4; unexplained: " in other
    assert other.endswith("(fr); approximate: LBFGS is unknown; the fit has not ended.\n")
    store = AccountStore(tmp_path / "empty")
    store.write(record_of(("de",)))
    for command in ("status", "contributions"):
        assert said(capsys, command, "--run", tmp_path / "empty").endswith("empty: no window yet.\n")


def test_status_tells_of_both(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = SampleTable(("de", "en") * 2, (None,) * 4, ("a", "b", "c", "d"), (None,) * 4)
    run_directory(path, samples, samples)
    lines = said(capsys, "status", "--run", path).splitlines()
    assert lines[0].startswith("Contributions by language in")
    assert lines[2].startswith("Run drawn in")


def test_results_of_a_directory_with_contributions_only(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "results", "--run", path) == f"The results are in {path / 'results'}.\n"
    assert "<h2>Contributions</h2>" in (path / "results" / "report.html").read_text()
    (path / "results" / "contributions.csv").unlink()
    (path / "results" / "contributions.csv").mkdir()
    assert "contributions.csv (" in failed("results", "--run", path)


def test_export_writes_contributions(tmp_path: Path, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "export", "--run", path, "--folder", tmp_path / "tables").endswith("tables: contributions.csv.\n")
    table = pd.read_csv(tmp_path / "tables" / "contributions.csv")
    whole = whole_fit(table[table["cumulative"]]).drop(columns="cumulative")
    pd.testing.assert_frame_equal(whole, whole_fit(TracInRun.open(path).contributions(cumulative=True)))


def test_top_by_contribution(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_samples(AccountStore(path))
    asked = ("top", "--run", path, "--by", "contribution", "--group", "fr", "--k", 2)
    assert [line.split()[-1] for line in said(capsys, *asked).splitlines()] == ["text", "Hello", "Bye"]
    assert "give `probe`, and no `group`" in failed("top", "--run", path)


def test_what_cannot_be_shown_is_one_sentence(tmp_path: Path, path: Path) -> None:
    assert "are by language, not by 'domain'" in failed("contributions", "--run", path, "--by", "domain")
    assert "holds contributions only; fit with `TracInCallback` to have influence." in failed("reliance", "--run", path)
    samples = SampleTable(("de", "en") * 2, (None,) * 4, ("a", "b", "c", "d"), (None,) * 4)
    run_directory(tmp_path / "influence", samples, samples)
    assert "holds no contributions" in failed("contributions", "--run", tmp_path / "influence")


def test_names_of_groups_print_without_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = AccountStore(tmp_path)
    store.write(record_of(("d\x1b[31me",)))
    append(store, {"e\x07n": [0.5], "fall": [0.25]}, [3.0], [2.0])
    for command in (("contributions", "--run", tmp_path), ("status", "--run", tmp_path)):
        shown = said(capsys, *command)
        assert not set(shown) & {"\x1b", "\x07"}
    assert "'fall'" in said(capsys, "contributions", "--run", tmp_path)
