"""Which lines a chart has, where all are too many to look at."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd


def strongest(sizes: pd.Series[float], most: int, always: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """The languages with a line of their own, and the others, strongest first.

    Args:
        sizes: language -> size of its values; unknown ones are the smallest.
        most: number of lines. All have one if only a single language would be left, because one alone is no "others".
        always: languages that have one of the lines in any case.

    Example:
        >>> strongest(pd.Series({"de": 0.5, "en": 2.0, "fr": 0.1, "uk": 1.0}), most=2, always=["fr"])
        (['fr', 'en'], ['uk', 'de'])
        >>> strongest(pd.Series({"de": 0.5, "en": 2.0, "fr": 0.1}), most=2)
        (['en', 'de', 'fr'], [])
    """
    size = sizes.fillna(-np.inf).where(~sizes.index.isin(list(always)), np.inf)
    order = [str(name) for name in size.sort_values(ascending=False, kind="stable").index]
    count = most if len(order) > most + 1 else len(order)
    return order[:count], order[count:]
