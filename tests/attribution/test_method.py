"""A method is one module: a made-up one is chosen by its name, and nothing else in the package knows of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_tracin import TracInCallback, TracInError, TracInRun
from lightning_tracin.attribution.batching import Job, Target
from lightning_tracin.attribution.exact import Exact, attribute_snapshot
from lightning_tracin.attribution.method import method, method_of
from lightning_tracin.attribution.processes import Processes
from lightning_tracin.attribution.spot_check import check_products
from lightning_tracin.config import Options, Similarity
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.ingredients import IngredientStore
from lightning_tracin.storage.records import SpotCheck
from lightning_tracin.storage.sample_table import SampleTable
from lightning_tracin.storage.shards import Ingredients, Shards
from lightning_tracin.storage.snapshots import Snapshot
from tests.support.fits import Classifier, loaders, trainer

pytestmark = pytest.mark.results


class DoubledStore:
    """A kind of store that the package does not know: the norms of a snapshot, with twice its products."""

    def __init__(self, within: IngredientStore) -> None:
        self.within, self.folder = within, within.folder

    def is_complete(self) -> bool:
        return self.within.is_complete()

    def read(self, into: Sequence[int] | None = None) -> Ingredients:
        held = self.within.read(into)
        return Ingredients(2 * held.dot, held.train_norm, held.probe_norm)

    def shards(self, into: Sequence[int] | None = None) -> Shards:
        raise AssertionError("small enough to be read whole")


@method("doubled")
class Doubled(Exact):
    """Exact products that are read from another kind of store."""

    def store(self, directory: RunDirectory, snapshot: Snapshot) -> Any:
        return DoubledStore(super().store(directory, snapshot))

    def compute(self, target: Target, job: Job, directory: RunDirectory, snapshot: Snapshot, processes: Processes) -> None:
        attribute_snapshot(target, job, super().store(directory, snapshot))

    def check(self, target: Target, job: Job, directory: RunDirectory, snapshot: Snapshot) -> SpotCheck:
        return check_products(target, job, super().store(directory, snapshot))


@method("mirrored")
class Mirrored(Exact):
    """Exact products with the sign turned: every proponent becomes an opponent."""

    computed: list[str]  # names of the snapshots that it has computed

    def compute(self, target: Target, job: Job, directory: RunDirectory, snapshot: Snapshot, processes: Processes) -> None:
        super().compute(target, job, directory, snapshot, processes)
        (directory.path / "mirrored.txt").open("a").write(f"{snapshot.name}\n")

    def queries(self, probes: SampleTable) -> SampleTable:
        return probes

    def readable(self, ingredients: Ingredients, similarity: Similarity) -> tuple[Ingredients, Similarity]:
        return Ingredients(-ingredients.dot, ingredients.train_norm, ingredients.probe_norm), similarity


def fitted(folder: Path, **options: object) -> TracInRun:
    callback = TracInCallback(folder / "run", top_k=5, preconditioner=None, **options)
    trainer(folder, [callback], max_epochs=2).fit(Classifier(), *loaders())
    return TracInRun.open(folder / "run")


def test_a_method_of_one_module_goes_through_fit_and_tables(tmp_path: Path) -> None:
    exact, mirrored = fitted(tmp_path / "exact"), fitted(tmp_path / "mirrored", method="mirrored")
    assert mirrored.record.options.method_name == "mirrored"
    assert (mirrored.path / "mirrored.txt").read_text().split() == [snapshot.name for snapshot in mirrored.snapshots]
    np.testing.assert_array_equal(mirrored.influence(), -exact.influence())
    ours, theirs = mirrored.reliance(5, "negative", measure="share"), exact.reliance(5, "positive", measure="share")
    np.testing.assert_array_equal(ours["value"], theirs["value"])
    assert (mirrored.path / "results" / "reliance.csv").exists()


def test_a_method_brings_a_kind_of_store_of_its_own(tmp_path: Path) -> None:
    exact, doubled = fitted(tmp_path / "exact"), fitted(tmp_path / "doubled", method="doubled")
    np.testing.assert_array_equal(doubled.influence(), 2 * exact.influence())
    for measure, times in (("share", 1), ("sum", 2)):
        ours, theirs = doubled.reliance(5, measure=measure), exact.reliance(5, measure=measure)
        np.testing.assert_array_equal(ours["value"], times * theirs["value"])


def test_unknown_methods_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        TracInError, match=r"no method 'nearest'; the methods are doubled, ekfac, exact, hopeful, means, mirrored, .*projected\."
    ):
        fitted(tmp_path, method="nearest")


@method("plain")
class Plain(Exact):
    """A method that multiplies no gradient with scales."""

    takes_scales = False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preconditioner": "adam"}, "'plain' does not support preconditioner='adam'"),
        ({"mask": Path("mask.safetensors")}, "'plain' does not support a mask"),
    ],
)
def test_what_a_method_does_not_support_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(TracInError, match=message):
        method_of(Options(method="plain", **options))


@method("hopeful")
class Hopeful(Exact):
    """A method that says it can whiten, but stores finished products."""

    whitens = True


@pytest.mark.parametrize("bytes_kept", [None, 0], ids=["whole", "shard by shard"])
def test_finished_products_are_not_taken_for_whitened_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_kept: int | None
) -> None:
    run = fitted(tmp_path, method="hopeful")
    if bytes_kept is not None:
        monkeypatch.setattr("lightning_tracin.analysis.scorer.MATRIX_BYTES", bytes_kept)
    with pytest.raises(TracInError, match=r"holds finished products; take preconditioner='none', or run the fit with a `proj"):
        run.influence(preconditioner="fisher")
