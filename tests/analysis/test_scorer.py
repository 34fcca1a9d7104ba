"""Products are read (and whitened) once, as long as they fit into what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl

from lightning_tracin import TracInCallback, TracInRun
from lightning_tracin.storage.ingredients import IngredientStore
from lightning_tracin.storage.shards import Ingredients
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
