"""E5 on a case worked out by hand."""

from __future__ import annotations

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
    # Of de 1, de 2, fr 1, fr 3 three have a translation in en, which stands among the other three of the top 4 with 3 / 5.
    assert by.loc[("en", ALL), "chance"] == pytest.approx(3 / 4 * 3 / 5)
    assert by.loc[("en", "fr"), "chance"] == pytest.approx(1 / 2 * 3 / 5)


def test_chance_is_what_random_scores_give() -> None:
    generator = np.random.default_rng(0)
    train = samples([(language, str(item)) for language in ("en", "de", "fr") for item in range(20)])
    table = reinforcement_table(generator.standard_normal((60, 600)), train, ["en"] * 600, k=15)
    line = table[table["train_language"] == ALL].iloc[0]
    assert line["chance"] == pytest.approx(14 / 59)
    assert line["reinforcing"] == pytest.approx(line["chance"], abs=0.02)
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
