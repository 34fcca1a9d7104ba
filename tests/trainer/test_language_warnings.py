"""Runs whose train samples and probes name languages differently: the same numbers if the names mean the same, else a warning."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_tracin import TracInCallback, TracInRun, attribute, import_checkpoints
from lightning_tracin.analysis.reliance import cross_lingual, mean_cross_lingual
from tests.support.fits import Classifier, loaders, trainer

TRAIN = ["de", "en", "sw"] * 10


def fitted(folder: Path, languages: list[str], probes: list[str], **settings: Any) -> TracInRun:
    pl.seed_everything(3)
    callback = TracInCallback(folder / "run", top_k=5, languages=languages, languages_of_probes=probes, **settings)
    saver = ModelCheckpoint(folder / "checkpoints", save_top_k=-1)
    trainer(folder, [callback, saver], enable_checkpointing=True, max_epochs=1).fit(Classifier(), *loaders())
    return TracInRun.open(folder / "run")


def test_shares_do_not_depend_on_how_a_language_is_written(tmp_path: Path) -> None:
    same = fitted(tmp_path / "same", TRAIN, ["de", "en", "fr"] * 4).reliance(k=5)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*zero-shot|.*same")
        other = fitted(tmp_path / "other", TRAIN, ["deu", "english", "fr"] * 4).reliance(k=5)
    renamed = {"deu": "de", "english": "en", "fr": "fr"}
    assert set(other["probe_language"]) == set(renamed)  # shown as they were written
    found = cross_lingual(other).rename(index=renamed).sort_index()
    assert found.to_dict() == cross_lingual(same).to_dict()
    assert 0 < found["de"] < 1
    assert found["fr"] == 1
    assert mean_cross_lingual(other) == mean_cross_lingual(same)


def test_every_way_to_make_a_run_warns(tmp_path: Path) -> None:
    odd = "No probe language .* every one is zero-shot"
    probes = ["lang1", "lang2", "lang3"] * 4
    with pytest.warns(UserWarning, match=odd):
        fitted(tmp_path, TRAIN, probes, when="never", projection_dim=64)
    given: dict[str, Any] = {"languages": TRAIN, "languages_of_probes": probes}
    with pytest.warns(UserWarning, match=odd):
        import_checkpoints(tmp_path / "old", tmp_path / "checkpoints", Classifier(), *loaders(), top_k=5, **given)
    with pytest.warns(UserWarning, match=odd):
        run = attribute(Classifier(), tmp_path / "run", *loaders(), progress=False, **given)
    with pytest.warns(UserWarning, match=odd):
        run.add_probes(Classifier(), loaders()[1], languages=["lang4"] * 12)
