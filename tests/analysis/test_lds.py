"""Subsets and LDS on cases worked out by hand, against scipy probe by probe, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lightning_tracin import TracInError
from lightning_tracin.analysis.lds import (
    draw_subsets,
    lds,
    lds_difference,
    lds_per_probe,
    lds_within_class,
    repeatability,
    resampled,
)
from lightning_tracin.analysis.resampling import Interval

# Three train samples, two of them in each of three subsets: {0, 1}, {0, 2}, {1, 2}.
MEMBERS = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]], dtype=bool)
# Summed influence on the first probe 5, 3, 4; on the second 0, 5, 3.
SCORES = np.array([[2.0, 1.0], [3.0, -1.0], [1.0, 4.0]])


def test_lds_by_hand() -> None:
    outputs = np.array([[9.0, 0.1], [7.0, 0.9], [8.0, 0.2]])  # ranks 3 1 2 and 1 3 2: as summed
    np.testing.assert_allclose(lds_per_probe(SCORES, MEMBERS, outputs), [1, 1])
    np.testing.assert_allclose(lds_per_probe(SCORES, MEMBERS, -outputs), [-1, -1])
    outputs[:, 1] = [0.9, 0.2, 0.1]  # ranks 3 2 1 against 1 3 2: 1 - 6 (4 + 1 + 1) / (3 * 8)
    np.testing.assert_allclose(lds_per_probe(SCORES, MEMBERS, outputs), [1, -0.5])
    assert lds(SCORES, MEMBERS, outputs).value == pytest.approx(0.25)


def test_lds_with_ties_equals_scipys_spearman() -> None:
    generator = np.random.default_rng(0)
    scores = generator.integers(-1, 2, size=(30, 7)).astype(float)
    members, outputs = draw_subsets(30, 20), generator.integers(0, 5, size=(20, 7)).astype(float)
    want = [stats.spearmanr(members @ scores[:, j], outputs[:, j]).statistic for j in range(7)]
    np.testing.assert_allclose(lds_per_probe(scores, members, outputs), want)


def test_probe_whose_summed_influence_is_constant_has_no_correlation_and_does_not_count() -> None:
    scores = SCORES.copy()
    scores[:, 1] = 7.0
    outputs = np.array([[9.0, 0.1], [7.0, 0.9], [8.0, 0.2]])
    correlations = lds_per_probe(scores, MEMBERS, outputs)
    assert correlations[0] == pytest.approx(1)
    assert np.isnan(correlations[1])
    found = lds(scores, MEMBERS, outputs)
    assert (found.value, found.probes) == (pytest.approx(1), 1)


def test_repeatability_by_hand() -> None:
    outputs = np.array([[9.0, 0.1], [7.0, 0.9], [8.0, 0.2]])
    again = np.array([[3.0, 0.9], [1.0, 0.2], [2.0, 0.1]])  # 1 and -0.5, as above
    assert repeatability(outputs, again) == pytest.approx(0.25)


def test_no_correlation_at_all_is_an_error() -> None:
    with pytest.raises(TracInError, match="the same for all subsets"):
        lds(np.ones((3, 2)), MEMBERS, np.arange(6.0).reshape(3, 2))


def test_subsets_are_halves_drawn_evenly_and_stay_when_more_are_drawn() -> None:
    members = draw_subsets(100, 400, seed=3)
    assert (members.sum(1) == 50).all()
    assert np.abs(members.mean(0) - 0.5).max() < 5 * 0.5 / np.sqrt(400)
    np.testing.assert_array_equal(draw_subsets(100, 40, seed=3), members[:40])
    assert not np.array_equal(draw_subsets(100, 40, seed=4), members[:40])
    assert (draw_subsets(10, 3, fraction=0.3).sum(1) == 3).all()


def test_impossible_fraction() -> None:
    with pytest.raises(TracInError, match=r"fraction=0.1 of 4 train samples is 0"):
        draw_subsets(4, 3, fraction=0.1)
    with pytest.raises(TracInError, match="leave some out"):
        draw_subsets(4, 3, fraction=1.0)


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(TracInError, match=r"scores \[3, 2\] should be \[train, probes\].*outputs \[3, 5\]"):
        lds_per_probe(SCORES, MEMBERS, np.zeros((3, 5)))
    with pytest.raises(TracInError, match="There are 2 subsets, but a rank correlation needs at least 3"):
        lds_per_probe(SCORES, MEMBERS[:2], np.zeros((2, 2)))


def test_resamples_are_lds_of_the_subsets_and_probes_that_were_drawn() -> None:
    generator = np.random.default_rng(0)
    predicted, outputs = generator.integers(0, 9, size=(2, 12, 5)).astype(float)
    got = resampled(predicted, outputs, Interval(resamples=3, seed=4))
    generator = np.random.default_rng(4)
    drawn = [generator.multinomial(n, np.full(n, 1 / n), 3) for n in (12, 5)]
    for value, times_row, times_column in zip(got, *drawn, strict=True):
        rows, columns = np.repeat(np.arange(12), times_row), np.repeat(np.arange(5), times_column)
        each = [stats.spearmanr(predicted[rows, j], outputs[rows, j]).statistic for j in columns]
        assert value == pytest.approx(np.mean(each))


def test_probes_of_an_item_are_drawn_together() -> None:
    generator = np.random.default_rng(0)
    predicted, outputs = generator.integers(0, 9, size=(2, 12, 6)).astype(float)
    got = resampled(predicted, outputs, Interval(resamples=3, seed=4), units=["1", "2", "3", "1", "2", "3"])
    generator = np.random.default_rng(4)
    drawn = [generator.multinomial(n, np.full(n, 1 / n), 3) for n in (12, 3)]
    for value, times_row, times_item in zip(got, *drawn, strict=True):
        rows, items = np.repeat(np.arange(12), times_row), np.repeat(np.arange(3), times_item)
        columns = [column for item in items for column in (item, item + 3)]
        each = [stats.spearmanr(predicted[rows, j], outputs[rows, j]).statistic for j in columns]
        assert value == pytest.approx(np.mean(each))


def test_translated_probes_make_the_interval_wider() -> None:
    """Four copies of every probe say no more than one: by items, the interval is that of the probes alone."""
    scores, members, outputs = world(np.random.default_rng(3), 40, 10, 3.0)
    alone = lds(scores, members, outputs)
    copies = [np.tile(table, 4) for table in (scores, outputs)]
    by_probe = lds(copies[0], members, copies[1])
    by_item = lds(copies[0], members, copies[1], units=[str(probe % 10) for probe in range(40)])
    assert by_item.high - by_item.low == pytest.approx(alone.high - alone.low)
    assert by_probe.high - by_probe.low < 0.95 * (by_item.high - by_item.low)


def world(generator: np.random.Generator, subsets: int, probes: int, noise: float) -> tuple[np.ndarray, ...]:
    """Outputs that are a sum of true influences and of noise that the probes of a subset partly share."""
    truth = generator.normal(size=(40, probes))
    members = generator.permuted(np.tile(np.arange(40) < 20, (subsets, 1)), axis=1)
    shared = generator.normal(size=(subsets, 1)) + generator.normal(size=(subsets, probes))
    return truth, members, members @ truth + noise * shared


def test_interval_covers_the_true_lds_as_often_as_it_says() -> None:
    """The truth is that of very many subsets and probes; the 95 % intervals hold it about 95 times of 100."""
    generator = np.random.default_rng(1)
    truth = lds_per_probe(*world(generator, 2000, 100, 3.0)).mean()
    hits = 0
    for trial in range(100):
        found = lds(*world(generator, 40, 30, 3.0), Interval(resamples=200, seed=trial))
        hits += found.low <= truth <= found.high
    assert 90 <= hits <= 100


def test_difference_is_paired_and_its_interval_tells_better_from_equal() -> None:
    generator = np.random.default_rng(2)
    truth, members, outputs = world(generator, 40, 50, 3.0)
    blurred = truth + generator.normal(size=truth.shape)
    better = lds_difference(truth, blurred, members, outputs)
    assert better.value == pytest.approx(lds(truth, members, outputs).value - lds(blurred, members, outputs).value)
    assert better.low > 0
    same = lds_difference(truth, truth * 2, members, outputs)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    one, other = (truth + generator.normal(size=truth.shape) for _ in range(2))
    equal = lds_difference(one, other, members, outputs)
    assert equal.low < 0 < equal.high


def test_a_difference_and_its_interval_are_over_the_same_probes() -> None:
    """Half of the probes have no other score; the first score is perfect there and worse than the other elsewhere."""
    generator = np.random.default_rng(4)
    truth, members, outputs = world(generator, 40, 60, 0.0)
    scores, others = truth.copy(), truth.copy()
    scores[:, 30:] += 2 * generator.normal(size=(40, 30))
    others[:, :30] = 0.0
    found = lds_difference(scores, others, members, outputs)
    assert found.probes == 30
    assert found.low < found.value < found.high
    alone = lds_difference(scores[:, 30:], others[:, 30:], members, outputs[:, 30:])
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high), abs=0.03)


def test_within_class_equals_the_partial_correlation_of_ranks() -> None:
    generator = np.random.default_rng(0)
    train_labels, probe_labels = [str(i % 2) for i in range(40)], ["0", "1", "1"]
    members, scores = draw_subsets(40, 30), generator.standard_normal((40, 3))
    outputs = generator.standard_normal((30, 3))
    found = lds_within_class(scores, members, outputs, train_labels, probe_labels)
    for probe, label in enumerate(probe_labels):
        counts = (members & (np.asarray(train_labels) == label)).sum(1)
        xy, xz, yz = (
            stats.spearmanr(one, other).statistic
            for one, other in (
                (members @ scores[:, probe], outputs[:, probe]),
                (members @ scores[:, probe], counts),
                (outputs[:, probe], counts),
            )
        )
        assert found[probe] == pytest.approx((xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2)))


def test_labels_alone_say_nothing_within_a_class() -> None:
    generator = np.random.default_rng(1)
    train_labels, probe_labels = [str(i % 2) for i in range(60)], ["0", "1"]
    members, true = draw_subsets(60, 200), generator.standard_normal((60, 2))
    by_label = np.where(np.asarray(train_labels)[:, None] == np.asarray(probe_labels), 1.0, -1.0)
    outputs = members @ (true + 3 * by_label)
    assert (lds_per_probe(by_label, members, outputs) > 0.7).all()
    assert np.isnan(lds_within_class(by_label, members, outputs, train_labels, probe_labels)).all()
    assert (lds_within_class(true, members, outputs, train_labels, probe_labels) > 0.85).all()
    with pytest.raises(TracInError, match="59 and 2 labels"):
        lds_within_class(true, members, outputs, train_labels[1:], probe_labels)
