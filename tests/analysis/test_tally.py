"""Tallies of scores that arrive in blocks, and what they become when samples are drawn again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lightning_tracin.analysis.resampling import Interval, Weights
from lightning_tracin.analysis.tally import Tally, TrainLanguages
from lightning_tracin.errors import TracInError

LANGUAGES, PROBES = list("aabbbcca"), list("xxxyyz")
SCORES = np.random.default_rng(0).normal(size=(8, 6))


def filled(measure: Any, *blocks: Any, k: int = 3) -> Tally:
    tally = Tally(TrainLanguages.of(LANGUAGES), k, "positive", measure)
    for block in blocks or (range(8),):
        tally.add(np.asarray(block), SCORES[np.asarray(block)])
    return tally


@pytest.mark.parametrize("measure", ["sum", "mean", "share", "mass"])
def test_blocks_in_any_order_say_the_same(measure: Any) -> None:
    whole, parts = filled(measure), filled(measure, [6, 1], [7, 0, 3], [5, 2, 4])
    np.testing.assert_allclose(parts.values(), whole.values(), rtol=1e-12)
    np.testing.assert_allclose(parts.chance(), whole.chance(), rtol=1e-12)
    drawn = [tally.draws(PROBES, None, Interval(resamples=50)) for tally in (parts, whole)]
    np.testing.assert_allclose(drawn[0], drawn[1], rtol=1e-12)


def again(train: np.ndarray, probes: np.ndarray, measure: str, k: int) -> np.ndarray:
    """The measure of data in which each sample stands as often as it was drawn: [probe languages, train languages]."""
    rows = np.repeat(np.arange(8), train.astype(int))
    ranked = {probe: rows[np.argsort(-SCORES[rows, probe], kind="stable")] for probe in range(6)}
    found = np.full((3, 3), np.nan)
    for i, probe_language in enumerate("xyz"):
        columns = [p for p in range(6) for _ in range(int(probes[p])) if PROBES[p] == probe_language]
        for j, language in enumerate("abc"):
            mine = rows[np.array(LANGUAGES)[rows] == language]
            if measure == "share":
                each = [np.mean(np.array(LANGUAGES)[ranked[p][:k]] == language) for p in columns]
            else:  # a sum is the mean times the number of samples that there are
                count = LANGUAGES.count(language) if measure == "sum" else 1
                each = [SCORES[mine, p].mean() * count if len(mine) else 0.0 for p in columns]
            found[i, j] = np.mean(each) if columns else np.nan
    return found


@pytest.mark.parametrize("measure", ["sum", "mean", "share"])
def test_draws_are_the_measure_of_the_data_drawn(measure: Any) -> None:
    tally, interval = filled(measure), Interval(resamples=40, seed=5)
    train, probes = Weights(8, PROBES, None, interval).draw(40)
    group = tally.train.group
    found = tally.draws(PROBES, None, interval)
    for number in range(40):
        np.testing.assert_allclose(found[number], again(train[number][group], probes[number], measure, 3), atol=1e-12)


def test_masses_of_every_resample_add_up_to_one() -> None:
    """Also where a probe's only supporting train samples are not drawn."""
    tally = Tally(LANGUAGES, 3, measure="mass")
    scores = np.abs(SCORES)
    scores[1:, 0] = -1.0
    tally.add(np.arange(8), scores)
    draws = tally.draws(PROBES, None, Interval(resamples=200)).sum(2)
    assert np.isfinite(draws).any(0).all()
    np.testing.assert_allclose(draws[np.isfinite(draws)], 1.0)


def test_a_probe_that_feels_nothing_has_no_share() -> None:
    tally = Tally(LANGUAGES, 2)
    tally.add(np.arange(8), np.where([True, False], SCORES[:, :2], 0.0))
    assert np.isfinite(tally.values()[0]).all()
    assert np.isnan([tally.values()[1], tally.chance()[1]]).all()


def test_measures_and_signs_that_do_not_exist_are_named() -> None:
    with pytest.raises(TracInError, match=r"measure should be one of 'sum', 'mean', 'share', 'mass', but is 'total'"):
        Tally(LANGUAGES, 2, measure="total")  # type: ignore[arg-type]
    with pytest.raises(TracInError, match=r"measure='mean' adds up influence with its sign, so there is none to choose"):
        Tally(LANGUAGES, 2, "negative", "mean")
    with pytest.raises(TracInError, match=r"k should be between 1 and the number of train samples \(8\), but is 9"):
        Tally(LANGUAGES, 9)
    assert Tally(LANGUAGES, 9, measure="sum").languages == ["a", "b", "c"]  # k counts for shares only
