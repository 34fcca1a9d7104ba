"""E9 on cases worked out by hand."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from lightning_tracin import TracInError
from lightning_tracin.analysis.reliance import reliance_table
from lightning_tracin.analysis.subnetworks import mask_overlap, mask_table


def mask(*places: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    kept = np.zeros((2, 3), dtype=np.bool_)
    kept.flat[list(places)] = True
    return kept


def test_overlap_by_hand() -> None:
    table = mask_overlap({"ru": mask(0, 1, 2), "de": mask(1, 2, 3), "en": mask(4)})
    assert table[["language", "other", "shared"]].values.tolist() == [["de", "en", 0], ["de", "ru", 2], ["en", "ru", 0]]
    assert table["jaccard"].tolist() == [0, 2 / 4, 0]
    # Three and one of six meet in half of all cases, and then have one of three in common.
    assert table["chance"].tolist() == pytest.approx([1 / 6, (9 * 1 / 5 + 9 * 2 / 4 + 1) / 20, 1 / 6])


@pytest.mark.parametrize(("one", "other"), [(3, 3), (5, 4), (6, 2), (6, 6)])
def test_chance_is_the_mean_over_all_masks_of_these_sizes(one: int, other: int) -> None:
    pairs = [(set(a), set(b)) for a in combinations(range(6), one) for b in combinations(range(6), other)]
    expected = np.mean([len(a & b) / len(a | b) for a, b in pairs])
    found = mask_overlap({"a": mask(*range(one)), "b": mask(*range(6 - other, 6))})
    assert found["chance"].item() == pytest.approx(expected)


def test_masks_that_have_no_overlap() -> None:
    with pytest.raises(TracInError, match=r"different shapes \(\(2, 3\), \(3, 3\)\)"):
        mask_overlap({"de": mask(0), "en": np.ones((3, 3), dtype=np.bool_)})
    with pytest.raises(TracInError, match=r"mask of 'en' keeps nothing"):
        mask_overlap({"de": mask(0), "en": mask()})


TRAIN = ["de"] * 4 + ["en"] * 6


def tables(*tops: int) -> list[pd.DataFrame]:
    """Reliance tables in which so many of both probe languages' top four are German."""
    found = []
    for german in tops:
        scores = np.zeros((10, 4))
        scores[:german] = scores[4 : 8 - german] = 1
        found.append(reliance_table(scores, TRAIN, ["de", "de", "en", "en"], k=4))
    return found


def test_table_by_hand() -> None:
    own, other, whole = tables(3, 1, 2)
    found = mask_table({"en": other, "de": own}, {"de": tables(1, 2, 0), "en": tables(4)}, whole).set_index("probe_language")
    assert found.index.tolist() == ["de", "en"]
    german, english = found.loc["de"], found.loc["en"]
    assert german[["share", "cross_lingual"]].tolist() == [0.75, 0.25]
    assert german[["low", "high"]].tolist() == own[["low", "high"]].iloc[0].tolist()
    assert german[["random_share", "random_min", "random_max", "random_cross_lingual"]].tolist() == [0.25, 0, 0.5, 0.75]
    assert german[["whole_share", "whole_cross_lingual"]].tolist() == [0.5, 0.5]
    assert german[["chance", "probes", "draws"]].tolist() == [0.4, 2, 3]
    assert english[["share", "cross_lingual", "random_share", "whole_share"]].tolist() == [0.75, 0.25, 0, 0.5]
    assert english[["chance", "draws"]].tolist() == [0.6, 1]


def test_tables_that_do_not_belong_together() -> None:
    one, whole = tables(3, 2)
    foreign = reliance_table(np.eye(4), ["en"] * 4, ["de"] * 4, k=1)
    for own, at_random, other, message in (
        ({"de": one}, {"en": [one]}, whole, r"no random masks to compare the mask of 'de' with; have \['en'\]"),
        ({"de": one}, {"de": []}, whole, r"no random masks"),
        ({"de": one}, {"de": [one, foreign]}, whole, r"under random mask 1 has 0 lines of 'de' as probe and train language"),
        ({"de": pd.concat([one, one])}, {"de": [one]}, whole, r"under its mask has 2 lines of 'de'"),
        ({"ru": one}, {"ru": [one]}, whole, r"under its mask has 0 lines of 'ru'"),
    ):
        with pytest.raises(TracInError, match=message):
            mask_table(own, at_random, other)
