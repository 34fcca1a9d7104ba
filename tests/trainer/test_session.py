"""A fit opens its run once, and derives each snapshot's scores once for the live point, the tables and the top."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.loggers import CSVLogger

from lightning_tracin import TracInCallback, TracInRun
from lightning_tracin.storage import directory as directories
from tests.support.fits import Classifier, loaders, trainer


def counted(patch: pytest.MonkeyPatch, owner: object, name: str, counts: Counter[str], key: Callable[..., str]) -> None:
    function = getattr(owner, name)

    def noted(*arguments: Any, **named: Any) -> Any:
        counts[key(*arguments)] += 1
        return function(*arguments, **named)

    patch.setattr(owner, name, noted)


@pytest.mark.parametrize("when", ["fit_end", "snapshot"])
@pytest.mark.parametrize("options", [{}, {"language_means": True}, {"projection_dim": 64}], ids=["exact", "means", "projected"])
def test_scores_are_derived_once_and_the_run_is_opened_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, options: dict[str, Any]
) -> None:
    counts: Counter[str] = Counter()
    counted(monkeypatch, TracInRun, "__init__", counts, lambda *_: "opened")
    counted(monkeypatch, directories, "read_record", counts, lambda *_: "record parsed")
    monkeypatch.setattr("lightning_tracin.analysis.scorer.snapshot_scores", _noted_scores(counts))
    callback = TracInCallback(tmp_path / "run", top_k=5, when=when, **options)
    trainer(tmp_path, [callback], max_epochs=3, logger=CSVLogger(tmp_path)).fit(Classifier(steps=18), *loaders())
    assert counts == {"opened": 1, "derived": 3}  # of three snapshots; what rank 0 writes it need not parse


def _noted_scores(counts: Counter[str]) -> Callable[..., Any]:
    from lightning_tracin.analysis.scores import snapshot_scores

    def noted(*arguments: Any) -> Any:
        counts["derived"] += 1
        return snapshot_scores(*arguments)

    return noted


def test_an_opened_run_parses_its_record_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer(tmp_path, [TracInCallback(tmp_path / "run", top_k=5)], max_epochs=2).fit(Classifier(), *loaders())
    counts: Counter[str] = Counter()
    counted(monkeypatch, directories, "read_record", counts, lambda *_: "record parsed")
    run = TracInRun.open(tmp_path / "run")
    run.reliance(5)
    run.top(0, 3)
    run.influence("dot")
    assert counts == {"record parsed": 1}
