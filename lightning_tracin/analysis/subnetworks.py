"""E9: do languages have subnetworks of their own, and whose data do these rely on?

It compares runs of one fit: one for each language's mask, several for random masks of the same size, and one over all parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from lightning_tracin.analysis.tables import own_row_of, table_from
from lightning_tracin.errors import TracInError

OVERLAP_COLUMNS = ("language", "other", "shared", "jaccard", "chance")

_OWN = ("share", "low", "high", "chance", "probes", "cross_lingual")
_RANDOM = ("random_share", "random_min", "random_max", "random_cross_lingual", "draws")
_WHOLE = ("whole_share", "whole_low", "whole_high", "whole_cross_lingual")
COLUMNS = ("probe_language", *_OWN, *_RANDOM, *_WHOLE)


def mask_overlap(kept: Mapping[str, npt.NDArray[np.bool_]]) -> pd.DataFrame:
    """Overlap of the masks of each pair of languages.

    Args:
        kept: language -> the elements that its mask keeps, such as attention heads [layers, heads]; all of one shape.

    Returns:
        Columns `OVERLAP_COLUMNS`, one row for each pair of languages. `shared` is the number of elements that both masks keep,
        `jaccard` that number over the number that either keeps, `chance` the expected Jaccard index of two random masks of these
        sizes (`shared` is then hypergeometric).

    Raises:
        TracInError: the masks have different shapes, or one keeps nothing.

    Example:
        >>> mask_overlap({"de": np.array([True, True, False]), "en": np.array([True, False, True])})["jaccard"].round(3).tolist()
        [0.333]
    """
    shapes = {mask.shape for mask in kept.values()}
    if len(shapes) > 1:
        raise TracInError(f"The masks have different shapes ({', '.join(map(str, sorted(shapes)))}); compare masks of one model.")
    for language, mask in kept.items():
        if not mask.any():
            raise TracInError(f"The mask of {language!r} keeps nothing, so there is no overlap with it.")
    rows = []
    for one, other in combinations(sorted(kept), 2):
        mine, theirs = kept[one], kept[other]
        shared, either = int((mine & theirs).sum()), int((mine | theirs).sum())
        expected = _expected_jaccard(mine.size, int(mine.sum()), int(theirs.sum()))
        rows.append((one, other, shared, shared / either, expected))
    return table_from(rows, OVERLAP_COLUMNS)


def _expected_jaccard(size: int, one: int, other: int) -> float:
    """Expected Jaccard index of two random masks that keep `one` and `other` of `size` elements."""
    shared = np.arange(max(0, one + other - size), min(one, other) + 1)
    return float((stats.hypergeom.pmf(shared, size, one, other) * shared / (one + other - shared)).sum())


def mask_table(
    own: Mapping[str, pd.DataFrame], at_random: Mapping[str, Sequence[pd.DataFrame]], whole: pd.DataFrame
) -> pd.DataFrame:
    """Each language's reliance on itself with its own mask, with random masks, and over all parameters.

    Args:
        own: language -> reliance table (`reliance.reliance_table`) with that language's mask.
        at_random: language -> tables with random masks of the same size, one for each draw.
        whole: table over all parameters.

    Returns:
        Columns `COLUMNS`, one row for each language, by its name as a probe language. `share` is the own-language share and
        `cross_lingual` 1 - share, with the table's interval, chance and number of probes. `random_share` is the mean over the
        random masks, `random_min` and `random_max` are the extremes, `draws` is their number. A share within this range does not
        distinguish the language's own mask from a random one.

    Raises:
        TracInError: a table does not have exactly one row for the language as both probe and train language, or there is no
            random mask.
    """
    rows = []
    for language in sorted(own):
        mine, all_parameters = _own_row(own[language], language, "its mask"), _own_row(whole, language, "no mask")
        draws = [_own_row(table, language, f"random mask {draw}") for draw, table in enumerate(at_random.get(language, ()))]
        if not draws:
            raise TracInError(f"There are no random masks to compare the mask of {language!r} with; have {sorted(at_random)}.")
        shares = np.asarray([row["value"] for row in draws], dtype=np.float64)
        share, whole_share, mean = mine["value"], all_parameters["value"], shares.mean()
        rows.append(
            (
                mine["probe_language"],
                *(share, mine["low"], mine["high"], mine["null"], mine["probes"], 1 - share),
                *(mean, shares.min(), shares.max(), 1 - mean, len(draws)),
                *(whole_share, all_parameters["low"], all_parameters["high"], 1 - whole_share),
            )
        )
    return table_from(rows, COLUMNS)


def _own_row(table: pd.DataFrame, language: str, under: str) -> pd.Series[float]:
    """The row of a language's reliance on itself."""
    rows = own_row_of(table, language)
    if len(rows) != 1:
        raise TracInError(
            f"The table under {under} has {len(rows)} lines of {language!r} as probe and train language, but should have one: "
            "give tables with train samples in every probe language, of one snapshot or of the sum of all."
        )
    row: pd.Series[float] = rows.iloc[0]
    return row
