"""Contributions by hand: small accounts whose every number is known."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lightning_tracin import TracInError
from lightning_tracin.analysis.contributions import UNEXPLAINED, contribution_table, strongest_contributions, whole_fit
from lightning_tracin.analysis.resampling import NO_INTERVAL, Interval
from lightning_tracin.storage.account import AccountStore
from tests.support.accounts import append, record_of, small_account, with_samples


def table_of(store: AccountStore, **asked: object) -> pd.DataFrame:
    return contribution_table(store.record(), store.windows(), **asked)  # type: ignore[arg-type]


def row(table: pd.DataFrame, probe: str, train: str, window: int = 1, is_group: bool | None = None) -> pd.Series:
    chosen = table[(table["window"] == window) & (table.iloc[:, 4] == probe) & (table.iloc[:, 5] == train)]
    if is_group is not None:
        chosen = chosen[chosen["is_group"] == is_group]
    (index,) = chosen.index
    return chosen.loc[index]


def test_rows_are_means_over_the_queries_and_what_is_left_is_unexplained(tmp_path: Path) -> None:
    table = table_of(small_account(tmp_path))
    assert list(table.columns) == [
        *("window", "first_step", "step", "epoch", "probe_language", "train_language", "nats", "low", "high", "fall"),
        *("probes", "loss", "measured", "samples", "is_group"),
    ]
    assert table["train_language"].tolist() == ["de", "en", "decay", "unexplained"] * 4
    assert table["probe_language"].tolist() == (["de"] * 4 + ["fr"] * 4) * 2
    assert table[["window", "first_step", "step", "epoch"]].drop_duplicates().to_numpy().tolist() == [[1, 1, 2, 1], [2, 3, 4, 2]]
    first = row(table, "de", "de")
    assert first["nats"] == pytest.approx((0.3 + 0.4) / 2)
    assert first["fall"] == pytest.approx((0.5 + 0.6) / 2)
    assert first["loss"] == pytest.approx((2.5 + 2.6) / 2)
    assert (first["probes"], first["samples"], first["is_group"]) == (2, 4, True)
    left = row(table, "fr", "unexplained", 2)
    assert left["nats"] == pytest.approx((0.2 + 0.2) / 2 - (-0.05 + 0.25 + 0.01))
    assert (left["samples"], left["is_group"]) == (0, False)
    sums = table.groupby(["window", "probe_language"])[["nats", "fall"]].agg({"nats": "sum", "fall": "first"})
    np.testing.assert_allclose(sums["nats"], sums["fall"])


def test_what_is_measured_beside_the_queries(tmp_path: Path) -> None:
    store = AccountStore(tmp_path)
    store.write(record_of(("de", "fr", "de", "de"), queries=(2, 1)))
    append(store, {"en": [0.5, 0.25]}, [2.0, 3.0, 4.0, 5.0], [1.0, 2.5, 3.5, 5.0])
    table = table_of(store)
    german = row(table, "de", "en")
    assert (german["nats"], german["fall"], german["probes"], german["loss"]) == (0.5, 0.5, 1, 3.5)
    assert german["measured"] == pytest.approx((1.0 + 0.5 + 0.0) / 3)
    assert row(table, "fr", "en")["nats"] == 0.25
    assert row(table, "fr", "unexplained")["nats"] == 0.25


def test_groups_without_queries_have_no_rows(tmp_path: Path) -> None:
    store = AccountStore(tmp_path)
    store.write(record_of(("de", "fr"), queries=(0,)))
    append(store, {"en": [0.5]}, [2.0, 3.0], [1.0, 2.5])
    assert set(table_of(store)["probe_language"]) == {"de"}


def test_cumulative_sums_and_a_group_that_comes_later(tmp_path: Path) -> None:
    store = AccountStore(tmp_path)
    store.write(record_of(("de",)))
    append(store, {"en": [0.5], "momentum": [0.0]}, [3.0], [2.5])
    append(store, {"ar": [0.25], "en": [0.125]}, [2.5], [2.0])
    append(store, {"en": [0.25]}, [2.0], [1.75])
    table = table_of(store, cumulative=True)
    assert table["train_language"].tolist() == ["ar", "en", "unexplained"] * 3  # momentum is zero throughout
    assert [row(table, "de", "ar", window)["nats"] for window in (1, 2, 3)] == [0, 0.25, 0.25]
    assert [row(table, "de", "en", window)["nats"] for window in (1, 2, 3)] == [0.5, 0.625, 0.875]
    assert [row(table, "de", "en", window)["samples"] for window in (1, 2, 3)] == [4, 8, 12]
    assert [row(table, "de", "en", window)["fall"] for window in (1, 2, 3)] == [0.5, 1.0, 1.25]
    assert [row(table, "de", "en", window)["loss"] for window in (1, 2, 3)] == [2.5, 2.0, 1.75]
    assert [row(table, "de", "en", window)["measured"] for window in (1, 2, 3)] == [0.5, 1.0, 1.25]
    pd.testing.assert_frame_equal(whole_fit(table), table.iloc[-3:].reset_index(drop=True))


def test_other_sources_are_rows_where_they_do_something(tmp_path: Path) -> None:
    store = AccountStore(tmp_path)
    store.write(record_of(("de",)))
    append(store, {"undivided": [0.0], "momentum": [0.125], "decay": [0.0], "en": [0.5]}, [3.0], [2.5])
    append(store, {"undivided": [0.25], "momentum": [0.0], "decay": [0.0], "en": [0.5]}, [2.5], [2.0])
    table = table_of(store)
    assert table["train_language"].tolist() == ["en", "momentum", "undivided", "unexplained"] * 2


def test_train_groups_with_the_names_of_other_sources_stay_apart(tmp_path: Path) -> None:
    store = AccountStore(tmp_path)
    store.write(record_of(("unexplained",)))
    nats = {("decay", True): [0.5], ("decay", False): [-0.25], (UNEXPLAINED, True): [1.0]}
    append(store, nats, [3.0], [2.0])
    table = table_of(store)
    assert row(table, "unexplained", "decay", is_group=True)["nats"] == 0.5
    assert row(table, "unexplained", "decay", is_group=False)["nats"] == -0.25
    assert row(table, "unexplained", UNEXPLAINED, is_group=True)["nats"] == 1.0
    assert row(table, "unexplained", UNEXPLAINED, is_group=False)["nats"] == -0.25
    assert table["is_group"].tolist() == [True, True, False, False]


def test_groups_of_another_column(tmp_path: Path) -> None:
    table = table_of(small_account(tmp_path, by="domain"))
    assert list(table.columns[4:6]) == ["probe_domain", "train_domain"]


def test_shares_are_of_the_measured_fall(tmp_path: Path) -> None:
    store = AccountStore(tmp_path)
    store.write(record_of(("de", "de", "fr"), items=("1", "2", "1")))
    append(store, {"en": [0.5, 0.25, 0.5]}, [3.0, 3.0, 3.0], [2.5, 2.0, 3.5])
    plain, table = table_of(store), table_of(store, share=True)
    shown = row(table, "de", "en")
    assert shown["nats"] == pytest.approx(0.375 / 0.75)
    assert (shown["low"], shown["high"]) == (pytest.approx(0.25 / 0.75), pytest.approx(0.5 / 0.75))
    assert shown["fall"] == row(plain, "de", "en")["fall"] == 0.75
    assert table[table["probe_language"] == "fr"][["nats", "low", "high"]].isna().all(axis=None)  # its loss rose


def test_intervals_draw_items_not_probes(tmp_path: Path) -> None:
    """Against a plain loop of draws: an item's probes come together, and a probe without an item comes alone."""
    items = ("a", "a", "a", "b", None, None)
    values = np.array([1.0, 2.0, 3.0, 6.0, 7.0, 9.0])
    store = AccountStore(tmp_path)
    store.write(record_of(("de",) * 6, items=items))
    append(store, {"en": values.tolist()}, [20.0] * 6, [20.0] * 6)
    generator, units = np.random.default_rng(5), [[0, 1, 2], [3], [4], [5]]
    means = []
    for _ in range(20_000):
        drawn = np.concatenate([units[i] for i in generator.integers(0, 4, 4)])
        means.append(values[drawn].mean())
    found = row(table_of(store, interval=Interval(resamples=20_000)), "de", "en")
    assert found[["low", "high"]].tolist() == pytest.approx(np.quantile(means, [0.025, 0.975]).tolist(), abs=0.05)
    left = row(table_of(store, interval=Interval(resamples=20_000)), "de", "unexplained")
    assert left[["low", "high"]].tolist() == pytest.approx([-found["high"], -found["low"]])


