"""How train samples are dealt out and drawn, together with probes."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_tracin.analysis.resampling import NO_INTERVAL, Interval, Weights, bootstrap_mean, by_unit, random_groups


def test_many_samples_are_dealt_out_evenly_by_size_and_language_and_items_stay_whole() -> None:
    languages, items = ["a", "b", "c"] * 1000, [number // 3 for number in range(3000)]
    group = random_groups(languages, items)
    assert len(set(group)) == 100
    counts = np.array([np.bincount(group[np.array(languages) == language], minlength=100) for language in "abc"])
    assert (counts == 10).all()
    assert all(len(set(group[3 * item : 3 * item + 3])) == 1 for item in range(1000))
    alone = random_groups(["a", "a", "b"] * 100)
    assert sorted(alone) == list(range(300))  # few samples are groups of their own
    by_language = np.bincount(random_groups(["a"] * 900 + ["b"] * 300)[900:], minlength=100)
    assert (by_language == 3).all()


def test_groups_and_units_are_drawn_as_often_as_there_are_and_languages_without_common_units_apart() -> None:
    languages, units = ["a", "b", "a", "b", "c", "c"], ["1", "1", "2", "2", "3", "4"]
    train, probes = Weights(5, languages, units, Interval(seed=3)).draw(4000)
    assert (train.sum(1) == 5).all()
    np.testing.assert_array_equal(probes[:, 0], probes[:, 1])
    assert (probes[:, [0, 2]].sum(1) == 2).all()  # the translated ones
    assert (probes[:, 4:].sum(1) == 2).all()  # those that are not
    np.testing.assert_allclose(train.mean(0), 1, atol=0.06)
    np.testing.assert_allclose(train.var(0), 1 - 1 / 5, atol=0.08)  # multinomial
    assert abs(np.corrcoef(train[:, 0], probes[:, 0])[0, 1]) < 0.06


@pytest.mark.parametrize("design", ["parallel", "disjoint", "missing", "few"])
def test_draws_vary_as_other_probes_would(design: str) -> None:
    """Means of four languages, and differences of two, over 60 items with an effect of the item; oracle: other items."""
    generator, names = np.random.default_rng(0), np.array(list("abcd"))
    here = {
        "parallel": np.ones((60, 4), dtype=bool),
        "disjoint": np.eye(4, dtype=bool)[np.arange(60) % 4],
        "missing": generator.random((60, 4)) < 0.6,
        "few": np.concatenate([np.ones((5, 4), dtype=bool), np.eye(4, dtype=bool)[np.arange(55) % 4]]),
    }[design]
    item, column = np.nonzero(here)
    mine = (column == np.arange(4)[:, None]).astype(float)

    def spread(means: np.ndarray) -> np.ndarray:
        return np.concatenate([np.std(means, axis=0), np.std(means[:, 1:] - means[:, :-1], axis=0)])

    def values() -> np.ndarray:
        return generator.normal(size=60)[item] + 0.5 * generator.normal(size=len(item))

    truth = spread(np.stack([mine @ values() / mine.sum(1) for _ in range(2000)]))
    found = []
    for seed in range(100):
        _, drawn = Weights(1, names[column].tolist(), item.tolist(), Interval(seed=seed)).draw(200)
        found.append(spread((drawn * values()) @ mine.T / (drawn @ mine.T)))
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(found), axis=0)), truth, rtol=0.1)


def test_draws_go_on_where_they_stopped() -> None:
    once = Weights(5, ["a"] * 4, None, Interval()), Weights(5, ["a"] * 4, None, Interval())
    first, second = once[0].draw(2)[1], once[0].draw(2)[1]
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(once[1].draw(2)[1], first)


def test_bounds_are_percentiles_and_no_interval_has_none() -> None:
    draws = np.arange(101.0)[:, None]
    low, high = Interval(confidence=0.9).bounds(draws)
    assert (low[0], high[0]) == pytest.approx((5, 95))
    assert NO_INTERVAL.resamples == 0


def test_bounds_ignore_unknown_draws_unless_they_are_most() -> None:
    draws = np.stack([np.arange(101.0)] * 3, axis=1)
    draws[1::2, 0], draws[:51, 1] = np.nan, np.inf  # 51 of 101 are known, and 50
    low, high = Interval(confidence=0.9).bounds(draws)
    np.testing.assert_allclose([low, high], [[5, np.nan, 5], [95, np.nan, 95]])


def test_translations_of_an_item_are_one_unit() -> None:
    values = np.array([[1.0], [np.nan], [3.0], [5.0]])
    np.testing.assert_array_equal(by_unit(values, ["1", "1", "1", None]), [[2.0], [5.0]])
    low, high = bootstrap_mean(np.array([[4.0]]), Interval())
    assert np.isnan([low, high]).all()
