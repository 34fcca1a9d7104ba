"""E6: does reliance change as fine-tuning goes on? Paired tests between snapshots, probe by probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy import stats

from lightning_tracin.analysis.reliance import Floats, per_probe
from lightning_tracin.analysis.scores import Scores
from lightning_tracin.analysis.tables import table_from
from lightning_tracin.config import Measure, Sign
from lightning_tracin.errors import TracInError

_MEANS, _TEST = ("mean_before", "mean_after", "difference"), ("probes", "statistic", "p")
COLUMNS = ("probe_language", "train_language", "before", "after", *_MEANS, *_TEST, "p_adjusted")

#: A change is significant if its corrected p is below this.
SIGNIFICANT = 0.05


def change_table(
    scores: Mapping[int, Scores],
    train_languages: Sequence[str],
    probe_languages: Sequence[str],
    k: int,
    sign: Sign = "positive",
    measure: Measure = "share",
) -> pd.DataFrame:
    """Change in reliance from each snapshot to the next, and from first to last, with Wilcoxon's signed-rank test.

    Args:
        scores: snapshot -> influence at that snapshot alone, [train, probes]; at least two snapshots.
        train_languages: language of each train sample.
        probe_languages: language of each probe.
        k: number of strongest train samples to count.
        sign: proponents or opponents.
        measure: see `reliance.per_probe`.

    Returns:
        Columns `COLUMNS`. Means are over the probes that have a value at both snapshots (`probes`). `p` is two-sided and paired
        by probe (scipy.stats.wilcoxon with `zero_method="zsplit"`); 1 if no probe changes, NaN without probes. `p_adjusted`
        controls the false discovery rate over all tests in the table (Benjamini and Hochberg 1995).

    Raises:
        TracInError: there are fewer than two snapshots, or an option is invalid.

    Example:
        >>> scores = {0: np.array([[2.0], [1.0]]), 1: np.array([[1.0], [2.0]])}  # German leads, then English
        >>> change_table(scores, ["de", "en"], ["de"], k=1)["difference"].tolist()
        [-1.0, 1.0]
    """
    snapshots = sorted(scores)
    if len(snapshots) < 2:
        raise TracInError(f"Changes are between snapshots, but there are {len(snapshots)}; take at least two.")
    pairs = list(pairwise(snapshots))
    if len(snapshots) > 2:
        pairs.append((snapshots[0], snapshots[-1]))
    values = {snapshot: per_probe(scores[snapshot], train_languages, k, sign, measure) for snapshot in snapshots}
    rows = []
    for own in sorted(set(probe_languages)):
        mine = np.asarray([language == own for language in probe_languages])
        for column, train in enumerate(values[snapshots[0]][0]):
            for before, after in pairs:
                one, other = (values[snapshot][1][mine, column] for snapshot in (before, after))
                both = np.isfinite(one) & np.isfinite(other)
                rows.append((own, train, before, after, *_test(one[both], other[both])))
    table = table_from(rows, COLUMNS[:-1])
    table["p_adjusted"] = np.nan
    known = table["p"].notna()
    if known.any():
        table.loc[known, "p_adjusted"] = stats.false_discovery_control(table.loc[known, "p"].to_numpy())
    return table


def _test(before: Floats, after: Floats) -> tuple[float, float, float, int, float, float]:
    """Mean before, mean after, mean difference, number of pairs, test statistic and p."""
    count = len(before)
    if count == 0:
        return np.nan, np.nan, np.nan, 0, np.nan, np.nan
    means = float(before.mean()), float(after.mean()), float((after - before).mean())
    if np.array_equal(before, after):
        return *means, count, 0.0, 1.0
    test = stats.wilcoxon(after, before, zero_method="zsplit")
    return *means, count, float(test.statistic), float(test.pvalue)
