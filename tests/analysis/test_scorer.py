"""Products are read (and whitened) once, as long as they fit into what is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl

from lightning_tracin import TracInCallback, TracInRun
from lightning_tracin.storage.ingredients import IngredientStore
from tests.support.fits import Classifier, loaders, trainer


def test_tables_of_every_snapshot_read_its_products_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pl.seed_everything(7)
    trainer(tmp_path, [TracInCallback(tmp_path / "run", top_k=5)]).fit(Classifier(), *loaders())
    reads: list[Path] = []
    read = IngredientStore.read
    monkeypatch.setattr(IngredientStore, "read", lambda self, into: reads.append(self._folder) or read(self, into))
    run = TracInRun.open(tmp_path / "run")
    first = run.influence("dot").to_numpy()
    run.reliance(k=5, cumulative=True)
    np.testing.assert_array_equal(run.influence("dot").to_numpy(), first)
    assert len(reads) == len(set(reads)) == len(run.snapshots) > 1
