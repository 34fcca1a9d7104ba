"""E8: how does reliance on a language respond to more of its data? One run per language and added amount."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from lightning_tracin.analysis.tables import own_language, own_row_of, table_from
from lightning_tracin.errors import TracInError

COLUMNS = ("language", "added", "share", "low", "high", "chance", "over_chance", "mean_cross_lingual_others")


def imbalance_table(tables: Mapping[tuple[str, float], pd.DataFrame]) -> pd.DataFrame:
    """Own-language share as a function of how much data of a language was added.

    Args:
        tables: (language, per cent added) -> the run's reliance table (`reliance.reliance_table`). 0 per cent is the balanced
            run, whose table can be the same for every language.

    Returns:
        Columns `COLUMNS`, sorted by language and amount. `chance` is the language's fraction of that run's train samples, which
        grows with the amount. `over_chance` is share - chance. `mean_cross_lingual_others` is 1 - own share, averaged over the
        other probe languages.

    Raises:
        TracInError: a table has no row for the language as both probe and train language.

    Example:
        >>> row = {"probe_language": "de", "train_language": "de", "value": 0.75, "low": 0.7, "high": 0.8, "null": 0.5}
        >>> imbalance_table({("de", 50.0): pd.DataFrame([row])})["over_chance"].tolist()
        [0.25]
    """
    rows = []
    for (language, added), table in sorted(tables.items(), key=lambda entry: entry[0]):
        own, mine = own_language(table), own_row_of(table, language)
        if len(mine) != 1:
            found = "no probes or no train samples" if mine.empty else "probes by several names"
            raise TracInError(
                f"The run with {added:g} % more {language!r} has {found} in {language!r} "
                f"(languages with both: {', '.join(map(str, own['probe_language'])) or 'none'})."
            )
        row, rest = mine.iloc[0], own.drop(index=mine.index)["value"]
        share, low, high, chance = (row[name] for name in ("value", "low", "high", "null"))
        rows.append((language, added, share, low, high, chance, share - chance, 1 - rest.mean() if len(rest) else np.nan))
    return table_from(rows, COLUMNS)
