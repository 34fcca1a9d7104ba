"""E6: changes of reliance and their tests."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lightning_tracin import TracInError
from lightning_tracin.analysis.changes import change_table
from lightning_tracin.analysis.reliance import tally_of
from lightning_tracin.analysis.tally import TrainLanguages
from lightning_tracin.storage.sample_table import SampleTable

LANGUAGES = ["en"] * 10 + ["de"] * 10


def leaning(own: float, seed: int, probes: int = 12) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Scores that lift the English train samples by `own`."""
    scores = np.random.default_rng(seed).standard_normal((20, probes))
    scores[:10] += own
    return scores


def test_means_and_p_are_those_of_the_shares() -> None:
    scores = {0: leaning(2.0, 1), 3: leaning(0.0, 2), 4: leaning(-2.0, 3)}
    table = change_table(scores, LANGUAGES, ["en"] * 12, k=5)
    assert list(zip(table["before"], table["after"], strict=True)) == [(0, 3), (3, 4), (0, 4)] * 2
    shares = {snapshot: tally_of(one, LANGUAGES, 5).values() for snapshot, one in scores.items()}
    line = table[(table["train_language"] == "en") & (table["before"] == 0) & (table["after"] == 4)].iloc[0]
    before, after = shares[0][:, 1], shares[4][:, 1]
    assert line["mean_before"] == pytest.approx(before.mean())
    assert line["difference"] == pytest.approx(after.mean() - before.mean())
    assert line["p"] == pytest.approx(stats.wilcoxon(after, before, zero_method="zsplit").pvalue)
    assert line["p"] < 0.01
    assert line["probes"] == 12


def test_p_by_hand() -> None:
    # Six probes that all change in one direction, by different amounts: two-sided exact p = 2 / 2^6.
    scores = np.zeros((20, 6))
    before, after = scores.copy(), scores.copy()
    for probe in range(6):
        order = np.r_[np.arange(10), np.arange(10, 20)]
        before[order, probe] = np.arange(20, 0, -1)  # top 8: all English
        moved = np.r_[np.arange(10, 11 + probe), np.arange(10), np.arange(11 + probe, 20)]
        after[moved, probe] = np.arange(20, 0, -1)  # probe + 1 German ones first
    table = change_table({0: before, 1: after}, LANGUAGES, ["en"] * 6, k=8)
    line = table[table["train_language"] == "de"].iloc[0]
    assert line["mean_after"] == pytest.approx(np.mean(np.arange(1, 7) / 8))
    assert line["p"] == pytest.approx(2 / 2**6)


def test_p_are_corrected_over_all_tests() -> None:
    table = change_table({0: leaning(1.0, 1), 1: leaning(0.5, 2), 2: leaning(0, 3)}, LANGUAGES, ["en"] * 6 + ["de"] * 6, k=5)
    np.testing.assert_allclose(table["p_adjusted"], stats.false_discovery_control(table["p"]))
    assert (table["p_adjusted"] >= table["p"]).all()


def test_a_trend_that_chance_has_is_none() -> None:
    """Labels are told apart at the second snapshot; English has most samples of the probes' label, and nothing else changes."""
    labels = ["a"] * 40 + ["b"] * 10 + ["a"] * 10 + ["b"] * 40
    languages = ["en"] * 50 + ["de"] * 50
    nothing = (None,) * 100
    train = TrainLanguages.of_table(SampleTable(tuple(languages), nothing, ("",) * 100, tuple(labels)))
    false_alarms, trends = [], []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        before, after = generator.standard_normal((2, 100, 20))
        after[[label == "a" for label in labels]] += 3
        lines = change_table({0: before, 1: after}, train, ["en"] * 20, k=10).set_index("train_language")
        line = lines.loc["en"]
        assert line["difference"] > 0.1
        assert line["null_after"] == pytest.approx(0.8, abs=0.05)
        assert line["beyond_null"] == pytest.approx(line["difference"] - (line["null_after"] - line["null_before"]))
        false_alarms.append(line["p"] < 0.05)
        after[:50] += 1
        trends.append(change_table({0: before, 1: after}, train, ["en"] * 20, k=10).set_index("train_language").loc["en", "p"])
    assert np.mean(false_alarms) <= 0.2
    assert np.mean(np.asarray(trends) < 0.05) > 0.5


def test_no_change_has_p_of_one_and_no_influence_none() -> None:
    same = leaning(0.0, 1, probes=3)
    nothing = same.copy()
    nothing[:, 2] = 0
    table = change_table({0: nothing, 1: nothing}, LANGUAGES, ["en", "en", "de"], k=5)
    assert (table[table["probe_language"] == "en"]["p"] == 1).all()
    german = table[table["probe_language"] == "de"]
    assert german["p"].isna().all()
    assert german["p_adjusted"].isna().all()
    assert (german["probes"] == 0).all()


def test_one_snapshot_is_an_error() -> None:
    with pytest.raises(TracInError, match="take at least two"):
        change_table({0: leaning(0, 1)}, LANGUAGES, ["en"] * 12, k=5)
