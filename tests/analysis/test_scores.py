"""Scores from ingredients, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_tracin.analysis.scores import group_weights, ranked, snapshot_scores, tie_order
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.shards import Ingredients

# Two groups of two parameters each. Train gradients (3, 4 | 0, 0) and (0, 0 | 1, 0); one probe (3, 4 | 2, 0).
BY_HAND = Ingredients(
    dot=np.array([[[25.0], [0.0]], [[0.0], [2.0]]], dtype=np.float32),
    train_norm=np.array([[5.0, 0.0], [0.0, 1.0]], dtype=np.float32),
    probe_norm=np.array([[5.0], [2.0]], dtype=np.float32),
)


@pytest.mark.parametrize(
    ("similarity", "weights", "expected"),
    [
        ("dot", [1.0, 1.0], [25.0, 2.0]),
        ("dot", [0.5, 3.0], [12.5, 6.0]),
        ("cosine", [1.0, 1.0], [25 / (5 * 29**0.5), 2 / 29**0.5]),
        ("cosine", [0.5, 3.0], [12.5 / (5 * 29**0.5), 6 / 29**0.5]),
        ("relatif", [1.0, 1.0], [5.0, 2.0]),
    ],
)
def test_scores_by_hand(similarity: str, weights: list[float], expected: list[float]) -> None:
    scores = snapshot_scores(BY_HAND, similarity, np.array(weights))
    np.testing.assert_allclose(scores[:, 0], expected, rtol=1e-6)


def test_weights_are_mean_rate_times_visits_or_one() -> None:
    np.testing.assert_allclose(group_weights("learning_rate", [0.1, 0.02], 0.5), [0.05, 0.01])
    np.testing.assert_allclose(group_weights("uniform", [0.1, 0.02], 0.5), [1, 1])


def test_gradient_of_zero_influences_nothing() -> None:
    silent = Ingredients(np.zeros((1, 2, 1), np.float32), np.array([[0.0, 2.0]], np.float32), np.array([[3.0]], np.float32))
    assert snapshot_scores(silent, "cosine", np.ones(1)).tolist() == [[0.0], [0.0]]


def test_an_optimizer_group_without_scored_parameters_adds_nothing() -> None:
    """Parameters of the second group are frozen or not chosen, so that products have one group and the optimizer two."""
    one = Ingredients(np.array([[[4.0]]]), np.array([[2.0]]), np.array([[4.0]]))
    assert snapshot_scores(one, "dot", np.array([0.5, 100.0])).tolist() == [[2.0]]


def test_equal_scores_are_ranked_in_random_order() -> None:
    """A dataset sorted by language must not make the first language the strongest."""
    scores = np.repeat([[1.0], [3.0]], 500, axis=0)
    for sign, first in (("positive", slice(500, 1000)), ("negative", slice(0, 500))):
        found = ranked(scores, sign)[:, 0]  # type: ignore[arg-type]
        assert set(found[:500]) == set(range(1000)[first])
        assert found[:500].tolist() == ranked(scores[:, [0, 0]], sign)[:500, 1].tolist()  # type: ignore[arg-type]
        middle = np.mean(found[:100]) - first.start
        assert 200 < middle < 300  # 250 on average, with a standard deviation of 14
    assert len(set(tie_order(np.arange(10_000)).tolist())) == 10_000


def test_negative_rate_is_refused() -> None:
    assert group_weights("uniform", [0.1, -0.02], 1).tolist() == [1, 1]
    with pytest.raises(TracInError, match=r"but a group of the optimizer had -0\.02; take weighting='uniform'"):
        group_weights("learning_rate", [0.1, -0.02], 1)
