"""The evidence page says what its numbers say."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from benchmarks import evidence
from benchmarks.evidence_page import page
from lightning_tracin.tables import SampleTable

LANGUAGES = ["a", "b", "c"]


def removal(name: str, low: list[float], high: list[float]) -> list[dict[str, Any]]:
    return [
        {
            "removed": name,
            "k": k,
            "drop": 0.1,
            "random_drop": 0.0,
            "excess": 0.1,
            "excess_low": one,
            "excess_high": other,
            "p": 0.01,
        }
        for k, one, other in zip((50, 100), low, high, strict=True)
    ]


def agreement(score: str, centred: float) -> dict[str, Any]:
    return {
        "measure": "share",
        "score": score,
        "spearman": 0.0,
        "pearson": 0.0,
        "centred_pearson": centred,
        "centred_low": 0.0,
        "centred_high": 1.0,
        "floor": 0.5,
        "p": 0.001,
    }


def test_sentences_follow_from_the_numbers() -> None:
    rows = [
        *removal("cosine, proponents", [0.05, 0.02], [0.2, 0.2]),
        *removal("cosine, opponents", [-0.3, -0.1], [-0.1, 0.1]),
        *removal("noise", [-0.1, -0.1], [0.1, 0.1]),
    ]
    changes = [
        {"probe_language": one, "train_language": other, "change": 0.25, "error": 0.125}
        for one, other in itertools.product(LANGUAGES, LANGUAGES)
    ]
    found = {
        "options": {"layers": 1, "hidden_size": 8, "epochs": 2, "batch_size": 4, "learning_rate": 1e-3},
        "train": 30,
        "probes": 9,
        "languages": LANGUAGES,
        "snapshots": 2,
        "seeds": 5,
        "draws": 3,
        "top": 10,
        "probability": 0.5,
        "removal": rows,
        "areas": [{"removed": "random", "area": -0.001, "low": -0.002, "high": 0.0}],
        "changes": changes,
        "agreement": [agreement("cosine", 0.4), agreement("BM25", 0.9), agreement("same label", float("nan"))],
    }
    text = page({"nusax": found})
    assert "Removing cosine, proponents: lowers it more than random removals at every k." in text
    assert "Removing cosine, opponents: lowers it less at k = 50." in text
    assert "Removing noise: at no k different from random removals." in text
    assert "BM25 agrees best (0.90). Above the floor are BM25." in text
    assert "| a | +0.250 (0.125) | +0.250 (0.125) | +0.250 (0.125) |" in text


class ExactModel:
    """Refits of a model whose losses are known: a probe's loss falls by its own weight for each sample it keeps."""

    def __init__(self, weights: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> None:
        self.weights = weights

    def losses(self, members: Any, seed: int = 0) -> Any:
        return 5 - members @ self.weights + 0.01 * seed


class Run:
    train = SampleTable(tuple(np.repeat(LANGUAGES, 10)), (None,) * 30, ("",) * 30, (None,) * 30)
    probes = SampleTable(tuple(np.repeat(LANGUAGES, 4)), (None,) * 12, ("",) * 12, (None,) * 12)


def test_a_score_that_is_the_truth_is_found_to_be_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "TOP", 8)
    generator = np.random.default_rng(0)
    weights = generator.uniform(0, 0.05, (30, 12)) + np.repeat(np.repeat(generator.uniform(0, 0.1, (3, 3)), 10, 0), 4, 1)
    names = {score for score, _ in evidence.REMOVED.values()}
    scores = {name: weights if name == "cosine" else generator.standard_normal(weights.shape) for name in names}
    model, run = ExactModel(weights), Run()
    found = evidence.removals(model, run, [scores, scores], [3, 6], draws=4)  # type: ignore[arg-type]
    lines = {(row["removed"], row["k"]): row for row in found["removal"]}
    assert lines["cosine, proponents", 6]["excess_low"] > 0
    assert lines["cosine, opponents", 6]["excess_high"] < 0
    areas = {row["removed"]: row["area"] for row in found["areas"]}
    assert areas["cosine, proponents"] == min(areas.values())
    left = evidence.left_out(model, run, [scores, scores])  # type: ignore[arg-type]
    means = {row["score"]: row for row in left["agreement"] if row["measure"] == "mean"}
    assert means["cosine"]["centred_pearson"] == pytest.approx(1)
    assert len(left["changes"]) == 9
