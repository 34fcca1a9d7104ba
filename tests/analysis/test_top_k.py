"""The strongest train samples of factored scores are those of the whole ranking in double precision, near-ties included."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from lightning_tracin.analysis.near_border import near_or_beyond
from lightning_tracin.analysis.scores import FactoredScores, ranked
from lightning_tracin.analysis.top_k import Strongest

SIGNS: Any = pytest.mark.parametrize("sign", ["positive", "negative"])


def multiplied_out(terms: list[FactoredScores]) -> np.ndarray:
    """The scores in double precision, pair by pair."""
    _, train, probes = terms[0].dot.shape
    scores = np.zeros((train, probes))
    for term in terms:
        for i in range(train):
            for j in range(probes):
                products = [float(weight) * float(dot[i, j]) for weight, dot in zip(term.weights, term.dot, strict=True)]
                one = products[0]
                for product in products[1:]:
                    one += product
                scores[i, j] += one * term.train[i] * term.probe[j]
    return scores


def rows_of(terms: list[FactoredScores], rows: np.ndarray) -> list[FactoredScores]:
    return [FactoredScores(term.dot[:, rows], term.weights, term.train[rows], term.probe) for term in terms]


def assert_ranked_alike(terms: list[FactoredScores], k: int, sign: Any, block: int = 40) -> None:
    """After a dense start, block by block in any order."""
    scores = multiplied_out(terms)
    order = np.random.default_rng(0).permutation(len(scores))
    strongest = Strongest(k, sign)
    for rows in np.split(order, range(block, len(order), block)):
        strongest.add_factored(rows, rows_of(terms, rows))
    want = ranked(scores, sign)[:k]
    found, their = strongest.found()
    np.testing.assert_array_equal(found, want)
    np.testing.assert_array_equal(their, np.take_along_axis(scores, want, 0))


def near_ties(generator: np.random.Generator, train: int, probes: int) -> FactoredScores:
    """Cosines that all lie within a few units in the last place of single precision around 0.2."""
    norms = generator.uniform(1, 2, train).astype(np.float32).astype(np.float64)
    of_probes = generator.uniform(1, 2, probes)
    dot = (0.2 * norms[:, None] * of_probes).astype(np.float32)[None]
    return FactoredScores(dot, np.ones(1), 1 / norms, 1 / of_probes)


@SIGNS
@pytest.mark.parametrize("k", [1, 25])
def test_near_ties_that_single_precision_orders_wrongly(k: int, sign: Any) -> None:
    term = near_ties(np.random.default_rng(1), 300, 6)
    single = term.dot[0] * term.train.astype(np.float32)[:, None] * term.probe.astype(np.float32)
    right, wrong = (set(ranked(scores, sign)[:k, 0]) for scores in (multiplied_out([term]), single.astype(np.float64)))
    assert right != wrong
    assert_ranked_alike([term], k, sign)


@SIGNS
def test_exact_ties_are_in_the_random_order_of_all_rankings(sign: Any) -> None:
    generator = np.random.default_rng(2)
    dot = generator.integers(-2, 3, (1, 300, 5)).astype(np.float32)
    assert_ranked_alike([FactoredScores(dot, np.ones(1), np.full(300, 1 / 3), np.full(5, 1 / 7))], 20, sign)


@SIGNS
def test_groups_and_snapshots_that_cancel(sign: Any) -> None:
    """The sums are no larger than the rounding errors of their summands in single precision."""
    generator = np.random.default_rng(3)
    first = generator.normal(size=(1, 200, 4)).astype(np.float32) * 1e6
    second = (-0.3 / 0.7 * first.astype(np.float64)).astype(np.float32)
    ones = np.ones(200)
    groups = [FactoredScores(np.concatenate([first, second]), np.array([0.3, 0.7]), ones, np.ones(4))]
    snapshots = [FactoredScores(dot, np.ones(1), ones, np.full(4, rate)) for dot, rate in ((first, 0.3), (second, 0.7))]
    for terms in (groups, snapshots):
        assert_ranked_alike(terms, 15, sign)


@SIGNS
@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e-20, 1e20, 1e30, 3e38])
def test_gradients_of_any_size(size: float, sign: Any) -> None:
    """Their norms, and products with them, may be too small or large for single precision."""
    generator = np.random.default_rng(4)
    norm = (generator.uniform(0.1, 1, 200) * size).astype(np.float32).astype(np.float64)
    dot = (generator.normal(size=(200, 3)) * min(size, 1e38) / 4).astype(np.float32)[None]
    factor = np.divide(1.0, norm, out=np.zeros(200), where=norm > 0)
    for train, probe in ((factor, np.ones(3)), (np.ones(200), np.ones(3)), (factor, np.full(3, 1 / size))):
        assert_ranked_alike([FactoredScores(dot, np.ones(1), train, probe)], 7, sign)


@SIGNS
def test_gradients_of_zero(sign: Any) -> None:
    generator = np.random.default_rng(5)
    dot = generator.normal(size=(1, 200, 3)).astype(np.float32)
    train, probe = np.ones(200), np.array([1.0, 0.0, 1.0])
    dot[:, :150], train[:150] = 0, 0
    dot[..., 1] = 0
    for weights in (np.ones(1), np.zeros(1)):
        assert_ranked_alike([FactoredScores(dot, weights, train, probe)], 80, sign)


@SIGNS
def test_few_of_the_scores_are_computed_in_double_precision(sign: Any) -> None:
    generator = np.random.default_rng(6)
    dot = generator.normal(size=(1, 2000, 5)).astype(np.float32)
    term = FactoredScores(dot, np.ones(1), generator.uniform(1, 2, 2000), generator.uniform(1, 2, 5))
    scores = multiplied_out([term])
    border = np.take_along_axis(scores, ranked(scores, sign)[49:50], 0)[0]
    for terms in ([term], [term, FactoredScores(0 * dot, np.ones(1), np.ones(2000), np.ones(5))]):
        rows, probes, found = near_or_beyond(terms, border, sign == "positive")
        assert len(rows) == 50 * 5
        np.testing.assert_array_equal(found, scores[rows, probes])


def test_a_block_of_all_train_samples_is_not_sorted() -> None:
    """Sorting takes the memory of two more matrices, and time."""
    train, probes, k = 60_000, 8, 10
    scores = np.random.default_rng(7).normal(size=(train, probes))
    strongest = Strongest(k, "positive")
    tracemalloc.start()
    try:
        strongest.add(np.arange(train), scores)
        assert tracemalloc.get_traced_memory()[1] < scores.nbytes / 4
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(strongest.found()[0], ranked(scores, "positive")[:k])
