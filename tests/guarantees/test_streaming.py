"""What is made shard by shard equals what is made of the whole matrix, ties included, and never holds that matrix."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch

from lightning_tracin import TracInCallback, TracInRun
from lightning_tracin.analysis.scores import ranked
from lightning_tracin.analysis.tally import Tally
from lightning_tracin.analysis.top_k import Strongest
from lightning_tracin.storage.ingredients import Block, IngredientStore
from lightning_tracin.storage.prefetch import Ahead
from lightning_tracin.storage.shards import Ingredients, OneShard, side_by_side
from tests.support.drawn_features import write_features
from tests.support.fits import Classifier, loaders, trainer


def blocks(generator: np.random.Generator, count: int, most: int) -> list[np.ndarray]:
    """Train samples in any order, cut anywhere."""
    order, cuts = generator.permutation(count), generator.integers(1, most + 1, count).cumsum()
    return [block for block in np.split(order, cuts[cuts < count]) if len(block)]


@pytest.mark.parametrize("sign", ["positive", "negative"])
@pytest.mark.parametrize("values", [2, 5, 10_000])
@pytest.mark.parametrize("most", [1, 7, 60, 400])
def test_strongest_of_blocks_are_those_of_the_whole_ranking(sign: Any, values: int, most: int) -> None:
    generator = np.random.default_rng(values + most)
    for k in (1, 13, 60, 300):
        scores = generator.integers(-values, values + 1, (300, 4)).astype(float)
        strongest = Strongest(k, sign)
        for block in blocks(generator, 300, most):
            strongest.add(block, scores[block])
        order = ranked(scores, sign)[:k]
        found, their = strongest.found()
        np.testing.assert_array_equal(found, order)
        np.testing.assert_array_equal(their, np.take_along_axis(scores, order, 0))


def test_strongest_holds_no_more_than_twice_k_of_a_probe_and_a_block() -> None:
    """Also where every score is stronger than all before."""
    k, block, probes = 1000, 5000, 3
    strongest = Strongest(k, "positive")
    tracemalloc.start()
    try:
        for at in range(0, 100 * block, block):
            strongest.add(np.arange(at, at + block), np.arange(at, at + block)[:, None] * np.ones(probes))
            held, waiting = 16 * k * probes, 24 * (k + block) * probes  # bytes of a score, its train sample, and its probe
            assert tracemalloc.get_traced_memory()[0] <= held + waiting + 20_000
    finally:
        tracemalloc.stop()
    assert strongest.found()[0][0].tolist() == [100 * block - 1] * probes


@pytest.mark.parametrize(
    ("measure", "sign"),
    [("share", "negative"), ("mass", "positive"), ("mass", "negative"), ("mean", "positive"), ("sum", "positive")],
)
def test_tally_of_blocks_is_that_of_the_matrix(measure: Any, sign: Any) -> None:
    generator = np.random.default_rng(0)
    languages, scores = generator.choice(["de", "en", "ru"], 200), generator.normal(size=(200, 5)).round(1)
    scores[:, 4] = 0
    tally = Tally(languages.tolist(), 20, sign, measure)
    for block in blocks(generator, 200, 30):
        tally.add(block, scores[block])
    member = (languages[:, None] == np.asarray(tally.languages)).astype(float)
    strength = scores if sign == "positive" else -scores
    part = np.clip(strength, 0, None)
    want = {
        "share": member[ranked(scores, sign)[:20]].mean(0),
        "mass": part.T @ member / np.where(part.sum(0) > 0, part.sum(0), np.nan)[:, None],
        "mean": scores.T @ member / member.sum(0),
        "sum": scores.T @ member,
    }[measure]
    if measure == "share":
        want[4] = np.nan
    np.testing.assert_allclose(tally.values(), want, rtol=1e-12, atol=1e-12)
    chance = np.repeat(member.mean(0)[None], 5, 0)
    if measure in ("sum", "mean"):
        chance = scores.mean(0)[:, None] * (member.sum(0) if measure == "sum" else np.ones(3))
    chance[np.isnan(want)] = np.nan  # without any influence there is nothing to expect
    np.testing.assert_allclose(tally.chance(), chance, rtol=1e-12, atol=1e-12)


class Cut:
    """Ingredients cut into shards of train samples in any order."""

    nbytes = 0

    def __init__(self, whole: Ingredients, train: list[np.ndarray]) -> None:
        self.whole, self.train = whole, train

    def read(self, shard: int) -> Ingredients:
        rows = self.train[shard]
        return Ingredients(self.whole.dot[:, rows], self.whole.train_norm[:, rows], self.whole.probe_norm)


def test_snapshots_stand_side_by_side_however_they_are_cut() -> None:
    generator = np.random.default_rng(0)
    shapes = (2, 90, 4), (2, 90), (2, 4)
    wholes = [Ingredients(*(generator.normal(size=shape).astype(np.float32) for shape in shapes)) for _ in range(4)]
    first = blocks(generator, 90, 20)
    sources = [Cut(wholes[0], first), Cut(wholes[1], first), Cut(wholes[2], blocks(generator, 90, 9)), OneShard(wholes[3])]
    seen = []
    for train, found in side_by_side(sources):
        seen += train.tolist()
        for whole, one in zip(wholes, found, strict=True):
            np.testing.assert_array_equal(one.dot, whole.dot[:, train])
            np.testing.assert_array_equal(one.train_norm, whole.train_norm[:, train])
            np.testing.assert_array_equal(one.probe_norm, whole.probe_norm)
    assert sorted(seen) == list(range(90))


def test_reading_ahead_gives_each_item_and_raises_an_error_at_its_own() -> None:
    def read(item: int) -> int:
        if item == 3:
            raise ValueError("third")
        return 10 * item

    ahead = Ahead(read, range(6))
    assert [ahead[i] for i in (0, 1, 2, 5, 1, 4)] == [0, 10, 20, 50, 10, 40]
    with pytest.raises(ValueError, match="third"):
        ahead[3]
    assert ahead[5] == 50


def said(run: TracInRun, by_layer: bool) -> dict[str, Any]:
    """Everything that is read of a run in blocks."""
    found: dict[str, Any] = {}
    for similarity in ("dot", "cosine"):
        found[f"influence {similarity}"] = run.influence(similarity, "learning_rate").to_numpy()  # type: ignore[arg-type]
        for sign in ("positive", "negative"):
            found[f"top {similarity} {sign}"] = run.top(1, 7, sign, similarity, "learning_rate")  # type: ignore[arg-type]
    kinds = [("mean", "positive"), ("sum", "positive")]
    if run.record.options.method_name != "means":
        kinds += [("share", "positive"), ("share", "negative"), ("mass", "negative")]
    for measure, sign in kinds:
        for cumulative in (False, True):
            for by in (None, "layer") if by_layer else (None,):
                table = run.reliance(5, sign, cumulative, measure, "dot", by=by)  # type: ignore[arg-type]
                found[f"{measure} {sign} {cumulative} {by}"] = table
    return found


def assert_streams_alike(path: Path, monkeypatch: pytest.MonkeyPatch, by_layer: bool = True) -> None:
    held = TracInRun.open(path)
    assert not held.is_large
    whole = said(held, by_layer)
    monkeypatch.setattr("lightning_tracin.analysis.scorer.MATRIX_BYTES", 0)
    monkeypatch.setattr("lightning_tracin.analysis.scorer.ingredients_of", None)
    monkeypatch.setattr(IngredientStore, "read", None)
    streamed = TracInRun.open(path)
    assert streamed.is_large
    for name, found in said(streamed, by_layer).items():
        if isinstance(found, np.ndarray):
            np.testing.assert_array_equal(found, whole[name], err_msg=name)
        elif name.startswith(("top", "share")):
            pd.testing.assert_frame_equal(found, whole[name], check_exact=True, obj=name)
        else:  # sums are taken in the order of the shards
            pd.testing.assert_frame_equal(found, whole[name], check_exact=False, rtol=1e-12, atol=1e-12, obj=name)


@pytest.mark.long
@pytest.mark.parametrize(
    "settings",
    [{}, {"memory_budget": 100_000}, {"language_means": True}, {"projection_dim": 200}],
    ids=["exact", "exact in chunks", "means", "projected"],
)
def test_runs_of_every_method_say_the_same_shard_by_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    monkeypatch.setattr("lightning_tracin.attribution.batching.SHARD_SAMPLES", 8)
    pl.seed_everything(7)
    callback = TracInCallback(tmp_path / "run", top_k=5, batch_size=4, **settings)
    trainer(tmp_path, [callback], max_epochs=2).fit(Classifier(), *loaders())
    assert_streams_alike(tmp_path / "run", monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("preconditioner", ["none", "fisher"])
@pytest.mark.parametrize("shards", [(64, 64), (64, 50, 300)], ids=["cut alike", "cut differently"])
def test_features_with_equal_scores_say_the_same_shard_by_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: tuple[int, ...], preconditioner: Any
) -> None:
    write_features(tmp_path / "run", 300, 12, 24, shards=shards, layers=2, groups=2, repeats=5)
    scores = TracInRun.open(tmp_path / "run").scores(0)
    assert len(np.unique(scores[:, 0])) < 100  # most are equal to others
    reliance, influence = TracInRun.reliance, TracInRun.influence
    if preconditioner == "fisher":
        blocks = {"preconditioner": "fisher", "blocks": "layer"}
        monkeypatch.setattr(TracInRun, "reliance", lambda *args, **named: reliance(*args, **named, **blocks))
        monkeypatch.setattr(TracInRun, "influence", lambda *args, **named: influence(*args, **named, **blocks))
    assert_streams_alike(tmp_path / "run", monkeypatch)


def peak(work: Any) -> int:
    """The most that NumPy and Python held at once while it ran, beyond what they held before."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.long
