"""A method is one module: a made-up one is chosen by its name, and nothing else in the package knows of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lightning_tracin import TracInCallback, TracInError, TracInRun
from lightning_tracin.attribution.batching import Job, Target
from lightning_tracin.attribution.exact import Exact
from lightning_tracin.attribution.method import method, method_of
from lightning_tracin.attribution.processes import Processes
from lightning_tracin.config import Options, Similarity
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.sample_table import SampleTable
from lightning_tracin.storage.shards import Ingredients
from lightning_tracin.storage.snapshots import Snapshot
from tests.support.fits import Classifier, loaders, trainer


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
    callback = TracInCallback(folder / "run", top_k=5, **options)
    trainer(folder, [callback], max_epochs=2).fit(Classifier(), *loaders())
    return TracInRun.open(folder / "run")


def test_a_method_of_one_module_goes_through_fit_and_tables(tmp_path: Path) -> None:
    exact, mirrored = fitted(tmp_path / "exact"), fitted(tmp_path / "mirrored", method="mirrored")
    assert mirrored.record.options.method_name == "mirrored"
    assert (mirrored.path / "mirrored.txt").read_text().split() == [snapshot.name for snapshot in mirrored.snapshots]
    np.testing.assert_array_equal(mirrored.influence(), -exact.influence())
    ours, theirs = mirrored.reliance(5, "negative"), exact.reliance(5, "positive")
    np.testing.assert_array_equal(ours["share"], theirs["share"])
    assert (mirrored.path / "results" / "reliance.csv").exists()


def test_unknown_methods_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(TracInError, match=r"no method 'nearest'; the methods are exact, means, mirrored, .*projected\."):
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
