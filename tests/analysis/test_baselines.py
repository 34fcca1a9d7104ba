"""Scores that look at no gradient, on cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_tracin import TracInError
from lightning_tracin.analysis.baselines import (
    BASELINES,
    baselines_of,
    lexical,
    random_scores,
    representation_similarity,
    same_label,
    without_ties,
    words,
)
from lightning_tracin.storage.sample_table import SampleTable


def test_random_scores_are_reproducible_and_differ_by_seed() -> None:
    one, again, other = random_scores(4, 3), random_scores(4, 3), random_scores(4, 3, seed=1)
    assert one.shape == (4, 3)
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)
    assert len(np.unique(one)) == 12


def test_same_label() -> None:
    np.testing.assert_array_equal(same_label(["a", "b", "a"], ["a", "b"]), [[1, -1], [-1, 1], [1, -1]])


def test_samples_without_labels_are_an_error() -> None:
    with pytest.raises(TracInError, match=r"train samples have no labels to compare \(sample 1"):
        same_label(["a", None], ["a"])
    with pytest.raises(TracInError, match="probes have no labels"):
        same_label(["a"], [None])


def test_words_of_scripts_with_and_without_spaces() -> None:
    assert words("Der Hund, DER bellt!") == ["der", "hund", "der", "bellt"]
    assert words("我爱NLP") == ["我", "爱", "nlp"]
    assert words("사과를 먹다") == ["사과를", "먹다"]


def test_bm25_by_its_formula() -> None:
    documents = ["cat sat mat", "dog sat", "bird", "cat cat"]
    found = lexical(documents, ["cat dog unknown", "nothing here"])
    average = (3 + 2 + 1 + 2) / 4

    def term(frequency: int, length: int, holding: int) -> float:
        idf = math.log(1 + (4 - holding + 0.5) / (holding + 0.5))
        return idf * frequency / (frequency + 1.5 * (1 - 0.75 + 0.75 * length / average))

    want = [term(1, 3, 2), term(1, 2, 1), 0, term(2, 2, 2)]
    np.testing.assert_allclose(found[:, 0], want, rtol=1e-5)
    np.testing.assert_array_equal(found[:, 1], 0)


def test_bm25_with_a_tokenizer_of_ones_own() -> None:
    found = lexical(["ab", "cd"], ["bx"], tokenize=list)
    assert found[0, 0] > 0
    assert found[1, 0] == 0


def test_train_samples_without_text_are_an_error() -> None:
    with pytest.raises(TracInError, match="no text to compare"):
        lexical(["", " "], ["a"])


def test_similarity_of_representations() -> None:
    found = representation_similarity([[3.0, 4.0], [0.0, 0.0]], [[1.0, 0.0], [-3.0, -4.0]])
    np.testing.assert_allclose(found, [[0.6, -1], [0, 0]])
    with pytest.raises(TracInError, match="of one width"):
        representation_similarity([[1.0, 2.0]], [[1.0]])


def test_equal_scores_come_in_random_order_and_others_stay_apart() -> None:
    scores = np.asarray([[1.0], [0.0]] * 500)
    order = np.argsort(-without_ties(scores), axis=0)[:, 0]
    assert set(order[:500]) == set(range(0, 1000, 2))
    assert 400 < order[:100].mean() < 600  # of the whole table, not of its beginning
    assert not np.array_equal(order, np.argsort(-scores[:, 0], kind="stable"))
    np.testing.assert_allclose(without_ties(scores), scores, atol=1e-8)


def test_baselines_by_name_are_products_of_their_parts_without_ties() -> None:
    train = SampleTable(("en",) * 3, (None,) * 3, ("red fox", "blue fox", "red sun"), ("0", "1", "0"))
    probes = SampleTable(("en",), (None,), ("red",), ("1",))
    near = np.eye(3), np.array([[1.0, 1.0, 0.0]])
    found = baselines_of(BASELINES, train, probes, lambda: near, seed=3)
    assert tuple(found) == BASELINES
    signs = np.array([[-1.0], [1.0], [-1.0]])
    np.testing.assert_allclose(found["same label"], signs, atol=1e-8)
    np.testing.assert_allclose(found["BM25 x same label"], lexical(train.text, probes.text) * signs, atol=1e-8)
    np.testing.assert_allclose(found["representations x same label"], np.array([[-1], [1], [0]]) / np.sqrt(2), atol=1e-8)
    assert all(len(np.unique(scores)) == 3 for scores in found.values())
    assert tuple(baselines_of(["same label", "representations"], train, probes, None)) == ("same label",)


def test_baselines_that_cannot_be_made_are_said_or_an_error() -> None:
    train = SampleTable(("en",) * 2, (None,) * 2, ("", ""), (None, "1"))
    probes = SampleTable(("en",), (None,), ("red",), ("1",))
    missing: list[str] = []
    assert tuple(baselines_of(BASELINES, train, probes, None, missing=missing)) == ("random",)
    assert [one.partition(":")[0] for one in missing] == ["same label", "BM25"]
    with pytest.raises(TracInError, match=r"The train samples have no labels to compare \(sample 0 has none\)"):
        baselines_of(BASELINES, train, probes, None)