def test_streaming_never_holds_the_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, probes = 10_000, 100
    matrix = 4 * train * probes  # in single precision
    write_features(tmp_path / "run", train, probes, 8, shards=(256, 256))
    for name, work in {
        "top": lambda run: run.top(0, 20),
        "share": lambda run: run.reliance(20, cumulative=True, measure="share"),
        "sum": lambda run: run.reliance(cumulative=True),
        "mass": lambda run: run.reliance(20, "negative", measure="mass"),
    }.items():
        held = TracInRun.open(tmp_path / "run")
        assert peak(lambda: work(held)) > 2 * matrix, name
    monkeypatch.setattr("lightning_tracin.analysis.scorer.MATRIX_BYTES", 0)
    monkeypatch.setattr("lightning_tracin.analysis.scorer.ingredients_of", None)
    streamed = TracInRun.open(tmp_path / "run")
    for work in (
        lambda: streamed.top(0, 20),
        lambda: streamed.reliance(20, cumulative=True, measure="share"),
        lambda: streamed.reliance(cumulative=True),
        lambda: streamed.reliance(20, "negative", measure="mass"),
    ):
        assert peak(work) < matrix


def test_torch_has_no_matrix_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_features(tmp_path / "run", 1000, 10, 8, shards=(64,))
    monkeypatch.setattr("lightning_tracin.analysis.scorer.MATRIX_BYTES", 0)
    sizes = []
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda one, other: sizes.append(len(one)) or product(one, other))
    TracInRun.open(tmp_path / "run").top(0, 5)
    assert sizes == [64] * 15 + [40]


