"""E8: how does reliance on a language answer to more of its data? One run for each language and amount that was added."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from lightning_tracin.errors import TracInError

COLUMNS = ("language", "added", "share", "low", "high", "chance", "over_chance", "mean_cross_lingual_others")


def imbalance_table(tables: Mapping[tuple[str, float], pd.DataFrame]) -> pd.DataFrame:
    """Own-language share by how much of a language was added.

    Args:
        tables: (language, per cent added) -> the run's reliance table (`reliance.reliance_table`). 0 per cent is the run that has
            equal parts; the same table may stand for every language there.

    Returns:
        Columns `COLUMNS`, in order of language and amount. `chance` is the language's part of that run's train samples, which
        grows with what is added; `over_chance` is share - chance; `mean_cross_lingual_others` is 1 - own share, averaged over the
        other probe languages.

    Raises:
        TracInError: a table has no line for the language, as probe language and train language.
    """
    rows = []
    for (language, added), table in sorted(tables.items(), key=lambda entry: entry[0]):
        own = table[table["probe_language"] == table["train_language"]].set_index("probe_language")
        if language not in own.index:
            raise TracInError(
                f"The run with {added:g} % more {language!r} has no probes or no train samples in {language!r} "
                f"(languages with both: {', '.join(map(str, own.index)) or 'none'})."
            )
        line = own.loc[language]
        rest = own.drop(index=language)["share"]
        rows.append(
            (
                language,
                added,
                line["share"],
                line["low"],
                line["high"],
                line["chance"],
                line["share"] - line["chance"],
                1 - rest.mean() if len(rest) else np.nan,
            )
        )
    found: pd.DataFrame = pd.DataFrame(rows, columns=list(COLUMNS))
    return found
