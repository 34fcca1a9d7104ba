"""Reliance on constructed scores whose answer is known by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from lightning_tracin.analysis.reliance import cross_lingual, mean_cross_lingual, reliance_table, table_of, tally_of
from lightning_tracin.analysis.resampling import Interval
from lightning_tracin.analysis.tally import Tally, TrainLanguages
from lightning_tracin.errors import TracInError

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


def value(table: object, probe: str, train: str, column: str = "value") -> float:
    chosen = table[(table["probe_language"] == probe) & (table["train_language"] == train)]  # type: ignore[index]
    assert len(chosen) == 1
    return float(chosen[column].iloc[0])


def test_share_of_the_top_k() -> None:
    tally = tally_of(SCORES, TRAIN, k=2)
    assert tally.languages == ["de", "en", "ru"]
    np.testing.assert_allclose(tally.values(), [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5]])


def test_share_of_opponents() -> None:
    values = tally_of(SCORES, TRAIN, k=2, sign="negative").values()
    np.testing.assert_allclose(values, [[0, 0.5, 0.5], [0, 0.5, 0.5], [0, 0.5, 0.5], [0.5, 0.5, 0]])


def test_mass_is_the_share_of_all_influence_of_that_sign() -> None:
    values = tally_of(SCORES, TRAIN, k=2, measure="mass").values()
    np.testing.assert_allclose(values, [[17 / 18, 1 / 18, 0], [10 / 20, 10 / 20, 0], [3 / 20, 17 / 20, 0], [0, 8 / 17, 9 / 17]])
    negative = tally_of(SCORES, TRAIN, k=2, sign="negative", measure="mass").values()
    np.testing.assert_allclose(negative, [[0, 0.1, 0.9], [0, 0, 1], [0, 0, 1], [0.2, 0.8, 0]])


def test_mean_influence_of_a_sample() -> None:
    values = tally_of(SCORES, TRAIN, k=2, measure="mean").values()
    np.testing.assert_allclose(values, [[8.5, 0, -9], [5, 10 / 3, -5], [1.5, 17 / 3, -3], [-0.5, 4 / 3, 9]])


def test_table_averages_over_the_probes_of_a_language_with_chance_and_lift() -> None:
    table = reliance_table(SCORES, TRAIN, PROBES, k=2)
    assert len(table) == 9
    assert value(table, "de", "de") == pytest.approx(0.75)
    assert value(table, "de", "en") == pytest.approx(0.25)
    assert value(table, "de", "de", "null") == pytest.approx(2 / 6)
    assert value(table, "fr", "en", "null") == pytest.approx(3 / 6)
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
    np.testing.assert_allclose(table["value"], table["null"], atol=0.02)
    inside = (table["low"] <= table["null"]) & (table["null"] <= table["high"])
    assert inside.mean() >= 0.5


def draws(generator: np.random.Generator, probes: int, train: int = 50) -> np.ndarray:
    """Scores of samples of `a`, half a deviation higher than as many of `b`."""
    noise = generator.normal(size=(2 * train, probes)) + generator.normal(size=(2 * train, 1))
    return noise + np.repeat([[0.7], [0.0]], train, axis=0)


@pytest.mark.parametrize("measure", ["share", "mass", "mean"])
def test_interval_covers_the_true_value_as_often_as_it_says(measure: Any) -> None:
    """The true value is that of very many train samples and probes; each interval is of 50 samples a language and 40 probes."""
    generator = np.random.default_rng(1)
    many = draws(generator, 2_000, 2_000)
    truth = tally_of(many, ["a"] * 2_000 + ["b"] * 2_000, 800, measure=measure).values()[:, 0].mean()
    languages, hits = ["a"] * 50 + ["b"] * 50, 0
    for trial in range(100):
        table = reliance_table(
            draws(generator, 40), languages, ["a"] * 40, k=20, measure=measure, interval=Interval(resamples=199, seed=trial)
        )
        hits += value(table, "a", "a", "low") <= truth <= value(table, "a", "a", "high")
    assert 90 <= hits <= 99


@pytest.mark.parametrize("measure", ["share", "sum", "mean", "mass"])
@pytest.mark.parametrize("shuffled", ["labels", "items"])
def test_at_most_7_of_100_intervals_leave_chance_out_if_languages_are_shuffled(shuffled: str, measure: Any) -> None:
    """Train samples with large gradients are strong for every probe, so an interval over probes alone fails (25 of 100)."""
    generator = np.random.default_rng(2)
    missed = cells = 0
    for trial in range(40):
        labels, probe_labels = np.arange(120) // 4 % 3, np.arange(60) // 2 % 3
        alike = np.where(labels[:, None] == probe_labels, 1.0, -0.5)
        scores = alike * generator.lognormal(0, 1, (120, 1)) * generator.lognormal(0, 0.5, (1, 60))
        scores = scores + 0.5 * generator.normal(size=(120, 60))
        if shuffled == "labels":
            train, probes = generator.permutation(["a", "b", "c", "d"] * 30), ["a", "b"] * 30
            chosen = TrainLanguages.of(train.tolist(), labels.tolist())
        else:
            train, probes = generator.permuted(np.tile(["a", "b", "c", "d"], (30, 1)), axis=1).ravel(), ["a", "b"] * 30
            items = (np.arange(120) // 4).tolist()
            chosen = TrainLanguages.of(train.tolist(), items, items)
        table = reliance_table(
            scores, chosen, probes, k=20, measure=measure, interval=Interval(resamples=199, seed=trial), probe_units=range(60)
        )
        missed += int(((table["low"] > table["null"]) | (table["high"] < table["null"])).sum())
        cells += len(table)
    assert missed <= 0.07 * cells


@pytest.mark.parametrize("measure", ["share", "sum", "mean", "mass"])
@pytest.mark.parametrize("sign", ["positive", "negative"])
def test_null_is_the_mean_over_all_shuffles_within_label(measure: Any, sign: Any) -> None:
    if sign == "negative" and measure in ("sum", "mean"):
        return
    generator = np.random.default_rng(3)
    languages, labels = np.array(["a", "a", "b", "b", "b", "c"]), np.array([0, 1, 0, 0, 1, 1])
    scores = generator.normal(size=(6, 3))
    found = []
    for within in itertools.product(itertools.permutations(range(3)), repeat=2):
        shuffled = languages.copy()
        for label, order in enumerate(within):
            shuffled[labels == label] = languages[labels == label][list(order)]
        found.append(tally_of(scores, shuffled.tolist(), 2, sign, measure).values())
    tally = Tally(TrainLanguages.of(languages.tolist(), labels.tolist()), 2, sign, measure)
    tally.add(np.arange(6), scores)
    # A mean divides by its language's number of samples, which no shuffle changes.
    np.testing.assert_allclose(tally.chance(), np.mean(found, axis=0), atol=1e-12)


def test_null_of_shares_is_that_of_the_probes_label() -> None:
    """Where all of the top k have the probe's label, chance is n(language, label) / n(label)."""
    languages, labels = ["a"] * 8 + ["b"] * 2 + ["a"] * 2 + ["b"] * 8, [0] * 10 + [1] * 10
    scores = np.where(np.array(labels)[:, None] == [0, 1], 2.0, -1.0) + np.random.default_rng(4).random((20, 2))
    table = reliance_table(scores, TrainLanguages.of(languages, labels), ["a", "b"], k=5)
    assert value(table, "a", "a", "null") == pytest.approx(0.8)
    assert value(table, "b", "a", "null") == pytest.approx(0.2)


