"""E7 on a case worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_tracin import TracInError
from lightning_tracin.analysis.zero_shot import zero_shot_table
from lightning_tracin.storage.sample_table import SampleTable


def samples(pairs: list[tuple[str, str | None]], texts: list[str] | None = None) -> SampleTable:
    languages, items = zip(*pairs, strict=True)
    return SampleTable(languages, items, tuple(texts or [""] * len(pairs)), (None,) * len(pairs))


WITH = samples([("ko", "1"), ("ko", "2"), ("en", "1"), ("en", "2"), ("de", "1"), ("de", "3")])
WITHOUT = samples([("en", "1"), ("en", "2"), ("de", "1"), ("de", "3")])


def top(count: int, *order: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    column = np.zeros((count, 1))
    column[list(order), 0] = range(len(order), 0, -1)
    return column


def test_by_hand() -> None:
    # Before: ko 1, en 2, de 3. After: en 1 (a translation of ko 1), de 3 (stayed), de 1 (a translation).
    table = zero_shot_table("ko", (top(6, 0, 3, 5), WITH), (top(4, 0, 3, 2), WITHOUT), ["ko"], k=3).set_index("measure")
    assert table.loc["translations", "share"] == pytest.approx(2 / 3)
    assert table.loc["translations", "chance"] == pytest.approx(2 / 4)  # en 1 and de 1 of four
    assert table.loc["stayed", "share"] == pytest.approx(1 / 2)  # de 3 of en 2 and de 3
    assert table.loc["stayed", "chance"] == pytest.approx(3 / 4)


def test_probes_of_other_languages_do_not_count_and_nothing_to_stay_is_no_zero() -> None:
    before, after = np.concatenate([top(6, 0, 1), top(6, 2, 3)], 1), np.concatenate([top(4, 0, 1), top(4, 2, 3)], 1)
    table = zero_shot_table("ko", (before, WITH), (after, WITHOUT), ["ko", "en"], k=2).set_index("measure")
    assert table.loc["translations", "share"] == 1
    assert table.loc["translations", "probes"] == 1
    assert table.loc["stayed", "probes"] == 0
    assert np.isnan(table.loc["stayed", "share"])


def test_samples_without_items_are_known_by_their_text() -> None:
    train = samples([("ko", None), ("en", None), ("de", None)], ["a", "b", "c"])
    rest = samples([("de", None), ("en", None)], ["c", "b"])
    table = zero_shot_table("ko", (top(3, 1, 0), train), (top(2, 1), rest), ["ko"], k=1).set_index("measure")
    assert table.loc["stayed", "share"] == 1
    assert table.loc["translations", "share"] == 0


def test_chance_is_what_random_ranks_give() -> None:
    generator = np.random.default_rng(0)
    train = samples([(language, str(item)) for language in ("ko", "en", "de") for item in range(20)])
    rest = train.take(range(20, 60))
    before, after = generator.standard_normal((60, 500)), generator.standard_normal((40, 500))
    table = zero_shot_table("ko", (before, train), (after, rest), ["ko"] * 500, k=12)
    np.testing.assert_allclose(table["share"], table["chance"], atol=0.02)


def test_bad_input() -> None:
    with pytest.raises(TracInError, match="has 2 train samples of it"):
        zero_shot_table("ko", (top(6, 0), WITH), (top(6, 0), WITH), ["ko"], k=1)
    with pytest.raises(TracInError, match="has no train sample of it"):
        zero_shot_table("ru", (top(6, 0), WITH), (top(4, 0), WITHOUT), ["ru"], k=1)
    with pytest.raises(TracInError, match="no probes in 'ko'"):
        zero_shot_table("ko", (top(6, 0), WITH), (top(4, 0), WITHOUT), ["en"], k=1)
    with pytest.raises(TracInError, match="smaller train set"):
        zero_shot_table("ko", (top(6, 0), WITH), (top(4, 0), WITHOUT), ["ko"], k=5)
    with pytest.raises(TracInError, match="1 and 1 probes"):
        zero_shot_table("ko", (top(6, 0), WITH), (top(4, 0), WITHOUT), ["ko", "ko"], k=1)
