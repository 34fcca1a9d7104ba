"""What an account shows: sentences, figure, files and page."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from lightning_tracin import TracInError, TracInRun
from lightning_tracin.analysis.contributions import contribution_table, whole_fit
from lightning_tracin.config import View
from lightning_tracin.reporting import figures
from lightning_tracin.reporting.contribution_findings import cautions_of_contributions, findings_of_contributions
from lightning_tracin.reporting.contribution_results import write_contributions
from lightning_tracin.reporting.every_result import write_every_result
from lightning_tracin.storage.account import AccountStore
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.sample_table import SampleTable
from tests.guarantees.test_hostile_text import SCRIPT
from tests.support.accounts import Source, append, record_of, small_account
from tests.support.hand_made import run_directory
from tests.support.pages import Elements


def whole(store: AccountStore) -> pd.DataFrame:
    return whole_fit(contribution_table(store.record(), store.windows(), cumulative=True))


def test_sentences_say_who_lowered_and_who_raised_a_loss(tmp_path: Path) -> None:
    store = small_account(tmp_path)
    german, french = findings_of_contributions(whole(store))
    # by hand: de (0.7 + 0.6) / 2, en (0.3 + 0.2) / 2; the losses fell by 1.0 and 0.9
    assert german == (
        "The loss of de fell by 0.95 nats (2 probes): samples of de lowered it by 0.65 (95 % interval 0.6 to 0.7; 50 % of the "
        "samples), en by 0.25 (0.2 to 0.3; 50 %); weight decay lowered it by 0.02; 0.03 is unexplained (3.2 %)."
    )
    # de 0.0 and 0.0, en 0.7 and 0.45; fell by 0.7 and 0.4
    assert french == (
        "The loss of fr fell by 0.55 nats (2 probes): samples of en lowered it by 0.575 (95 % interval 0.45 to 0.7; 50 % of the "
        "samples), de by 0 (0 to 0; 50 %); weight decay lowered it by 0.02; -0.045 is unexplained (8.2 %)."
    )


def test_sentences_of_a_loss_that_rose_and_of_many_groups(tmp_path: Path) -> None:
    store = AccountStore(tmp_path)
    store.write(record_of(("fr",)))
    nats: dict[Source, list[float]] = {f"l{index:02d}": [-0.01 * index] for index in range(1, 11)}
    append(store, {**nats, "momentum": [0.001], "undivided": [0.25]}, [2.0], [2.3])
    (said,) = findings_of_contributions(whole(store))
    assert said.startswith(
        "The loss of fr rose by 0.3 nats (1 probe): samples of l10 raised it by 0.1 (10 % of the samples), l09 by"
    )
    assert "l03 by 0.03 (10 %); 2 others together changed it by 0.03; what could not be divided by train samples lowered" in said
    assert "momentum" not in said
    assert said.endswith("0.25; -0.001 is unexplained (0.3 %).")


def test_cautions_name_what_limits_an_account(tmp_path: Path) -> None:
    plain = small_account(tmp_path / "plain")
    path, much = cautions_of_contributions(whole(plain), plain.record())
    assert "not what would be missed without them" in path
    assert much == "More than 5 % of the change is unexplained for fr; shorter windows explain more of it."
    changes = {
        "approximate": "LBFGS is unknown.",
        "undivided": {"a": 3, "b": 4},
        "every_n_steps": 4,
        "began_at": 7,
        "ended": False,
    }
    limited = small_account(tmp_path / "limited", **changes)
    said = "\n".join(cautions_of_contributions(whole(limited), limited.record()))
    for part in (
        "The split is approximate: LBFGS is unknown.\n",
        'The gradients of 2 parameters (7 elements) are not split by language; what they changed is the row "undivided".',
        "One of 4 optimizer steps was accounted",
        "begins after optimizer step 7",
        "has not ended",
    ):
        assert part in said


def area(panel: Axes, name: str) -> np.ndarray:
    """The last step's lower and upper edges of the areas of a source: [areas, 2]."""
    found = [one for one in panel.collections if one.get_label() == name]
    corners = [one.get_paths()[0].vertices for one in found]
    last = [edge[edge[:, 0] == edge[:, 0].max(), 1] for edge in corners]
    return np.array([[heights.min(), heights.max()] for heights in last])