def test_the_folder_of_features_is_listed_as_often_for_many_files_as_for_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listing it for every file takes longer than the products where there are thousands."""
    monkeypatch.setattr("lightning_tracin.analysis.scorer.MATRIX_BYTES", 0)
    listed: list[int] = []
    scan = os.scandir
    for size in (500, 20):
        write_features(tmp_path / f"{size}", 1000, 10, 8, shards=(size,))
        run, calls = TracInRun.open(tmp_path / f"{size}"), []
        monkeypatch.setattr(os, "scandir", lambda path, calls=calls: calls.append(path) or scan(path))  # type: ignore[misc]
        run.top(0, 5)
        monkeypatch.setattr(os, "scandir", scan)
        listed.append(len(calls))
    assert listed[0] == listed[1] > 0


def test_completeness_is_found_without_the_matrix(tmp_path: Path) -> None:
    """Of products that are cut by train samples and probes; a damaged file counts as missing."""
    store = IngredientStore(tmp_path, 4000, 400)
    for row in range(0, 4000, 100):
        for column in range(0, 400, 200):
            rows, columns = range(row, row + 100), range(column, column + 200)
            block = Block(list(rows), list(columns), torch.ones(1, 100, 200), torch.ones(1, 100), torch.ones(1, 200))
            store.write(f"{row:04d}-{column:04d}", block)
    tracemalloc.start()
    assert store.is_complete()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 4000 * 400 / 4
    path = tmp_path / "0100-0200.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert not store.is_complete()
    path.unlink()
    assert not store.is_complete()
