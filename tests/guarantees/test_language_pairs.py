"""A language that is a pair: the source and the target of a translation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger

from lightning_tracin import TracInCallback, TracInError, TracInRun
from tests.support.fits import Classifier, loaders, trainer


def pairs() -> tuple[Any, Any]:
    """Loaders whose datasets have a column for the source and one for the target."""
    both = loaders()
    for loader in both:
        dataset: Any = loader.dataset
        count = len(dataset)
        dataset.source = [("en", "sw")[index % 2] for index in range(count)]
        dataset.target = [("de", "ru", "de")[index % 3] for index in range(count)]
        del dataset.language
    return both


def test_pairs_are_languages(tmp_path: Path) -> None:
    pl.seed_everything(3)
    train, probes = pairs()
    callback = TracInCallback(tmp_path / "run", top_k=5, language_column=["source", "target"])
    trainer(tmp_path, [callback], max_epochs=1, logger=CSVLogger(tmp_path)).fit(Classifier(), train, probes)
    run = TracInRun.open(tmp_path / "run")
    wanted = [f"{one}>{other}" for one, other in zip(train.dataset.source, train.dataset.target, strict=True)]
    assert list(run.train.language) == wanted
    assert run.record.options.language_column == ("source", "target")

    shares = run.reliance(5, measure="share", similarity="cosine", weighting="uniform")
    one = shares.query("probe_language == 'en>ru'").set_index("train_language")
    scores, members = run.influence().to_numpy(), np.array(run.probes.language) == "en>ru"
    top = np.argsort(-scores[:, members], axis=0, kind="stable")[:5]
    for language in set(wanted):
        assert one.loc[language, "value"] == pytest.approx(np.mean(np.array(wanted)[top] == language))


def test_a_pair_with_a_missing_half_has_no_language(tmp_path: Path) -> None:
    train, probes = pairs()
    train.dataset.target[4] = None
    callback = TracInCallback(tmp_path / "run", language_column=["source", "target"])
    with pytest.raises(TracInError, match="Sample 4 of the train samples has no language"):
        trainer(tmp_path, [callback], max_epochs=1).fit(Classifier(), train, probes)


def test_a_missing_column_of_a_pair_is_named(tmp_path: Path) -> None:
    callback = TracInCallback(tmp_path / "run", language_column=["source", "tongue"])
    with pytest.raises(TracInError, match="no column or attribute 'tongue'"):
        trainer(tmp_path, [callback], max_epochs=1).fit(Classifier(), *pairs())
