"""E2: what is removed, and the curve."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_tracin import TracInError
from lightning_tracin.analysis.removal import area_by_deletion, removal_table, without_random, without_top

SCORES = np.array([[3.0, 1.0], [-2.0, -1.0], [0.0, 5.0], [1.0, -4.0]])  # sums 4, -3, 5, -3


def test_the_strongest_for_all_probes_go() -> None:
    assert without_top(SCORES, 2).tolist() == [False, True, False, True]
    assert without_top(SCORES, 1, "negative").tolist() == [True, False, True, True]


def test_random_removals_are_of_the_right_size_and_stay_when_more_are_drawn() -> None:
    kept = without_random(50, 7, draws=60, seed=2)
    assert ((~kept).sum(1) == 7).all()
    np.testing.assert_array_equal(without_random(50, 7, draws=3, seed=2), kept[:3])
    assert (~kept).any(0).all()


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(TracInError, match="k should be between 1 and 3"):
        without_top(SCORES, 4)
    with pytest.raises(TracInError, match="k should be between 1 and 3"):
        without_random(4, 0, 1)


def test_curve_by_hand() -> None:
    base = np.array([0.8, 0.5, 0.4])
    removed = {2: np.array([0.4, 0.25, 0.3]), 1: np.array([0.8, 0.5, 0.4])}
    random = {2: np.array([[0.8, 0.5, 0.4], [0.72, 0.45, 0.36]]), 1: np.array([[0.8, 0.5, 0.4]])}
    table = removal_table(base, removed, random).set_index("k")
    assert list(table.index) == [1, 2]
    assert table.loc[2, "drop"] == pytest.approx((0.5 + 0.5 + 0.25) / 3)
    assert table.loc[2, "random_drop"] == pytest.approx(0.05)
    assert table.loc[2, "excess"] == pytest.approx((0.45 + 0.45 + 0.2) / 3)
    assert table.loc[2, "p"] == pytest.approx(2 / 8)  # three differences, all positive, either way
    assert (table.loc[1, ["drop", "random_drop", "excess"]] == 0).all()
    assert table.loc[1, "p"] == 1
    assert (table.loc[2, "random_lowest"], table.loc[2, "random_highest"]) == (pytest.approx(0), pytest.approx(0.1))


def test_translations_of_an_item_count_once() -> None:
    base, now = np.full(6, 0.5), np.array([0.4, 0.4, 0.4, 0.4, 0.5, 0.3])
    random = np.array([[0.5, 0.5, 0.5, 0.5, 0.5, 0.4]])
    line = removal_table(base, {2: now}, {2: random}, units=["a", "a", "a", "b", None, None]).iloc[0]
    assert line["units"] == 4
    assert line["drop"] == pytest.approx((0.2 + 0.2 + 0.0 + 0.4) / 4)
    assert line["random_highest"] == pytest.approx((0 + 0 + 0 + 0.2) / 4)


def test_area_by_hand() -> None:
    # From 0 at nothing removed to -0.2 at a quarter and -0.4 at a half: triangles and a trapezium.
    np.testing.assert_allclose(area_by_deletion([0.25, 0.5], [[-0.2, 0.0], [-0.4, 0.1]]), [-0.025 - 0.075, 0.0125])


def test_bad_input() -> None:
    with pytest.raises(TracInError, match="no random removals of 3"):
        removal_table([0.5], {3: [0.4]}, {2: [[0.4]]})
    with pytest.raises(TracInError, match="should be positive"):
        removal_table([0.0], {}, {})
    with pytest.raises(TracInError, match="At k = 3"):
        removal_table([0.5], {3: [0.4, 0.3]}, {3: [[0.4]]})
    with pytest.raises(TracInError, match="ascend"):
        area_by_deletion([0.5, 0.25], [[0.0], [0.0]])
    with pytest.raises(TracInError, match="changes for 1 removed fractions"):
        area_by_deletion([0.5], [0.0])
