"""A run directory with contributions, with influence, or with both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lightning_tracin import TracInError, TracInRun
from lightning_tracin.analysis.contributions import contribution_table
from lightning_tracin.storage.sample_table import SampleTable
from tests.support.accounts import small_account, with_samples
from tests.support.hand_made import run_directory

SAMPLES = SampleTable(("de", "en") * 4, (None,) * 8, tuple(map(str, range(8))), (None,) * 8)

NEEDS_INFLUENCE: dict[str, Callable[[TracInRun], object]] = {
    "influence": lambda run: run.influence(),
    "reliance": lambda run: run.reliance(k=1),
    "top": lambda run: run.top(0),
    "tops": lambda run: run.scores(0),
    "ingredients": lambda run: run.ingredients(0),
    "record": lambda run: run.record,
    "snapshots": lambda run: run.snapshots,
    "train": lambda run: run.train,
    "probes": lambda run: run.probes,
    "queries": lambda run: run.queries,
    "method": lambda run: run.method,
    "representations": lambda run: run.representations(),
    "curves": lambda run: run.plot.curves(),
    "heat_map": lambda run: run.plot.heat_map(),
    "lift": lambda run: run.plot.lift(),
    "layers": lambda run: run.plot.layers(),
    "top of a plot": lambda run: run.plot.top(0),
    "languages": lambda run: run.languages(),
    "distances": lambda run: run.distances(),
    "influence_by_distance": lambda run: run.influence_by_distance(),
}


@pytest.mark.parametrize("name", NEEDS_INFLUENCE)
def test_what_needs_influence_says_so_where_there_are_contributions_only(name: str, tmp_path: Path) -> None:
    small_account(tmp_path / "run")
    run = TracInRun.open(tmp_path / "run")
    with pytest.raises(TracInError) as caught:
        NEEDS_INFLUENCE[name](run)
    assert str(caught.value) == f"{run.path} holds contributions only; fit with `TracInCallback` to have influence."


def test_contributions_are_the_table_of_the_account(tmp_path: Path) -> None:
    store = small_account(tmp_path / "run")
    run = TracInRun.open(tmp_path / "run")
    for asked in ({}, {"cumulative": True}, {"share": True, "by": "language"}):
        given = {name: value for name, value in asked.items() if name != "by"}
        pd.testing.assert_frame_equal(run.contributions(**asked), contribution_table(store.record(), store.windows(), **given))
    with pytest.raises(TracInError, match=r"The contributions in .*run are by language, not by 'domain'"):
        run.contributions(by="domain")


def test_a_run_without_an_account_names_the_callback(tmp_path: Path) -> None:
    run = TracInRun(run_directory(tmp_path / "run", SAMPLES, SAMPLES))
    with pytest.raises(TracInError, match="holds no contributions; fit with `ContributionCallback` to have them"):
        run.contributions()


def test_a_run_with_both_has_both(tmp_path: Path) -> None:
    run_directory(tmp_path / "run", SAMPLES, SAMPLES)
    small_account(tmp_path / "run")
    run = TracInRun.open(tmp_path / "run")
    assert run.influence().shape == (8, 8)
    assert len(run.contributions()) == 16
    assert [panel.get_title() for panel in run.plot.curves("share", k=3).axes if panel.axison] == ["German", "English"]
    assert run.plot.curves("share", k=3, width=None).get_supylabel() == "share of the strongest 3"
    assert run.plot.curves("mass", width=None).get_supylabel() == "share of all positive influence (dot)"
    sums = run.influence("dot", "learning_rate").groupby("train_language").sum().groupby("probe_language").mean()
    drawn = run.plot.heat_map().axes[0].images[0].get_array()
    np.testing.assert_allclose(drawn, sums.transpose("probe_language", "train_language"))
    lifts = run.reliance(3, measure="share", cumulative=True, snapshots=[1])["lift"]
    np.testing.assert_allclose(run.plot.lift(k=3).axes[0].images[0].get_array().ravel(), lifts)


def test_top_draws_the_strongest_samples_of_both_signs(tmp_path: Path) -> None:
    run = TracInRun(run_directory(tmp_path / "run", SAMPLES, SAMPLES))
    view = run.record.options.view(run.method.measure)
    scores = run.influence(view.similarity, view.weighting).sel(probe=5).to_numpy()
    panel = run.plot.top(5, k=2).axes[0]
    expected = [*np.sort(scores)[::-1][:2], *np.sort(scores)[:2]]
    assert [bar.get_width() for bar in panel.patches] == pytest.approx(expected)
    assert {text.get_text() for text in panel.texts} >= {str(sample) for sample in np.argsort(scores)[:2]}
    with pytest.raises(TracInError, match=r"^There is no probe 8; the run has probes 0 to 7\.$"):
        run.plot.top(8)


def test_languages_and_distances_of_a_run(tmp_path: Path) -> None:
    names = ("de", "en", "ko", "sv", "x-y") * 2
    train = SampleTable(names, (None,) * 10, ("",) * 10, (None,) * 10)
    probes = SampleTable(("de", "fi"), (None,) * 2, ("",) * 2, (None,) * 2)
    run = TracInRun(run_directory(tmp_path / "run", train, probes))
    assert run.languages()[["code", "family"]].iloc[:3].to_numpy().tolist() == [
        ["de", "Indo-European"],
        ["en", "Indo-European"],
        ["fi", "Uralic"],
    ]
    distances = run.distances()
    assert len(distances) == 2 * 5
    assert len(run.reliance(cumulative=True, snapshots=[1]).merge(distances)) == 10
    with pytest.warns(UserWarning, match="The family or place of 'x-y' is not known"):
        table = run.influence_by_distance()
    assert set(table.loc[table["of"] == "others", "cells"]) == {7}  # two times four languages, but for one's own
    sums = run.reliance(cumulative=True, snapshots=[1]).merge(distances)
    sums = sums[(sums["probe_language"] != sums["train_language"]) & (sums["train_language"] != "x-y")]
    row = table[(table["of"] == "others") & (table["distance"] == "kilometres")].iloc[0]
    assert row["spearman"] == pytest.approx(sums["value"].corr(sums["kilometres"], method="spearman"))


def test_a_directory_with_neither_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(TracInError, match=r"run.json is missing; is .* a run directory of lightning-tracin\?"):
        TracInRun.open(tmp_path)


def test_a_damaged_account_is_named_when_it_is_read(tmp_path: Path) -> None:
    store = small_account(tmp_path / "run")
    (store.folder / "account.json").write_text("{}")
    run = TracInRun.open(tmp_path / "run")
    with pytest.raises(TracInError, match=r"account.json is damaged or of another version"):
        run.contributions()


def test_top_by_contribution(tmp_path: Path) -> None:
    with_samples(small_account(tmp_path / "run"))
    run = TracInRun.open(tmp_path / "run")
    assert run.top(by="contribution", group="fr", k=2)["text"].tolist() == ["Hello", "Bye"]
    assert run.top(by="contribution", group="fr", k=1, sign="negative")["score"].tolist() == [pytest.approx(-0.1)]
    for asked in ({"by": "contribution"}, {"by": "contribution", "group": "fr", "probe": 1}):
        with pytest.raises(TracInError, match="ranks train samples for a group of probes: give `group`, and no `probe`"):
            run.top(**asked)
    for asked in ({}, {"probe": 0, "group": "fr"}):
        with pytest.raises(TracInError, match="for a single probe: give `probe`, and no `group`"):
            run.top(**asked)
    with pytest.raises(TracInError, match="by should be"):
        run.top(by="need")


WRONG: dict[str, tuple[Callable[[TracInRun], object], str]] = {
    "one snapshot": (
        lambda run: run.reliance(k=1, snapshots=0),
        r"snapshots should be a list of indices, such as \[0, 2\], but is 0",
    ),
    "half a snapshot": (lambda run: run.influence(snapshots=[0.5]), r"list of indices, such as \[0, 2\], but is \[0.5\]"),
    "a snapshot's name": (lambda run: run.influence(snapshots="0"), "list of indices, .* but is '0'"),
    "a truth value": (lambda run: run.influence(snapshots=[True]), "list of indices"),
    "no snapshots": (lambda run: run.influence(snapshots=[]), "snapshots is empty; name some, or leave it out for all"),
    "scores": (lambda run: run.scores(99), "There is no snapshot 99; the run has 2, numbered from 0"),
    "scores from the end": (lambda run: run.scores(-1), "There is no snapshot -1"),
    "ingredients": (lambda run: run.ingredients(2), "There is no snapshot 2"),
    "a probe's name": (lambda run: run.top("3"), "probe should be the index of one probe, but is '3'"),
    "several probes": (lambda run: run.top([1, 2]), r"probe should be the index of one probe, but is \[1, 2\]"),
    "half a sample": (lambda run: run.top(0, k=1.5), "k should be a whole number, but is 1.5"),
    "half a share": (lambda run: run.reliance(k=2.5, measure="share"), "k should be a whole number, but is 2.5"),
    "a confidence": (lambda run: run.reliance(k=1, interval=0.9), r"interval should be None or an `Interval` .*, but is 0.9"),
    "no account": (
        lambda run: run.top(by="contribution", group="de"),
        r"no contributions; fit with `ContributionCallback\(samples",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_asked_is_said(name: str, tmp_path: Path) -> None:
    ask, said = WRONG[name]
    with pytest.raises(TracInError, match=said):
        ask(TracInRun(run_directory(tmp_path / "run", SAMPLES, SAMPLES)))


def test_indices_may_be_those_of_numpy(tmp_path: Path) -> None:
    run = TracInRun(run_directory(tmp_path / "run", SAMPLES, SAMPLES))
    asked = run.influence(snapshots=np.array([1, 0, 1])), run.influence(snapshots=range(2))
    np.testing.assert_array_equal(asked[0], asked[1])
    assert run.top(np.int64(3), k=np.int64(2))["train"].tolist() == run.top(3, k=2)["train"].tolist()
