"""What the figures of studies show, read back from the figures and compared with the tables they were given."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from lightning_tracin.analysis import reinforcement
from lightning_tracin.analysis.reliance import reliance_table
from lightning_tracin.reporting import figures
from tests.support.drawn_figures import bars, named, panel_of, points, said, ticks
from tests.support.study_tables import (
    LANGUAGES,
    SCORES,
    ZERO_SHOT,
    agreed,
    areas,
    changed,
    imbalanced,
    left,
    masked,
    predicted,
    reinforced,
    reliance,
    removed,
    without_language,
)


def test_shares_are_the_tables_cells() -> None:
    table = reliance()
    table.loc[3, ["value", "low", "high"]] = np.nan  # acehnese on indonesian
    table.loc[table["train_language"] == "english", "null"] = 0.3
    figure = figures.shares(table.sample(frac=1, random_state=0).assign(k=50, seeds=3))
    panel = figure.axes[0]
    assert ticks(panel)[0] == "acehnese\nn = 20"
    assert ticks(panel)[-1] == f"{ZERO_SHOT}\nn = 20\nzero-shot"
    cells = table.set_index(["train_language", "probe_language"])
    for train in LANGUAGES:
        mine, found = cells.loc[train], points(panel, train)
        np.testing.assert_allclose(found[:, 0], mine["value"])
        there = mine["value"].notna().to_numpy()
        np.testing.assert_array_equal(np.round(found[there, 1]), np.arange(8)[there])  # each in its probe language's row
        np.testing.assert_allclose(bars(panel, train)[:, :, 0], mine[["low", "high"]])
        np.testing.assert_allclose(bars(panel, train, "chance")[:, :, 0], mine[["null", "null"]])
        (marks,) = named(panel, train)
        own = [not np.allclose(face, 1) for face in marks.get_facecolors()]
        assert own == [probe == train for probe in (*LANGUAGES, ZERO_SHOT)]
    heights = np.concatenate([points(panel, train)[:, 1] for train in LANGUAGES])
    assert len({*np.round(heights[np.isfinite(heights)], 6)}) == 55  # none over another
    assert figure.get_supxlabel() == "share of the top 50 proponents"
    assert "3 seeds" in said(figure)
    assert "95 % interval" in said(figure)


def test_shares_of_scores_and_signs_have_panels_of_their_own() -> None:
    tables = {
        (s, sign): reliance(seed=i + 7 * j).assign(score=s, sign=sign)
        for i, s in enumerate(SCORES[:3])
        for j, sign in enumerate(("positive", "negative"))
    }
    figure = figures.shares(pd.concat(tables.values()))
    words = {"positive": "proponents", "negative": "opponents"}
    for (score, sign), table in tables.items():
        mine = table.set_index(["train_language", "probe_language"]).loc["english", "value"]
        np.testing.assert_allclose(points(panel_of(figure, f"{score}, {words[sign]}"), "english")[:, 0], mine)


def test_reinforcement() -> None:
    table = reinforced()
    figure = figures.reinforcement(table.assign(k=100))
    panel = figure.axes[0]
    cells = table.set_index(["train_language", "probe_language"])
    np.testing.assert_allclose(points(panel, reinforcement.ALL)[:, 0], cells.loc[reinforcement.ALL, "reinforcing"])
    found = points(panel, "english")[:, 0]
    assert np.isnan(found[2])  # English has no samples that are not its own
    np.testing.assert_allclose(np.delete(found, 2), cells.loc["english", "reinforcing"])
    np.testing.assert_allclose(bars(panel, "english", "chance")[0, :, 0], 0.1)
    whole = cells.loc[(reinforcement.ALL, "javanese")]
    assert ticks(panel)[4] == f"javanese\n20 probes, {whole['samples']:.0f} samples"
    assert ticks(panel)[-1].endswith("none possible (zero-shot)")
    assert "top 100" in panel.get_xlabel()


def test_changes_are_starred_where_they_are_significant() -> None:
    table = changed()
    figure = figures.changes(table.sample(frac=1, random_state=0))
    whole = table[(table["before"] == 0) & (table["after"] == 2)].set_index(["probe_language", "train_language"])
    rows = [*LANGUAGES, ZERO_SHOT]
    for text in figure.axes[0].texts:
        column, row = text.get_position()
        cell = whole.loc[(rows[row], LANGUAGES[column])]
        assert text.get_text() == f"{cell['difference']:+.2f}" + ("*" if cell["p_adjusted"] < 0.05 else "")
    assert len(figure.axes[0].texts) == len(whole)
    assert f"corrected for all {len(table)} tests" in said(figure)
    assert "snapshot 0 to 2" in said(figure)
    assert "20 probes a language" in said(figure)


def test_zero_shot() -> None:
    table = without_language()
    table.loc[0, ["share", "low", "high", "probes"]] = [np.nan, np.nan, np.nan, 0]
    figure = figures.zero_shot(table.assign(k=100))
    for panel, name in zip(figure.axes, ("translations", "stayed"), strict=True):
        mine = table[table["measure"] == name].set_index("language")
        for row, language in enumerate(LANGUAGES):
            if mine.loc[language, "probes"]:
                np.testing.assert_allclose(points(panel, language), [[mine.loc[language, "share"], row]])
            else:
                assert np.isnan(points(panel, language)).all()
            np.testing.assert_allclose(bars(panel, language)[0, :, 0], mine.loc[language, ["low", "high"]].to_numpy(float))
            np.testing.assert_allclose(bars(panel, language, "chance")[0, :, 0], mine.loc[language, "chance"])
        assert [text.get_text() for text in panel.texts] == [f"n = {count}" for count in mine["probes"]]
        assert "top 100" in panel.get_title()
    assert ticks(figure.axes[0]) == list(LANGUAGES)


def test_imbalance() -> None:
    table = imbalanced()
    figure = figures.imbalance(table.sample(frac=1, random_state=0).assign(k=100, seeds=1))
    for language in LANGUAGES:
        panel, mine = panel_of(figure, language), table[table["language"] == language]
        np.testing.assert_allclose(points(panel, "share"), mine[["added", "share"]])
        np.testing.assert_allclose(points(panel, "chance"), mine[["added", "chance"]])
        np.testing.assert_allclose(bars(panel, "")[:, :, 1], mine[["low", "high"]])
    assert "1 seed," in said(figure)
    assert said(figure).endswith("bars: 95 % interval over train samples and probes")


def test_masks() -> None:
    table = masked()
    figure = figures.masks(table.iloc[::-1])
    assert said(figure).endswith("bars: 95 % interval over train samples and probes, of random masks the range")
    panel = figure.axes[0]
    assert ticks(panel) == list(LANGUAGES)
    for row, language in enumerate(LANGUAGES):
        line = table.iloc[row]
        found = [points(panel, name)[0, 0] for name in (language, f"random {row}", f"whole {row}")]
        np.testing.assert_allclose(found, line[["share", "random_share", "whole_share"]].to_numpy(float))
        np.testing.assert_allclose(bars(panel, language)[0, :, 0], line[["low", "high"]].to_numpy(float))
        np.testing.assert_allclose(bars(panel, f"random {row}")[0, :, 0], line[["random_low", "random_high"]].to_numpy(float))
        np.testing.assert_allclose(bars(panel, str(row), "chance")[0, :, 0], 1 / 7)


def test_removals_beside_the_same_random_ones() -> None:
    table = removed()
    panel = figures.removal_curve(table.sample(frac=1, random_state=0)).axes[0]
    assert len(panel.lines) == 3 + 1 + 1  # with random removals, and zero
    for name in SCORES[:3]:
        mine = table[table["removed"] == name]
        np.testing.assert_allclose(points(panel, name)[:, 1], mine["drop"])
        np.testing.assert_allclose(points(panel, name)[:, 0], mine["k"], atol=10)  # moved aside a little, not over each other
        np.testing.assert_allclose(bars(panel, name)[:, :, 1], mine[["low", "high"]])
    np.testing.assert_allclose(points(panel, "at random")[:, 1], mine["random_drop"])
    np.testing.assert_allclose(bars(panel, "at random")[:, :, 1], mine[["random_low", "random_high"]])
    assert len({*np.concatenate([points(panel, name)[:, 0] for name in (*SCORES[:3], "at random")])}) == 12


def test_removals_beside_random_ones_of_their_own() -> None:
    table = removed(same=False)
    panel = figures.removal_curve(table).axes[0]
    for name in SCORES[:3]:
        mine = table[table["removed"] == name]
        np.testing.assert_allclose(points(panel, f"at random, {name}")[:, 1], mine["random_drop"])


def test_many_removals_have_panels_of_their_own() -> None:
    table = removed(SCORES)
    figure = figures.removal_curve(table)
    drawn = [panel for panel in figure.axes if panel.axison]
    assert len(drawn) == 14
    for panel, (name, mine) in zip(drawn, table.groupby("removed", sort=False), strict=True):
        assert panel.get_title().replace("\n", " ") == name
        np.testing.assert_allclose(points(panel, name)[:, 1], mine["drop"])
        np.testing.assert_allclose(points(panel, "at random")[:, 1], mine["random_drop"])


@pytest.mark.parametrize(
    ("figure", "table", "name", "value", "best"),
    [
        (figures.deletion_areas, areas(), "removed", "area", "random"),
        (figures.lds_bars, predicted(), "score", "lds", predicted().set_index("score")["lds"].idxmax()),
    ],
)
def test_rows_are_sorted(figure: Callable[[pd.DataFrame], Figure], table: pd.DataFrame, name: str, value: str, best: str) -> None:
    panel = figure(table).axes[0]
    assert ticks(panel)[0] == best
    lines = table.set_index(name)
    for row, label in enumerate(ticks(panel)):
        np.testing.assert_allclose(points(panel, label), [[lines.loc[label, value], row]])
        np.testing.assert_allclose(bars(panel, label)[0, :, 0], lines.loc[label, ["low", "high"]].to_numpy(float))
    assert [list(line.get_xdata()) for line in panel.lines] == [[0, 0]]


def test_within_class_lies_beside_its_score() -> None:
    table = predicted()
    table.loc[12, "within_class"] = np.nan
    figure = figures.lds_bars(table)
    lines = table.set_index("score").loc[ticks(figure.axes[0])]
    np.testing.assert_allclose(points(figure.axes[0], "within_class")[:, 0], lines["within_class"])
    assert "150 probes, 40 subsets" in said(figure)


def test_agreement() -> None:
    table = agreed()
    table.loc[0, ["contrast", "contrast_low", "contrast_high"]] = np.nan
    figure = figures.agreement(table)
    panel, cells = figure.axes[0], table.set_index(["measure", "score"])
    shares = cells.loc["share", "contrast"]
    assert ticks(panel)[0] == shares.idxmax()
    assert ticks(panel)[-1] == SCORES[0]  # where nothing is known
    for measure in ("share", "mass", "mean"):
        mine = cells.loc[measure].loc[ticks(panel)]
        np.testing.assert_allclose(points(panel, measure)[:, 0], mine["contrast"])
        np.testing.assert_allclose(bars(panel, measure)[:, :, 0], mine[["contrast_low", "contrast_high"]])
        np.testing.assert_allclose(bars(panel, measure, "chance")[:, :, 0], mine[["contrast_floor", "contrast_floor"]])
    assert "49 cells of other languages" in said(figure)


def test_left_out_against_the_table() -> None:
    changes, table = left(), reliance()
    figure = figures.left_out(changes, table.assign(k=100))
    cells = changes.merge(table, on=["probe_language", "train_language"])
    own = cells["probe_language"] == cells["train_language"]
    effects = pd.get_dummies(cells[["probe_language", "train_language"]]).to_numpy(float)
    for value in ("value", "change"):  # what the best row and column effects of other languages leave
        fitted = np.linalg.lstsq(effects[~own], cells.loc[~own, value].to_numpy(float), rcond=None)[0]
        cells[value] = cells[value] - effects @ fitted
    scatter, grid = figure.axes[:2]
    for name, mine in (("own language", cells[own]), ("other language", cells[~own])):
        expected = mine.sort_values(["probe_language", "train_language"])
        np.testing.assert_allclose(points(scatter, name), expected[["value", "change"]], atol=1e-12)
        np.testing.assert_allclose(np.ptp(bars(scatter, name, "error")[:, :, 1], axis=1), 2 * expected["error"])
    others = cells[~own]
    assert scatter.get_title() == f"Pearson {others['value'].corr(others['change']):.2f} over 49 of 49 cells of other languages"
    first = changes.set_index(["probe_language", "train_language"]).loc[("acehnese", "acehnese")]
    assert grid.texts[0].get_text() == f"{first['change']:+.2f}\n± {first['error']:.2f}"
    assert "3 seeds" in said(figure)
    assert "top 100" in scatter.get_xlabel()


def test_left_out_without_some_shares() -> None:
    table = reliance()
    table.loc[table["probe_language"] == "english", "value"] = np.nan
    table = table[table["train_language"] != "javanese"]
    figure = figures.left_out(left(1), table)
    assert figure.axes[0].get_title().endswith("over 37 of 49 cells of other languages")
    assert "one seed" in said(figure)
    assert len(figure.axes[1].texts) == 56


def test_one_cell_has_no_correlation() -> None:
    changes = left(probes=["english"])
    figure = figures.left_out(changes[changes["train_language"] == "english"], reliance(["english"], ["english"]))
    assert figure.axes[0].get_title() == "Pearson undefined over 0 of 0 cells of other languages"


def test_a_strong_diagonal_is_no_agreement() -> None:
    generator, pairs = np.random.default_rng(1), left()[["probe_language", "train_language"]]
    diagonal = 5.0 * (pairs["probe_language"] == pairs["train_language"])
    said_value, was = (diagonal + generator.normal(size=len(pairs)) for _ in range(2))
    assert np.corrcoef(said_value, was)[0, 1] > 0.6
    figure = figures.left_out(left().assign(change=was), pairs.assign(value=said_value))
    assert abs(float(figure.axes[0].get_title().split()[1])) < 0.2


def test_no_interval_where_there_is_none() -> None:
    scores = np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 0.0]])
    table = reliance_table(scores, ["de", "en", "en"], ["de", "fr"], k=1)  # one probe a language
    panel = figures.shares(table).axes[0]
    np.testing.assert_allclose(points(panel, "en")[:, 0], [1.0, 0.0])
    assert np.isnan(bars(panel, "en")[:, :, 0]).all()
