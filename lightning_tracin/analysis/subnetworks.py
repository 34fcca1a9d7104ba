"""E9: do languages have subnetworks of their own, and whose data do these rely on?

One run for each language's mask, several for random masks of the same size, and one over all parameters, all of one fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from lightning_tracin.errors import TracInError

OVERLAP_COLUMNS = ("language", "other", "shared", "jaccard", "chance")

COLUMNS = (
    "probe_language",
    "share",
    "low",
    "high",
    "chance",
    "probes",
    "cross_lingual",
    "random_share",
    "random_min",
    "random_max",
    "random_cross_lingual",
    "draws",
    "whole_share",
    "whole_low",
    "whole_high",
    "whole_cross_lingual",
)


def mask_overlap(kept: Mapping[str, npt.NDArray[np.bool_]]) -> pd.DataFrame:
    """How much the masks of each two languages have in common.

    Args:
        kept: language -> what its mask keeps, such as attention heads [layers, heads]; all of one shape.

    Returns:
        Columns `OVERLAP_COLUMNS`, a line for each pair of languages. `shared` is how many elements both keep, `jaccard` that over
        how many either keeps, `chance` the expected Jaccard index of two random masks of these sizes (the number that both keep
        is hypergeometric).

    Raises:
        TracInError: the masks have different shapes, or one keeps nothing.
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
    table: pd.DataFrame = pd.DataFrame(rows, columns=list(OVERLAP_COLUMNS))
    return table


def _expected_jaccard(size: int, one: int, other: int) -> float:
    """Of two random masks that keep so many of `size` elements."""
    shared = np.arange(max(0, one + other - size), min(one, other) + 1)
    return float((stats.hypergeom.pmf(shared, size, one, other) * shared / (one + other - shared)).sum())


def mask_table(
    own: Mapping[str, pd.DataFrame], at_random: Mapping[str, Sequence[pd.DataFrame]], whole: pd.DataFrame
) -> pd.DataFrame:
    """Each language's reliance on itself within its own mask, within random ones, and over all parameters.

    Args:
        own: probe language -> the reliance table (`reliance.reliance_table`) under that language's mask.
        at_random: probe language -> the tables under random masks of the same size, one for each draw.
        whole: the table over all parameters.

    Returns:
        Columns `COLUMNS`, a line for each probe language. `share` is the own-language share and `cross_lingual` 1 - share, with
        the table's interval, chance and number of probes; `random_share` is the mean over the random masks, `random_min` and
        `random_max` the least and the greatest of them and `draws` how many there are. A share within that range does not tell
        the language's own mask from a random one.

    Raises:
        TracInError: a table has no line, or several, for the language as probe language and train language; there is no
            random mask; or the tables' chance differs, so that they are not of the same train samples.
    """
    rows = []
    for language in sorted(own):
        mine, all_parameters = _own_line(own[language], language, "its mask"), _own_line(whole, language, "no mask")
        draws = [_own_line(table, language, f"random mask {draw}") for draw, table in enumerate(at_random.get(language, ()))]
        if not draws:
            raise TracInError(f"There are no random masks to compare the mask of {language!r} with; have {sorted(at_random)}.")
        for line in (all_parameters, *draws):
            if not np.isclose(line["chance"], mine["chance"]):
                raise TracInError(
                    f"Chance of {language!r} is {mine['chance']:.3g} under its mask but {line['chance']:.3g} under another, so "
                    "the tables are not of the same train samples; take shares of one fit."
                )
        shares = np.asarray([line["share"] for line in draws], dtype=np.float64)
        share, whole_share, mean = mine["share"], all_parameters["share"], shares.mean()
        rows.append(
            (
                language,
                *(share, mine["low"], mine["high"], mine["chance"], mine["probes"], 1 - share),
                *(mean, shares.min(), shares.max(), 1 - mean, len(draws)),
                *(whole_share, all_parameters["low"], all_parameters["high"], 1 - whole_share),
            )
        )
    table: pd.DataFrame = pd.DataFrame(rows, columns=list(COLUMNS))
    return table


def _own_line(table: pd.DataFrame, language: str, under: str) -> pd.Series[float]:
    """The line of a language's reliance on itself."""
    lines = table[(table["probe_language"] == language) & (table["train_language"] == language)]
    if len(lines) != 1:
        raise TracInError(
            f"The table under {under} has {len(lines)} lines of {language!r} as probe and train language, but should have one: "
            "give tables with train samples in every probe language, of one snapshot or of the sum of all."
        )
    line: pd.Series[float] = lines.iloc[0]
    return line
