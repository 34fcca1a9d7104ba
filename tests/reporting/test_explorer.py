"""What a page explores: the lists of `run.influence`, sorted by hand, and what is said of those that are left out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from lightning_tracin import TracInCallback, TracInRun
from lightning_tracin.config import Scoring, View
from lightning_tracin.reporting.explorer import Bounds, Explorer, Strong, explorer_of
from lightning_tracin.storage.sample_table import SampleTable
from tests.support.fits import Classifier, loaders, trainer
from tests.support.hand_made import run_directory

VIEW = View(top_k=5, similarity="dot", weighting="learning_rate")
SCORING = Scoring(similarity="dot", weighting="learning_rate")


def samples(languages: str, count: int) -> SampleTable:
    """This many samples of each language, in turn."""
    rows = [
        (language, str(item), f"{language}{item}", "even" if item % 2 else "odd")
        for item in range(count)
        for language in languages
    ]
    language, item, text, label = zip(*rows, strict=True)
    return SampleTable(language, item, text, label)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TracInRun:
    path = tmp_path_factory.mktemp("drawn") / "run"
    return TracInRun(run_directory(path, samples("abc", 12), samples("abcd", 5)))


def influence(run: TracInRun) -> xr.DataArray:
    return run.influence(VIEW.similarity, VIEW.weighting)


def by_hand(scores: xr.DataArray, sign: int, most: int) -> Strong:
    """The strongest entries of a row or column whose scores have the sign."""
    (index,) = scores.dims
    pairs = [(int(one), float(score)) for one, score in zip(scores[index], scores, strict=True) if score * sign > 0]
    pairs.sort(key=lambda pair: -sign * pair[1])
    return Strong(tuple(one for one, _ in pairs[:most]), tuple(score for _, score in pairs[:most]))


def test_each_probe_has_its_proponents_and_opponents(run: TracInRun) -> None:
    found, scores = explorer_of(run, VIEW, Bounds(strongest=4)), influence(run)
    assert list(found.probes) == list(range(20))
    for probe, (proponents, opponents) in found.probes.items():
        assert proponents == by_hand(scores.sel(probe=probe), 1, 4)
        assert opponents == by_hand(scores.sel(probe=probe), -1, 4)
    assert list(found.probes[3][0].samples) == run.top(3, 4, similarity="dot", weighting="learning_rate")["train"].tolist()


def test_bars_are_the_sums_of_each_language(run: TracInRun) -> None:
    expected = influence(run).groupby("train_language").sum("train").transpose("train_language", "probe")
    np.testing.assert_allclose(explorer_of(run, VIEW).sums, expected)


def test_each_train_sample_has_the_probes_that_it_helps_and_harms(run: TracInRun) -> None:
    found, scores = explorer_of(run, VIEW, Bounds(helped=3)), influence(run)
    assert list(found.train) == list(range(36))  # with lists of ten, every sample is in one
    for train, (helped, harmed) in found.train.items():
        assert helped == by_hand(scores.sel(train=train), 1, 3)
        assert harmed == by_hand(scores.sel(train=train), -1, 3)


def test_links_are_carried_by_the_strongest_on_average(run: TracInRun) -> None:
    found, scores = explorer_of(run, VIEW, Bounds(carriers=2)), influence(run)
    means = scores.groupby("probe_language").mean("probe")
    assert len(found.links) == 4 * 3
    for (probe, train), link in found.links.items():
        mine = means.sel(probe_language=probe)[scores.train_language.values == train]
        mine = xr.DataArray(mine.values, dims="train", coords={"train": mine.train.values})
        for carriers, sign in ((link.helping, 1), (link.harming, -1)):
            expected = by_hand(mine, sign, 2)
            assert carriers.samples == expected.samples
            assert carriers.scores == pytest.approx(expected.scores)
        assert link.mass == pytest.approx(float(np.abs(mine).sum()))


def test_only_samples_in_a_list_are_shown(run: TracInRun) -> None:
    found = explorer_of(run, VIEW, Bounds(probes=4, strongest=1, carriers=1))
    in_lists = {sample for lists in found.probes.values() for one in lists for sample in one.samples}
    in_lists |= {sample for one in found.links.values() for strong in (one.helping, one.harming) for sample in strong.samples}
    assert set(found.train) == in_lists
    assert len(in_lists) < 36


def test_each_language_has_the_same_number_of_probes_and_the_rest_is_said(run: TracInRun) -> None:
    found = explorer_of(run, VIEW, Bounds(probes=9, strongest=3))
    assert Counter(run.probes.language[index] for index in found.probes) == dict.fromkeys("abcd", 2)
    assert list(found.probes) == list(range(8))
    for _, harmed in found.train.values():
        assert set(harmed.samples) <= set(range(8))
    assert found.shown.startswith(
        "The first 2 probes of each language (8 of 20), each with at most 3 proponents and opponents among all 36 train samples; "
    )
    assert explorer_of(run, VIEW).shown.startswith("All 20 probes, each with at most 10 proponents")
    assert found.shown.endswith("Texts are cut after 240 characters.")


def test_smaller_bounds_give_what_they_would_have_found(run: TracInRun) -> None:
    bounds = Bounds(strongest=2, helped=1, carriers=1, characters=60)
    less, directly = explorer_of(run, VIEW).within(bounds), explorer_of(run, VIEW, bounds)
    assert (less.probes, less.train, less.links) == (directly.probes, directly.train, directly.links)
    assert less.shown == directly.shown


def test_bounds_shrink_to_an_end() -> None:
    bounds, seen = Bounds(), []
    while bounds.smaller() != bounds:
        bounds = bounds.smaller()
        seen.append(bounds)
    assert bounds == Bounds(strongest=1, helped=1, carriers=1, characters=60)
    assert seen[:3] == [Bounds(characters=160), Bounds(characters=120), Bounds(characters=120, helped=3)]


def test_a_large_run_is_read_shard_by_shard_and_gives_the_same(
    run: TracInRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = explorer_of(run, VIEW)
    monkeypatch.setattr("lightning_tracin.analysis.scorer.MATRIX_BYTES", 0)
    by_shard = TracInRun(run_directory(tmp_path / "run", run.train, run.probes))
    assert by_shard.is_large
    assert [len(train) for train, _ in by_shard.influence_by_block(SCORING)] == [18, 18]
    found = explorer_of(by_shard, VIEW)
    for one, other in ((found.probes, whole.probes), (found.train, whole.train)):
        assert list(one) == list(other)
        for lists, others in zip(one.values(), other.values(), strict=True):
            assert [strong.samples for strong in lists] == [strong.samples for strong in others]
    for pair, link in found.links.items():
        assert link.helping.samples == whole.links[pair].helping.samples
        assert link.mass == pytest.approx(whole.links[pair].mass)
    np.testing.assert_allclose(found.sums, whole.sums)


def test_language_means_are_explored_by_language(tmp_path: Path) -> None:
    callback = TracInCallback(tmp_path / "run", top_k=5, language_means=True, report=False)
    trainer(tmp_path, [callback], max_epochs=1).fit(Classifier(), *loaders())
    run = TracInRun.open(tmp_path / "run")
    found: Explorer = explorer_of(run, VIEW, Bounds(strongest=3, carriers=12))
    scores = influence(run)
    assert [found.queries.text[index] for index in found.probes] == ["mean of 4 probes"] * 3
    for query, language in enumerate(("de", "en", "ru")):
        assert found.probes[query][0] == by_hand(scores.sel(probe=query), 1, 3)
        helping = [found.links[language, train].helping for train in ("de", "en", "ru")]
        joined = sorted(
            ((s, one) for strong in helping for one, s in zip(strong.samples, strong.scores, strict=True)), reverse=True
        )
        assert [one for _, one in joined[:3]] == list(found.probes[query][0].samples)
