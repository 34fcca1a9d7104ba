"""Tables, top lists, commands, files of results and named scores all show the numbers of `influence`, or all refuse them."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torch.utils.data import DataLoader

from lightning_tracin import TracInCallback, TracInError, TracInRun
from lightning_tracin.cli.main import main
from lightning_tracin.config import Scoring
from lightning_tracin.reporting.results import analyse, point
from lightning_tracin.studies.named_scores import SCORES, influence_of, settings_of
from tests.support.two_rates import PROBES, TRAIN, Probes, TwoRates, Vectors, fit

LANGUAGES = np.array(Vectors(0, TRAIN).language), np.array(Probes().language)

#: The fit's settings, and how its scores are read.
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "exact": ({"preconditioner": None}, {}),
    "Adam": ({"preconditioner": "adam"}, {}),
    "factored Adam": ({"preconditioner": "adam-factored"}, {}),
    "projected": ({"projection_dim": 60}, {}),
    "whitened": ({"projection_dim": 60, "preconditioner": "fisher"}, {}),
    "Adam's, projected": ({"projection_dim": 60, "preconditioner": "adam"}, {}),
    "Adam's, whitened": ({"projection_dim": 60, "preconditioner": "adam-fisher"}, {}),
    "EK-FAC": ({"method": "ekfac"}, {}),
    "whitened by layer": ({"projection_dim": 60, "preconditioner": "fisher"}, {"blocks": "layer", "damping": 0.1}),
}
VIEW: dict[str, Any] = {"similarity": "dot", "weighting": "learning_rate"}


def fitted(folder: Path, **settings: Any) -> TracInRun:
    fit(folder, TracInCallback(folder / "run", top_k=3, **VIEW, **settings))
    return TracInRun.open(folder / "run")


def shares(influence: Any, k: int = 3) -> pd.Series[float]:
    """The share of each train language in the k highest scores of the probes of a language."""
    first = LANGUAGES[0][np.argsort(-influence, axis=0, kind="stable")[:k]]
    cells = {
        (probe, train): float((first[:, LANGUAGES[1] == probe] == train).mean())
        for probe, train in product(("de", "en", "ru"), repeat=2)
    }
    return pd.Series(cells)


def sums(influence: Any) -> pd.Series[float]:
    """The sum over each train language's samples: the mean over the probes of a language."""
    cells = {
        (probe, train): float(influence[np.ix_(LANGUAGES[0] == train, LANGUAGES[1] == probe)].sum(0).mean())
        for probe, train in product(("de", "en", "ru"), repeat=2)
    }
    return pd.Series(cells)


def nats_per_score(run: TracInRun, **chosen: Any) -> list[float]:
    """What a score of each snapshot is worth: 1 unless it follows the steps of Adam, which are shared by a batch's samples."""
    if run.influence(**VIEW, **chosen).attrs["preconditioner"] not in ("adam", "adam-factored"):
        return [1.0] * 2  # plain and whitened gradients, after AdamW's steps
    return [one.steps / (TRAIN * one.visits) for one in run.snapshots]


def of_table(table: pd.DataFrame) -> Any:
    return table.set_index(["probe_language", "train_language"])["value"].sort_index().to_numpy()


