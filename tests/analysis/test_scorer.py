"""Products are read (and whitened) once, as long as they fit into what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl

from lightning_tracin import TracInCallback, TracInError, TracInRun
from lightning_tracin.storage.ingredients import IngredientStore
from lightning_tracin.storage.shards import Ingredients
from lightning_tracin.storage.snapshots import Snapshot
from tests.support.fits import Classifier, loaders, trainer


def test_tables_of_every_snapshot_read_its_products_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pl.seed_everything(7)
    trainer(tmp_path, [TracInCallback(tmp_path / "run", top_k=5)]).fit(Classifier(), *loaders())
    reads: list[bytes] = []
    read = IngredientStore.read

    def noted(store: IngredientStore, into: Sequence[int] | None) -> Ingredients:
        found = read(store, into)
        reads.append(found.dot.tobytes())
        return found

    monkeypatch.setattr(IngredientStore, "read", noted)
    run = TracInRun.open(tmp_path / "run")
    first = run.influence("dot").to_numpy()
    run.reliance(k=5, cumulative=True)
    np.testing.assert_array_equal(run.influence("dot").to_numpy(), first)
    assert len(reads) == len(set(reads)) == len(run.snapshots) > 1


def fitted(folder: Path, module: pl.LightningModule | None = None, **settings: Any) -> TracInRun:
    pl.seed_everything(7)
    callback = TracInCallback(folder / "run", top_k=5, projection_dim=64, **settings)
    trainer(folder, [callback], max_epochs=2).fit(Classifier() if module is None else module, *loaders())
    return TracInRun.open(folder / "run")


def features(run: TracInRun, snapshot: Snapshot) -> tuple[np.ndarray, np.ndarray]:
    store = run.method.store(run.directory, snapshot)
    sides = []
    for side in ("train", "probes"):
        found = np.zeros((store.count(side), store.sketch().dim))
        for index, values in store.blocks(side):
            found[index.numpy()] = values.numpy()
        sides.append(found)
    return sides[0], sides[1]


def test_scores_with_the_ridge_of_the_fits_steps_are_those_of_the_formula(tmp_path: Path) -> None:
    run = fitted(tmp_path, preconditioner="adam-fisher")
    want = 0.0
    for snapshot in run.snapshots:
        train, probes = features(run, snapshot)
        time, layout = np.zeros(train.shape[1]), run.method.store(run.directory, snapshot).sketch().layout
        for name, where in layout.items():
            time[where] = snapshot.learning_rates[snapshot.record.groups[name]] * snapshot.steps
        metric = np.linalg.inv(train.T @ train / len(train) + np.diag(1 / time))
        want = want + train @ metric @ probes.T * snapshot.visits / snapshot.steps
    how: Any = {"similarity": "dot", "weighting": "learning_rate", "damping": "steps"}
    np.testing.assert_allclose(run.influence(**how).to_numpy(), want, rtol=2e-3, atol=2e-3 * np.abs(want).max())
    table = run.reliance(measure="sum", cumulative=True, snapshots=[1], **how)
    assert table["unit"].unique().tolist() == ["nats (first order)"]


def test_the_ridge_of_the_fits_steps_needs_their_rates_and_metric(tmp_path: Path) -> None:
    scaled = fitted(tmp_path / "scaled", preconditioner="adam-fisher")
    for how in ({"weighting": "uniform"}, {"weighting": "learning_rate", "preconditioner": "adam"}):
        with pytest.raises(TracInError, match="take it with weighting='learning_rate' and preconditioner='adam-fisher'"):
            scaled.influence("dot", damping="steps", **how)
    plain = fitted(tmp_path / "plain", preconditioner="fisher")
    with pytest.raises(TracInError, match="not those of plain SGD here"):
        plain.influence("dot", "learning_rate", damping="steps")
    with pytest.raises(TracInError, match="damping"):
        scaled.influence("dot", "learning_rate", damping="step")  # type: ignore[arg-type]
