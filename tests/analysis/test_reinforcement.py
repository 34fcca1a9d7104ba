"""E5 on a case worked out by hand."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from lightning_tracin import TracInError
from lightning_tracin.analysis.reinforcement import ALL, reinforcement_table
from lightning_tracin.storage.sample_table import SampleTable


def samples(pairs: list[tuple[str, str | None]]) -> SampleTable:
    languages, items = zip(*pairs, strict=True)
    nothing = (None,) * len(pairs)
    return SampleTable(languages, items, ("",) * len(pairs), nothing)


# en 1, en 2, de 1, de 2, fr 1, fr 3
TRAIN = samples([("en", "1"), ("en", "2"), ("de", "1"), ("de", "2"), ("fr", "1"), ("fr", "3")])


def scores(*tops: list[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Scores that rank these train samples first, one column a probe."""
    columns = []
    for top in tops:
        column = np.zeros(6)
        column[top] = range(len(top), 0, -1)
        columns.append(column)
    return np.stack(columns, 1)


def test_by_hand() -> None:
    # Probe 0 (en): en 1, de 1, de 2, fr 3: of three from others, de 1 says en 1 again.
    # Probe 1 (en): en 2, de 2, fr 1, de 1: one of three.
    # Probe 2 (de): en 1, de 1, en 2, fr 1: en 1 and fr 1 say de 1 again.
    table = reinforcement_table(scores([0, 2, 3, 5], [1, 3, 4, 2], [0, 2, 1, 4]), TRAIN, ["en", "en", "de"], k=4)
    by = table.set_index(["probe_language", "train_language"])
    assert by.loc[("en", ALL), "reinforcing"] == pytest.approx(1 / 3)
    assert by.loc[("en", ALL), "complementary"] == pytest.approx(2 / 3)
    assert by.loc[("en", ALL), "samples"] == 6
    assert by.loc[("en", "de"), "reinforcing"] == pytest.approx(1 / 2)
    assert by.loc[("en", "fr"), "reinforcing"] == 0
    assert by.loc[("de", ALL), "reinforcing"] == pytest.approx(2 / 3)
    assert by.loc[("de", "en"), "reinforcing"] == pytest.approx(1 / 2)
    assert by.loc[("de", "fr"), "reinforcing"] == 1
    # Either en probe has one of two en samples in its top: a translation is it in half of the cases. fr 3 has none.
    assert by.loc[("en", ALL), "chance"] == pytest.approx((np.mean([1 / 2, 1 / 2, 0]) + 1 / 2) / 2)
    assert by.loc[("en", "fr"), "chance"] == pytest.approx((0 + 1 / 2) / 2)


def test_chance_is_what_exchanging_the_own_language_samples_of_a_label_gives() -> None:
    """Oracle: every choice of as many own-language samples of each label as the top has, enumerated."""
    pairs = [(language, str(item)) for language in ("en", "de", "fr") for item in range(6) if (language, item) != ("en", 4)]
    train = dataclasses.replace(samples(pairs), label=tuple("ab"[int(item) % 2] for _, item in pairs))
    generator = np.random.default_rng(1)
    tops = [list(generator.choice(len(pairs), 8, replace=False)) for _ in range(5)]
    ranks = np.zeros((len(pairs), 5))
    for probe, top in enumerate(tops):
        ranks[top, probe] = range(8, 0, -1)
    own = {label: [i for i, pair in enumerate(pairs) if pair[0] == "en" and train.label[i] == label] for label in "ab"}
    place = {pair: i for i, pair in enumerate(pairs)}
    expected = []
    for top in tops:
        counts = [sum(i in top for i in own[label]) for label in "ab"]
        others = [i for i in top if pairs[i][0] != "en"]
        choices = itertools.product(*(itertools.combinations(own[label], n) for label, n in zip("ab", counts, strict=True)))
        hits = [np.mean([place.get(("en", pairs[i][1])) in {*one, *two} for i in others]) for one, two in choices]
        expected.append(np.mean(hits))
    table = reinforcement_table(ranks, train, ["en"] * 5, k=8)
    assert table.loc[table["train_language"] == ALL, "chance"].item() == pytest.approx(np.mean(expected))


def test_chance_is_what_scores_of_label_and_language_give() -> None:
    """The old chance, of random ranks among all, would be 14 / 59 here; of half the label, it is above a half."""
    generator = np.random.default_rng(0)
    pairs = [(language, str(item)) for language in ("en", "de", "fr") for item in range(20)]
    train = dataclasses.replace(samples(pairs), label=tuple("ab"[int(item) % 2] for _, item in pairs))
    lift = np.asarray([2.0 * (label == "a") + 1.0 * (pair[0] == "en") for label, pair in zip(train.label, pairs, strict=True)])
    table = reinforcement_table(generator.standard_normal((60, 600)) + lift[:, None], train, ["en"] * 600, k=15)
    line = table[table["train_language"] == ALL].iloc[0]
    assert line["reinforcing"] == pytest.approx(line["chance"], abs=0.02)
    assert line["chance"] > 0.4
    assert line["low"] < line["reinforcing"] < line["high"]


def test_probe_whose_top_is_all_its_own_language_does_not_count() -> None:
    table = reinforcement_table(scores([0, 1], [0, 2]), TRAIN, ["en", "en"], k=2)
    line = table[table["train_language"] == ALL].iloc[0]
    assert (line["probes"], line["samples"], line["reinforcing"]) == (1, 1, 1)


def test_zero_shot_probes_have_nothing_to_reinforce() -> None:
    table = reinforcement_table(scores([0, 2]), TRAIN, ["ru"], k=2)
    line = table[table["train_language"] == ALL].iloc[0]
    assert (line["reinforcing"], line["chance"]) == (0, 0)


def test_bad_input() -> None:
    with pytest.raises(TracInError, match="No train sample has an item"):
        reinforcement_table(scores([0]), samples([("en", None)] * 6), ["en"], k=1)
    with pytest.raises(TracInError, match="Item '1' occurs twice in 'en'"):
        reinforcement_table(scores([0]), samples([("en", "1"), ("en", "1"), *[("de", None)] * 4]), ["en"], k=1)
    with pytest.raises(TracInError, match="k should be between 1 and"):
        reinforcement_table(scores([0]), TRAIN, ["en"], k=7)
