"""An opened run says what it is, in a terminal and in a notebook."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lightning_tracin import TracInCallback, TracInRun
from lightning_tracin.reporting.run_summary import as_html
from lightning_tracin.storage.directory import RunDirectory
from tests.support.accounts import small_account
from tests.support.fits import Classifier, loaders, trainer


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fitted")
    trainer(folder, [TracInCallback(folder / "run", top_k=5)], max_epochs=2).fit(Classifier(), *loaders())
    return folder / "run"


def test_a_run_says_what_it_holds(fitted: Path) -> None:
    said = repr(TracInRun.open(fitted))
    assert said == (
        f"TracInRun in {fitted}: 30 train samples (de 10, en 10, ru 10) x 12 probes (de 4, en 4, ru 4), exact influence by "
        "training_step (mean), gradients preconditioned by 'adam-factored', at 2 of 2 snapshots."
    )


def test_a_notebook_shows_the_influence_of_the_whole_run(fitted: Path) -> None:
    run = TracInRun.open(fitted)
    page = as_html(run)
    table = run.reliance(cumulative=True, snapshots=[1]).pivot(index="probe_language", columns="train_language", values="value")
    numbers = [float(cell) for cell in re.findall(r"<td>(-?[\d.e-]+)</td>", page)]
    assert numbers == pytest.approx(table.to_numpy().ravel().tolist(), rel=0.01)


def test_without_all_influence_there_is_no_table(tmp_path: Path) -> None:
    callback = TracInCallback(tmp_path / "run", top_k=5, when="never")
    trainer(tmp_path, [callback], max_epochs=1).fit(Classifier(), *loaders())
    run = TracInRun.open(tmp_path / "run")
    assert "at 0 of 1 snapshots" in repr(run)
    assert "<table" not in as_html(run)


def test_a_damaged_run_says_where_it_is(tmp_path: Path) -> None:
    store = small_account(tmp_path / "run")
    run = TracInRun(RunDirectory(store.folder.parent))
    (store.folder / "account.json").write_text("{")
    assert repr(run) == f"TracInRun in {tmp_path / 'run'}"


def test_names_cannot_break_out_of_a_page(tmp_path: Path) -> None:
    callback = TracInCallback(tmp_path / "<b>run", top_k=5, languages=["<i>x"] * 10 + ["de"] * 20)
    trainer(tmp_path, [callback], max_epochs=1).fit(Classifier(), *loaders())
    page = as_html(TracInRun.open(tmp_path / "<b>run"))
    assert "<i>" not in page
    assert "<b>" not in page


def test_an_account_alone_is_a_run(tmp_path: Path) -> None:
    store = small_account(tmp_path / "run")
    run = TracInRun(RunDirectory(store.folder.parent))
    assert repr(run).startswith("Contributions by language")
    assert "<table" not in as_html(run)