@pytest.mark.results
@pytest.mark.parametrize("way", WAYS)
def test_every_reader_shows_the_same_scores(way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings, chosen = WAYS[way]
    run = fitted(tmp_path, **settings)
    arguments = [f"--{name}={value}" for name, value in chosen.items()]
    summed = run.influence(**VIEW, **chosen).to_numpy()
    each = [run.scores(index, Scoring(**VIEW, **chosen)) for index in range(2)]
    np.testing.assert_allclose(sum(each), summed, rtol=1e-12)
    asked: dict[str, Any] = {"measure": "share", **VIEW, **chosen}
    table = run.reliance(3, cumulative=True, snapshots=[1], **asked)
    np.testing.assert_allclose(of_table(table), shares(summed).sort_index(), atol=1e-12)
    np.testing.assert_allclose(of_table(run.reliance(3, snapshots=[1], **asked)), shares(each[1]).sort_index(), atol=1e-12)
    whole = run.reliance(cumulative=True, snapshots=[1], **chosen)
    per_score = nats_per_score(run, **chosen)
    np.testing.assert_allclose(of_table(whole), sums(sum(map(np.multiply, per_score, each))).sort_index(), rtol=1e-9)

    capsys.readouterr()
    for measure, want in (("share", table), ("sum", whole)):
        command = [
            "reliance",
            "--run",
            str(run.path),
            "--cumulative",
            "true",
            "--snapshots",
            "[1]",
            "--output",
            "csv",
            *arguments,
        ]
        main([*command, "--measure", measure])
        printed = pd.read_csv(StringIO(capsys.readouterr().out))
        np.testing.assert_allclose(of_table(printed), of_table(want), atol=1e-6)
    for probe in (0, PROBES - 1):
        best = run.top(probe, 4, **VIEW, **chosen)
        np.testing.assert_allclose(best["score"], np.sort(summed[:, probe])[::-1][:4], rtol=1e-12)
        main(["top", "--run", str(run.path), "--probe", str(probe), "--k", "4", "--output", "csv", *arguments])
        assert pd.read_csv(StringIO(capsys.readouterr().out))["train"].tolist() == best["train"].tolist()

    if not chosen:  # what the fit itself wrote, and what its curves show
        written = pd.read_csv(run.path / "results" / "reliance.csv").query("sign == 'positive' and cumulative and snapshot == 1")
        view = run.record.options.view(run.method.measure)
        final, curve = analyse(run, view).final(), point(run, 1, view)
        for measure, want in (("share", table), ("sum", whole)):
            np.testing.assert_allclose(of_table(written.query(f"measure == '{measure}'")), of_table(want), atol=1e-6)
            np.testing.assert_allclose(of_table(final.tables[measure]), of_table(want))
        np.testing.assert_allclose(of_table(curve.tables["share"]), shares(each[1]).sort_index(), atol=1e-12)
        np.testing.assert_allclose(of_table(curve.tables["sum"]), sums(per_score[1] * each[1]).sort_index(), rtol=1e-9)
        top = pd.read_csv(run.path / "results" / "top.csv").query("sign == 'positive' and probe == 0")
        assert top["train"].tolist()[:3] == run.top(0, 3, **VIEW)["train"].tolist()


@pytest.mark.parametrize("way", WAYS)
def test_scores_do_not_depend_on_what_is_in_memory(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, chosen = WAYS[way]
    monkeypatch.setattr("lightning_tracin.attribution.batching.SHARD_SAMPLES", 4)
    run = fitted(tmp_path, **settings, batch_size=2)
    views = [{**VIEW, **other} for other in ({}, {"weighting": "uniform"}, {"similarity": "cosine"}, {})]
    whole = [run.influence(**view, **chosen).to_numpy() for view in views]
    np.testing.assert_array_equal(whole[0], whole[-1])  # cached next to others
    layers = {**chosen, "blocks": "layer"}
    asked: dict[str, Any] = {"measure": "share", "by": "layer", **VIEW, **layers}
    by_layer = of_table(run.reliance(3, **asked).query("layer == 'layer 0' and snapshot == 1"))
    monkeypatch.setattr("lightning_tracin.analysis.scorer.MATRIX_BYTES", 0)
    streamed = TracInRun.open(run.path)
    for view, want in zip(views, whole, strict=True):
        got = streamed.influence(**view, **chosen).to_numpy()
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
    again = of_table(streamed.reliance(3, **asked).query("layer == 'layer 0' and snapshot == 1"))
    np.testing.assert_allclose(again, by_layer)


@pytest.mark.parametrize("preconditioner", ["fisher", "adam-fisher"])
@pytest.mark.parametrize("blocks", ["whole", "layer"])
def test_added_probes_are_scored_with_the_same_inner_product(blocks: Any, preconditioner: str, tmp_path: Path) -> None:
    run = fitted(tmp_path, projection_dim=60, preconditioner=preconditioner)
    before = run.influence(**VIEW, blocks=blocks).to_numpy()
    grown = run.add_probes(TwoRates(), DataLoader(Probes(), batch_size=5)).influence(**VIEW, blocks=blocks).to_numpy()
    np.testing.assert_allclose(grown[:, :PROBES], before, rtol=1e-5, atol=1e-6 * np.abs(before).max())
    np.testing.assert_allclose(grown[:, PROBES:], before, rtol=1e-5, atol=1e-5 * np.abs(before).max())


@pytest.mark.parametrize("name", SCORES)
def test_named_scores_are_those_of_the_run(name: str, tmp_path: Path) -> None:
    run, score = fitted(tmp_path, **settings_of(SCORES[name].way, 60)), SCORES[name]
    found = run.influence(score.similarity, score.weighting, damping=score.damping)
    np.testing.assert_array_equal(influence_of(name, run), found)
    chosen = {
        "exact": None,  # plain, though the fit's optimizer is AdamW
        "adam": "adam",
        "adam-factored": "adam-factored",
        "projected": "fisher",
        "adam-projected": "adam-fisher",
        "ekfac": None,
    }[score.way]
    assert run.record.options.preconditioner == chosen
    assert found.attrs["preconditioner"] == (chosen or run.method.metric or "none")


READERS: dict[str, Callable[..., Any]] = {
    "influence": lambda run, **asked: run.influence(**asked),
    "reliance": lambda run, **asked: run.reliance(3, **asked),
    "top": lambda run, **asked: run.top(0, 3, **asked),
    "tops": lambda run, **asked: run.tops([0], 3, "positive", Scoring(**asked)),
    "scores": lambda run, **asked: run.scores(0, Scoring(**asked)),
}


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> TracInRun:
    return fitted(tmp_path_factory.mktemp("exact"), preconditioner=None)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("asked", ["adam", "fisher", "adam-fisher"])
def test_every_reader_refuses_the_same(reader: str, asked: str, exact: TracInRun) -> None:
    with pytest.raises(TracInError, match=f"holds nothing to score with preconditioner='{asked}'; run the fit with"):
        READERS[reader](exact, preconditioner=asked)