def test_the_figure_stacks_what_lowered_and_what_raised_the_loss(tmp_path: Path) -> None:
    store = AccountStore(tmp_path)
    store.write(record_of(("fr",), began_at=10))
    append(store, {"de": [0.5], "en": [-0.1], "decay": [0.05]}, [3.0], [2.5])
    append(store, {"de": [0.3], "en": [-0.1], "decay": [0.05]}, [2.5], [2.25])
    table = contribution_table(store.record(), store.windows(), cumulative=True)
    (panel,) = figures.contributions(table).axes
    (line,) = [line for line in panel.lines if line.get_label() == "measured loss"]
    assert np.column_stack(line.get_data()).tolist() == [[10, 3.0], [12, 2.5], [14, 2.25]]
    np.testing.assert_allclose(area(panel, "de"), [[3.0 - 0.8, 3.0]])
    np.testing.assert_allclose(area(panel, "decay"), [[2.2 - 0.1, 2.2]])
    # 0.75 fell; 0.8 - 0.2 + 0.1 = 0.7 are explained
    np.testing.assert_allclose(area(panel, "unexplained"), [[2.1 - 0.05, 2.1]])
    np.testing.assert_allclose(area(panel, "en"), [[3.0, 3.2]])
    legend = panel.figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["measured loss", "German", "English", "decay", "unexplained"]
    colours = [to_hex(patch.get_facecolor()) for patch in legend.get_patches()]
    assert len(set(colours)) == 4
    assert all(len({colour[1:3], colour[3:5], colour[5:]}) == 1 for colour in colours[2:])  # grey


def test_the_figure_has_a_panel_for_each_probe_language_or_for_one(tmp_path: Path) -> None:
    run = TracInRun(directory_of(small_account(tmp_path)))
    assert [panel.get_title() for panel in run.plot.contributions().axes if panel.axison] == ["German", "French"]
    assert [panel.get_title() for panel in run.plot.contributions("fr").axes] == ["French"]
    with pytest.raises(TracInError, match="There is no probe language 'uk'; the table has de, fr"):
        run.plot.contributions("uk")
    with pytest.raises(TracInError, match="take `cumulative=True`"):
        figures.contributions(run.contributions())


def test_groups_that_share_a_colour_or_a_name_are_told_apart(tmp_path: Path) -> None:
    store = AccountStore(tmp_path)
    store.write(record_of(("fr",)))
    names = [f"l{index}" for index in range(8)]
    nats: dict[Source, list[float]] = {**{(name, True): [0.1] for name in names}, ("decay", True): [0.1], ("decay", False): [0.1]}
    append(store, nats, [3.0], [1.9])
    figure = figures.contributions(contribution_table(store.record(), store.windows(), cumulative=True))
    legend = figure.legends[0]
    looks = [(to_hex(patch.get_facecolor()), patch.get_hatch()) for patch in legend.get_patches()]
    assert len(set(looks)) == len(looks) == 11
    assert [text.get_text() for text in legend.get_texts()][1:] == ["decay", *names, "(decay)", "unexplained"]


def directory_of(store: AccountStore) -> RunDirectory:
    return RunDirectory(store.folder.parent)


def page_of(path: Path) -> str:
    return (path / "results" / "report.html").read_text(encoding="utf-8")


def test_a_directory_with_contributions_only_has_a_page_of_them(tmp_path: Path) -> None:
    run = TracInRun(directory_of(small_account(tmp_path)))
    assert write_contributions(run) == {}
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"contributions.csv", "contributions.png", "report.html"}
    written = pd.read_csv(tmp_path / "results" / "contributions.csv")
    for cumulative, table in written.groupby("cumulative"):
        expected = run.contributions(cumulative=bool(cumulative))
        pd.testing.assert_frame_equal(table.drop(columns="cumulative").reset_index(drop=True), expected)
    page = page_of(tmp_path)
    assert "<h2>Contributions</h2>" in page
    assert "The loss of fr fell by 0.55 nats" in page
    assert "not what would be missed without them" in page
    assert page.count("<img") == 1
    assert "reliance" not in page
    write_contributions(run)
    assert page_of(tmp_path) == page  # once, however often it is written


