"""The reference forms of the LDS benchmark, against inverses written out; its batches, against the fit on all samples."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from benchmarks.lds_fits import BatchesOfMembers
from benchmarks.lds_grams import block_of
from benchmarks.lds_page import MAIN, page
from benchmarks.lds_scores import PROJECTED, Spectrum, cosine, whitened_cosine, whitened_name
from lightning_tracin import TracInError


def gradients(elements: int, seed: int = 0) -> np.ndarray:
    """Nine train samples and four probes, of uneven sizes."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=(13, elements)) * generator.uniform(0.1, 3, size=(13, 1)) * np.linspace(0.2, 2, elements)


@pytest.mark.parametrize("elements", [5, 30])  # fewer and more than train samples
def test_whitened_products_are_those_with_the_inverse_written_out(elements: int) -> None:
    rows, ridge = gradients(elements), 0.07
    train, probes = rows[:9], rows[9:]
    inverse = np.linalg.inv(train.T @ train / 9 + ridge * np.eye(elements))
    products, train_norms, probe_norms = Spectrum(rows @ rows.T, 9).whitened(ridge)
    np.testing.assert_allclose(products, train @ inverse @ probes.T)
    np.testing.assert_allclose(train_norms, np.diag(train @ inverse @ train.T))
    np.testing.assert_allclose(probe_norms, np.diag(probes @ inverse @ probes.T))


def test_damping_of_the_whitened_cosine_is_a_part_of_the_trace() -> None:
    rows = gradients(20)
    second = rows[:9].T @ rows[:9] / 9
    products = rows @ np.linalg.inv(second + 0.05 * np.trace(second) * np.eye(20)) @ rows.T
    want = products[:9, 9:] / np.sqrt(np.diag(products)[:9, None] * np.diag(products)[None, 9:])
    np.testing.assert_allclose(whitened_cosine(Spectrum(rows @ rows.T, 9), 0.05), want)


def test_much_damping_leaves_the_plain_cosine() -> None:
    rows = gradients(30)
    plain = cosine(rows @ rows.T, 9)
    np.testing.assert_allclose(plain[2, 1], rows[2] @ rows[10] / np.linalg.norm(rows[2]) / np.linalg.norm(rows[10]))
    np.testing.assert_allclose(whitened_cosine(Spectrum(rows @ rows.T, 9), 1e6), plain, atol=1e-4)


def test_block_of_parameters() -> None:
    names = ["embeddings.word_embeddings.weight", "encoder.layer.1.attention.self.query.bias", "classifier.dense.weight"]
    assert [block_of(f"model.roberta.{name}") for name in names] == ["embeddings", "layer 1", "head"]


def test_batches_of_a_subset_are_those_of_all_samples_without_what_is_left_out() -> None:
    members = np.random.default_rng(0).random(100) < 0.5
    whole, half = BatchesOfMembers(np.ones(100, dtype=bool), 8, 3), BatchesOfMembers(members, 8, 3)
    first = list(whole)
    assert sorted(itertools.chain(*first)) == list(range(100))
    assert list(half) == [[i for i in batch if members[i]] for batch in first]
    assert len(half) == len(first) == 13
    whole.set_epoch(1)
    assert list(whole) != first


def test_batch_without_a_member() -> None:
    with pytest.raises(TracInError, match="make --batch_size larger"):
        list(BatchesOfMembers(np.arange(10) == 0, 2, 0))


def of(name: str, lds: float) -> dict[str, Any]:
    figures = dict.fromkeys(("low", "high", "difference", "difference_low", "difference_high"), 0.1)
    return {"score": name, "lds": lds, "probes": 4, **figures}


@pytest.mark.parametrize("has_reference", [True, False])
def test_the_page_has_a_table_with_and_without_a_reference(has_reference: bool) -> None:
    dampings = (0.0025, 0.25)
    names = [before + whitened_name(one, size) for before in PROJECTED for one in ("cosine", "dot product") for size in dampings]
    rows = [of(name, 0.5 + place / 100) for place, name in enumerate([*names, "EK-FAC dot product", "cosine"])]
    made = {
        **dict.fromkeys(("accuracy_train", "accuracy_probes", "accuracy_test", "majority_test"), 0.5),
        "options": {
            "model": "use-multilingual", "freeze_embeddings": True,
            "learning_rate": 1e-3, "batch_size": 32, "epochs": 4, "seed": 0,
        },
        "train": 300, "probes": 4, "subsets": 40, "repeats": 1, "parameters": 10, "steps": [1, 2], "all_snapshots": 2,
        "rows": rows, "reference_rows": [of(name, 0.25) for name in names] if has_reference else [], "dampings": dampings,
        "chosen_on": 0, "unseen": [one for one in rows if one["score"] in MAIN],
    }  # fmt: skip
    written = page({"sib200": made})
    assert "use-multilingual with frozen embeddings, 10 trained parameters" in written
    assert "No damping was chosen on these data." in written
    assert "Best is cosine with 0.590: 1.13 times 0.520, that of Fisher-whitened dot product." in written
    assert "| EK-FAC dot product | 0.580 [0.100, 0.100] |" in written
    line = next(one for one in written.splitlines() if one.startswith("| 0.25 |"))
    mine = ["0.510", "0.530", "0.550", "0.570"]
    cells = [cell for one in mine for cell in ((one, "0.250") if has_reference else (one,))]
    assert line == "| 0.25 | " + " | ".join(cells) + " |"