def test_sum_and_mean_keep_the_sign() -> None:
    table = reliance_table(SCORES, TRAIN, PROBES, k=2, measure="sum")
    assert value(table, "de", "ru") == pytest.approx(-7)
    assert value(table, "fr", "ru") == pytest.approx(9)
    means = reliance_table(SCORES, TRAIN, PROBES, k=2, measure="mean")
    assert value(means, "de", "de") == pytest.approx((9 + 8 + 9 + 1) / 4)
    assert table["lift"].isna().all()
    assert means["lift"].isna().all()
    with pytest.raises(TracInError, match=r"measure='sum' adds up influence with its sign, so there is none to choose; leave"):
        reliance_table(SCORES, TRAIN, PROBES, k=2, sign="negative", measure="sum")


def test_contrast_is_what_row_and_column_effects_of_other_languages_leave() -> None:
    """Against a least-squares fit of the effects, cell by cell."""
    generator = np.random.default_rng(5)
    train, probes = ["a", "b", "c", "d"] * 6, ["a", "b", "c", "d", "e"] * 3
    table = reliance_table(generator.normal(size=(24, 15)), train, probes, k=5, measure="sum")
    grid = table.pivot(index="probe_language", columns="train_language", values="value")
    others = [(i, j) for i in range(5) for j in range(4) if grid.index[i] != grid.columns[j]]
    design = np.zeros((len(others), 9))
    for line, (i, j) in enumerate(others):
        design[line, [i, 5 + j]] = 1
    effects = np.linalg.lstsq(design, [grid.iloc[cell] for cell in others], rcond=None)[0]
    for i, probe in enumerate(grid.index):
        for j, other in enumerate(grid.columns):
            assert value(table, probe, other, "contrast") == pytest.approx(grid.iloc[i, j] - effects[i] - effects[5 + j])
    inside = (table["contrast_low"] <= table["contrast"]) & (table["contrast"] <= table["contrast_high"])
    assert inside.mean() > 0.8