def run_with_both(path: Path) -> TracInRun:
    samples = SampleTable(("de", "en") * 4, (None,) * 8, tuple(map(str, range(8))), (None,) * 8)
    run_directory(path, samples, samples.take([0, 1, 2, 3]))
    small_account(path)
    return TracInRun.open(path)


def test_a_page_of_both_has_both(tmp_path: Path) -> None:
    run = run_with_both(tmp_path)
    nothing: Any = lambda: (np.eye(8), np.eye(8)[:4])  # noqa: E731
    assert write_every_result(run, View(top_k=2), nothing).remedy is None
    page = page_of(tmp_path)
    assert "<h2>Contributions</h2>" in page
    assert "<h2>Curves, by snapshot</h2>" in page
    append(run.account, {"de": [0.1] * 4}, [2.0, 2.3, 2.8, 2.9], [1.0, 1.3, 1.8, 1.9])
    write_contributions(run)
    later = page_of(tmp_path)
    assert later != page
    assert later.count("<h2>Contributions</h2>") == 1
    start, end = (later.index(mark) for mark in ("<!-- contributions -->", "<!-- end of contributions -->"))
    old_start, old_end = (page.index(mark) for mark in ("<!-- contributions -->", "<!-- end of contributions -->"))
    assert (later[:start], later[end:]) == (page[:old_start], page[old_end:])


def test_a_run_without_an_account_has_no_section(tmp_path: Path) -> None:
    run = run_with_both(tmp_path)
    shutil.rmtree(tmp_path / "contributions")
    write_every_result(TracInRun.open(run.path), View(top_k=2), lambda: (np.eye(8), np.eye(8)[:4]))
    assert "<h2>Contributions</h2>" not in page_of(tmp_path)
    assert not (tmp_path / "results" / "contributions.csv").exists()


def test_what_cannot_be_written_is_named_and_costs_no_other(tmp_path: Path) -> None:
    run = TracInRun(directory_of(small_account(tmp_path)))
    (tmp_path / "results" / "contributions.png").mkdir(parents=True)
    (tmp_path / "results" / "report.html").write_text("<p>of an older version</p>")
    failed = write_contributions(run)
    assert list(failed) == ["contributions.png", "report.html"]
    assert "has no place for contributions; delete it first" in failed["report.html"]
    assert page_of(tmp_path) == "<p>of an older version</p>"
    assert (tmp_path / "results" / "contributions.csv").exists()


def test_a_damaged_window_is_named_and_costs_influence_nothing(tmp_path: Path) -> None:
    run = run_with_both(tmp_path)
    path = tmp_path / "contributions" / "windows" / "000002.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    remedy = write_every_result(run, View(top_k=2), lambda: (np.eye(8), np.eye(8)[:4])).remedy
    assert remedy is not None
    assert "contributions.csv" in remedy
    assert "000002.safetensors is damaged" in remedy
    assert "<h2>Curves, by snapshot</h2>" in page_of(tmp_path)


def test_an_account_without_windows_writes_nothing(tmp_path: Path) -> None:
    store = AccountStore(tmp_path)
    store.write(record_of(("de",)))
    assert write_contributions(TracInRun(directory_of(store))) == {}
    assert not (tmp_path / "results").exists()


def test_without_the_extras_the_table_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("matplotlib", "jinja2"):
        monkeypatch.setitem(sys.modules, package, None)
    run = TracInRun(directory_of(small_account(tmp_path)))
    with pytest.warns(UserWarning, match="Figures need matplotlib.*Pages need jinja2"):
        assert write_contributions(run) == {}
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["contributions.csv"]


def test_names_of_groups_are_escaped_in_the_page(tmp_path: Path) -> None:
    store = AccountStore(tmp_path)
    store.write(record_of((f"p{SCRIPT}", "<!-- end of contributions -->")))
    append(store, {f"t{SCRIPT}": [0.5, 0.5], "$x_$": [0.25, 0.25]}, [3.0, 3.0], [2.0, 2.0])
    run = TracInRun(directory_of(store))
    assert write_contributions(run) == {}
    first = page_of(tmp_path)
    write_contributions(run)
    assert page_of(tmp_path) == first
    page = Elements(first)
    assert page.foreign_scripts == []
    assert "onerror" not in page.attributes
    assert {f"{kind}{SCRIPT}" in page.text for kind in "pt"} == {True}
