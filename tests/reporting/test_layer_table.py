"""The table of layers, against the matrices that each layer's own gradients give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lightning_tracin import TracInCallback, TracInRun
from lightning_tracin.config import View
from lightning_tracin.reporting.layer_table import by_layer, layer_table
from tests.support.fits import LANGUAGES, Classifier, loaders, trainer


def fitted(folder: Path, **options: Any) -> TracInRun:
    trainer(folder, [TracInCallback(folder / "run", top_k=5, report=False, **options)]).fit(Classifier(), *loaders())
    return TracInRun.open(folder / "run")


def test_layers_add_up_to_the_whole(tmp_path: Path) -> None:
    """With plain inner products, the influence of all parameters is the sum over layers."""
    run = fitted(tmp_path, similarity="dot", weighting="uniform", preconditioner=None)
    table = layer_table(run, View(similarity="dot", weighting="uniform"))
    assert table is not None
    assert list(table.columns) == ["layer", "own_language", "other_languages"]
    assert table["layer"].tolist() == run.reliance(by="layer")["layer"].unique().tolist()
    matrix = run.influence("dot", "uniform").groupby("train_language").sum("train").groupby("probe_language").mean("probe")
    cells = matrix.sel(train_language=list(LANGUAGES), probe_language=list(LANGUAGES)).to_numpy()
    own = np.trace(cells) / len(LANGUAGES)
    assert table["own_language"].sum() == pytest.approx(own, rel=1e-5)
    assert table["other_languages"].sum() == pytest.approx(cells.sum() / len(LANGUAGES) - own, rel=1e-5)


def test_own_and_other_languages_of_a_small_table() -> None:
    rows = [
        ("embeddings", "de", "de", 1.0),
        ("embeddings", "de", "en", -3.0),
        ("embeddings", "sw", "de", 5.0),  # no train samples of its own
        ("embeddings", "sw", "en", 7.0),
        ("head", "de", "de", 2.0),
        ("head", "de", "en", 0.0),
        ("head", "sw", "de", 1.0),
        ("head", "sw", "en", 1.0),
    ]
    table = by_layer(pd.DataFrame(rows, columns=["layer", "probe_language", "train_language", "value"]))
    assert table.to_dict("list") == {
        "layer": ["embeddings", "head"],
        "own_language": [1.0, 2.0],
        "other_languages": [(-3 + 12) / 2, (0 + 2) / 2],
    }


@pytest.mark.parametrize("options", [{"per_layer": False}, {"language_means": True, "similarity": "cosine"}])
def test_a_run_without_scores_by_layer_has_no_table(tmp_path: Path, options: dict[str, Any]) -> None:
    run = fitted(tmp_path, **options)
    assert layer_table(run, run.record.options.view(run.method.measure)) is None
