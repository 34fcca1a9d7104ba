"""Reliance on constructed scores whose answer is known by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_tracin.analysis.reliance import Interval, cross_lingual, mean_cross_lingual, per_probe, reliance_table

TRAIN = ["de", "de", "en", "en", "en", "ru"]
# Columns are probes: two of de, one of en, one of fr (zero-shot).
SCORES = np.array(
    [
        [9.0, 9.0, 1.0, 0.0],
        [8.0, 1.0, 2.0, -1.0],
        [1.0, 8.0, 9.0, 3.0],
        [0.0, 2.0, 8.0, 5.0],
        [-1.0, 0.0, 0.0, -4.0],
        [-9.0, -5.0, -3.0, 9.0],
    ]
)
PROBES = ["de", "de", "en", "fr"]


def value(table: object, probe: str, train: str, column: str = "share") -> float:
    chosen = table[(table["probe_language"] == probe) & (table["train_language"] == train)]  # type: ignore[index]
    assert len(chosen) == 1
    return float(chosen[column].iloc[0])


def test_share_of_the_top_k() -> None:
    languages, values = per_probe(SCORES, TRAIN, k=2)
    assert languages == ["de", "en", "ru"]
    np.testing.assert_allclose(values, [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5]])


def test_share_of_opponents() -> None:
    _, values = per_probe(SCORES, TRAIN, k=2, sign="negative")
    np.testing.assert_allclose(values, [[0, 0.5, 0.5], [0, 0.5, 0.5], [0, 0.5, 0.5], [0.5, 0.5, 0]])


def test_mass_is_the_share_of_all_influence_of_that_sign() -> None:
    _, values = per_probe(SCORES, TRAIN, k=2, measure="mass")
    np.testing.assert_allclose(values, [[17 / 18, 1 / 18, 0], [10 / 20, 10 / 20, 0], [3 / 20, 17 / 20, 0], [0, 8 / 17, 9 / 17]])
    _, negative = per_probe(SCORES, TRAIN, k=2, sign="negative", measure="mass")
    np.testing.assert_allclose(negative, [[0, 0.1, 0.9], [0, 0, 1], [0, 0, 1], [0.2, 0.8, 0]])


def test_mean_influence_of_a_sample() -> None:
    _, values = per_probe(SCORES, TRAIN, k=2, measure="mean")
    np.testing.assert_allclose(values, [[8.5, 0, -9], [5, 10 / 3, -5], [1.5, 17 / 3, -3], [-0.5, 4 / 3, 9]])


def test_table_averages_over_the_probes_of_a_language_with_chance_and_lift() -> None:
    table = reliance_table(SCORES, TRAIN, PROBES, k=2)
    assert len(table) == 9
    assert value(table, "de", "de") == pytest.approx(0.75)
    assert value(table, "de", "en") == pytest.approx(0.25)
    assert value(table, "de", "de", "chance") == pytest.approx(2 / 6)
    assert value(table, "fr", "en", "chance") == pytest.approx(3 / 6)
    assert value(table, "de", "de", "lift") == pytest.approx(0.75 / (0.75 / 3))  # de, en and fr give de 0.75, 0 and 0
    assert value(table, "en", "en", "lift") == pytest.approx(1 / ((0.25 + 1 + 0.5) / 3))
    assert value(table, "de", "en", "probes") == 2
    assert value(table, "en", "en", "probes") == 1


def test_lift_of_a_language_that_nobody_relies_on_is_undefined() -> None:
    table = reliance_table(SCORES[:, :3], TRAIN, PROBES[:3], k=2)
    assert value(table, "de", "ru") == 0
    assert np.isnan(value(table, "de", "ru", "lift"))


def test_probe_without_positive_influence_has_no_mass_and_does_not_count() -> None:
    scores = SCORES.copy()
    scores[:, 1] = -1.0
    table = reliance_table(scores, TRAIN, PROBES, k=2, measure="mass")
    assert value(table, "de", "de") == pytest.approx(17 / 18)
    assert value(table, "de", "de", "probes") == 1


def test_probe_without_any_influence_has_no_share_and_does_not_count() -> None:
    scores = SCORES.copy()
    scores[:, 1] = 0.0
    table = reliance_table(scores, TRAIN, PROBES, k=2)
    assert value(table, "de", "de") == pytest.approx(1.0)
    assert value(table, "de", "de", "probes") == 1


def test_shares_of_random_scores_are_chance() -> None:
    generator = np.random.default_rng(0)
    table = reliance_table(generator.normal(size=(600, 400)), TRAIN * 100, ["de", "fr"] * 200, k=60)
    np.testing.assert_allclose(table["share"], table["chance"], atol=0.02)
    inside = (table["low"] <= table["chance"]) & (table["chance"] <= table["high"])
    assert inside.mean() >= 0.5


def draws(generator: np.random.Generator, probes: int) -> np.ndarray:
    """Scores of 50 samples of `a`, half a deviation higher than 50 of `b`."""
    return np.concatenate([generator.normal(0.5, 1, (50, probes)), generator.normal(0, 1, (50, probes))])


def test_interval_covers_the_true_share_as_often_as_it_says() -> None:
    """The true share is that of very many probes; the 95 % intervals over 40 of them hold it about 95 times of 100."""
    generator = np.random.default_rng(1)
    languages = ["a"] * 50 + ["b"] * 50
    truth = per_probe(draws(generator, 20_000), languages, 20)[1][:, 0].mean()
    hits = 0
    for trial in range(100):
        table = reliance_table(draws(generator, 40), languages, ["a"] * 40, k=20, interval=Interval(seed=trial))
        hits += value(table, "a", "a", "low") <= truth <= value(table, "a", "a", "high")
    assert 88 <= hits <= 99


def test_single_probe_has_no_interval() -> None:
    table = reliance_table(SCORES, TRAIN, PROBES, k=2)
    assert np.isnan(value(table, "en", "en", "low"))
    assert value(table, "de", "de", "low") <= 0.75 <= value(table, "de", "de", "high")


def test_cross_lingual_reliance_is_what_comes_from_other_languages() -> None:
    table = reliance_table(SCORES, TRAIN, PROBES, k=2)
    assert cross_lingual(table).to_dict() == pytest.approx({"de": 0.25, "en": 0.0, "fr": 1.0})
    assert mean_cross_lingual(table) == pytest.approx(0.125)  # fr has no train samples and does not count