def test_intervals_are_the_same_each_time_and_of_sums_over_windows(tmp_path: Path) -> None:
    """What one query gains and loses again in two windows has no part in the interval of the sum."""
    store = AccountStore(tmp_path)
    store.write(record_of(("de",) * 4))
    append(store, {"en": [1.0, -1.0, 3.0, -3.0]}, [2.0] * 4, [2.0] * 4)
    append(store, {"en": [-0.5, 1.5, -2.5, 3.5]}, [2.0] * 4, [2.0] * 4)
    table = table_of(store)
    pd.testing.assert_frame_equal(table, table_of(store))
    assert row(table, "de", "en", 1)["high"] > 1
    whole = row(table_of(store, cumulative=True), "de", "en", 2)
    assert whole[["nats", "low", "high"]].tolist() == pytest.approx([0.5, 0.5, 0.5])


def test_one_item_has_no_interval(tmp_path: Path) -> None:
    store = AccountStore(tmp_path)
    store.write(record_of(("de", "de", "fr", "fr"), items=("1", "1", "1", "2")))
    append(store, {"en": [0.5, 0.25, 0.5, 0.75]}, [3.0] * 4, [2.5] * 4)
    table = table_of(store)
    assert row(table, "de", "en")[["low", "high"]].isna().all()
    assert row(table, "fr", "en")[["low", "high"]].tolist() == [0.5, 0.75]
    assert table_of(store, interval=NO_INTERVAL)[["low", "high"]].isna().all(axis=None)


