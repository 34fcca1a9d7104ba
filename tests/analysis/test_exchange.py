"""What languages are shuffled within, and what each sample then counts as."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_tracin.analysis.exchange import Exchange, is_parallel, strata_of, units_of
from lightning_tracin.storage.sample_table import SampleTable


def table(languages: str, items: list[str | None], labels: list[str | None]) -> SampleTable:
    return SampleTable(tuple(languages), tuple(items), ("",) * len(languages), tuple(labels))


def test_a_sample_counts_as_what_shuffles_within_its_stratum_make_of_it() -> None:
    languages, strata = list("aabbbc"), [0, 1, 0, 0, 1, 1]
    generator, counts = np.random.default_rng(0), np.zeros((6, 3))
    for _ in range(4000):
        shuffled = np.array(languages)
        for stratum in (0, 1):
            inside = np.flatnonzero(np.array(strata) == stratum)
            shuffled[inside] = shuffled[generator.permutation(inside)]
        counts += shuffled[:, None] == np.array(list("abc"))
    np.testing.assert_allclose(Exchange.of(languages, strata).expected(np.arange(6)), counts / 4000, atol=0.03)


@pytest.mark.parametrize(
    ("items", "labels", "strata"),
    [
        (["1", "1", "2", "2"], ["x", "x", "y", "y"], ["1", "1", "2", "2"]),  # translated: within items
        (["1", "2", "3", "4"], ["x", "x", "y", "y"], ["x", "x", "y", "y"]),  # an item has one language: within labels
        (["1", "1", "2", None], ["x", None, "y", "y"], ["x", None, "y", "y"]),
        ([None] * 4, [None] * 4, None),
        ([None] * 4, ["0.1", "0.2", "0.3", "0.4"], None),  # targets of a regression
        ([None] * 4, ["x", "y", "x", "y"], None),  # no label in two languages
        ([None] * 4, ["x", "x", "0.3", "0.4"], ["x", "x", "0.3", "0.4"]),  # half of the samples can be exchanged
    ],
)
def test_languages_are_shuffled_within_items_where_all_are_translated_or_within_labels(
    items: list[str | None], labels: list[str | None], strata: list[str | None] | None
) -> None:
    given = table("abab", items, labels)
    assert strata_of(given) == strata
    assert is_parallel(given) == (strata == items)


def test_an_item_is_no_sample_of_the_same_number() -> None:
    assert len(set(units_of(table("abab", ["1", None, "1", None], [None] * 4)))) == 3


def test_few_labels_that_happen_to_be_the_same_are_not_shuffled_within() -> None:
    labels = ["0.0", "0.0", *(f"0.{number}" for number in range(1, 5))]
    assert strata_of(table("ababab", [None] * 6, labels)) is None