@pytest.mark.parametrize("silent", [1, 3])
def test_probes_without_influence_leave_the_contrasts_of_other_languages(silent: int) -> None:
    generator = np.random.default_rng(6)
    scores, languages = generator.normal(size=(40, 12)), ["a", "b", "c", "d"]
    scores[:, 9 : 9 + silent] = 0.0  # of the three probes of d
    table = reliance_table(scores, languages * 10, list(np.repeat(languages, 3)), k=8, interval=Interval(resamples=199))
    unknown = (table["probe_language"] == "d") & (silent == 3)
    found = table[["value", "contrast", "low", "high", "contrast_low", "contrast_high"]].isna()
    np.testing.assert_array_equal(found, np.repeat(unknown.to_numpy()[:, None], 6, axis=1))


def test_two_languages_have_no_contrast() -> None:
    """Neither effect is known: each language has one other cell."""
    table = reliance_table(SCORES[:, :3], ["de", "de", "en", "en", "en", "de"], PROBES[:3], k=2, measure="sum")
    assert table["contrast"].isna().all()


def test_intervals_of_several_seeds_are_over_the_probes_that_have_a_value_with_each() -> None:
    scores = np.repeat([[2.0] * 3 + [1.0] * 3, [1.0] * 3 + [2.0] * 3], 4, axis=0)  # half of the probes have all of a, half of b
    silent = scores * ([0.0] * 3 + [1.0] * 3)
    tallies = [tally_of(each, ["a"] * 4 + ["b"] * 4, k=2) for each in (scores, silent)]
    table = table_of(tallies, ["a"] * 6, Interval(resamples=99)).set_index("train_language")
    assert table.loc["b", ["value", "low", "high", "probes"]].tolist() == [1, 1, 1, 3]


def test_single_probe_has_no_interval() -> None:
    table = reliance_table(SCORES, TRAIN, PROBES, k=2)
    assert np.isnan(value(table, "en", "en", "low"))
    assert value(table, "de", "de", "low") <= 0.75 <= value(table, "de", "de", "high")


def test_cross_lingual_reliance_is_what_comes_from_other_languages() -> None:
    table = reliance_table(SCORES, TRAIN, PROBES, k=2)
    assert cross_lingual(table).to_dict() == pytest.approx({"de": 0.25, "en": 0.0, "fr": 1.0})
    assert mean_cross_lingual(table) == pytest.approx(0.125)  # fr has no train samples and does not count