def test_skipped_steps_widen_the_interval(tmp_path: Path) -> None:
    """Every query alike, so that the bootstrap has no width; windows of 0.1, 0.4 and 0.2 have differences of 0.3 and -0.2."""
    store = AccountStore(tmp_path)
    store.write(record_of(("de", "de"), every_n_steps=4))
    for nats in (0.1, 0.4, 0.2):
        append(store, {"en": [nats, nats]}, [3.0, 3.0], [2.5, 2.5])
    variance = (0.3**2 + 0.2**2) / 2 / 2 * (1 - 1 / 4)
    half = 1.959964 * np.sqrt(variance)
    for window, nats in enumerate((0.1, 0.4, 0.2), 1):
        found = row(table_of(store), "de", "en", window)
        assert found[["low", "high"]].tolist() == pytest.approx([nats - half, nats + half])
    whole = table_of(store, cumulative=True)
    assert row(whole, "de", "en", 1)[["low", "high"]].isna().all()  # one window does not show how windows differ
    second = 1.959964 * np.sqrt(2 * 0.3**2 / 2 * 0.75)
    assert row(whole, "de", "en", 2)[["low", "high"]].tolist() == pytest.approx([0.5 - second, 0.5 + second])
    third = half * np.sqrt(3)
    assert row(whole, "de", "en", 3)[["low", "high"]].tolist() == pytest.approx([0.7 - third, 0.7 + third])


def test_both_errors_add_as_variances(tmp_path: Path) -> None:
    store, plain = AccountStore(tmp_path / "skips"), AccountStore(tmp_path / "plain")
    for one, steps in ((store, 2), (plain, 1)):
        one.write(record_of(("de", "de", "de"), every_n_steps=steps))
        append(one, {"en": [0.1, 0.3, 0.8]}, [3.0] * 3, [2.5] * 3)
        append(one, {"en": [0.5, 0.2, 0.9]}, [3.0] * 3, [2.5] * 3)
    drawn = row(table_of(plain, cumulative=True), "de", "en", 2)
    difference = 1.6 / 3 - 1.2 / 3
    step = 1.959964**2 * 2 * difference**2 / 2 * 0.5
    found = row(table_of(store, cumulative=True), "de", "en", 2)
    assert found["nats"] - found["low"] == pytest.approx(np.sqrt((drawn["nats"] - drawn["low"]) ** 2 + step))
    assert found["high"] - found["nats"] == pytest.approx(np.sqrt((drawn["high"] - drawn["nats"]) ** 2 + step))


def test_an_account_without_windows_has_an_empty_table(tmp_path: Path) -> None:
    store = AccountStore(tmp_path)
    store.write(record_of(("de",)))
    table = table_of(store, cumulative=True)
    assert len(table) == len(whole_fit(table)) == 0
    assert "probe_language" in table


def test_many_windows_take_seconds(tmp_path: Path) -> None:
    generator, groups = np.random.default_rng(0), [f"l{index}" for index in range(8)]
    store = AccountStore(tmp_path)
    store.write(record_of([group for group in groups for _ in range(50)], items=tuple(map(str, range(50))) * 8))
    for _ in range(100):
        nats = {group: generator.standard_normal(400).tolist() for group in groups}
        append(store, nats, [3.0] * 400, [2.5] * 400)
    started = time.monotonic()
    assert len(table_of(store, cumulative=True)) == 100 * 8 * 9
    assert time.monotonic() - started < 10


def test_samples_with_the_largest_contributions(tmp_path: Path) -> None:
    store = small_account(tmp_path)
    with_samples(store)
    found = strongest_contributions(store, "fr", k=2)
    assert list(found.columns) == ["train", "item", "language", "label", "score", "text"]
    assert found.drop(columns="score").fillna("").to_numpy().tolist() == [[1, "1", "en", "", "Hello"], [2, "", "en", "b", "Bye"]]
    assert found["score"].tolist() == pytest.approx([0.6, 0.3])
    assert strongest_contributions(store, "de", k=3, sign="negative")["train"].tolist() == [2, 1, 0]


def test_samples_that_cannot_be_asked_for(tmp_path: Path) -> None:
    store = small_account(tmp_path)
    with pytest.raises(TracInError, match=r"kept with `ContributionCallback\(samples=True\)`"):
        strongest_contributions(store, "fr", k=1)
    with_samples(store)
    with pytest.raises(TracInError, match="There is no probe language 'uk'; the account has de, fr"):
        strongest_contributions(store, "uk", k=1)
    with pytest.raises(TracInError, match=r"k should be between 1 and the number of train samples \(3\), but is 4"):
        strongest_contributions(store, "fr", k=4)
