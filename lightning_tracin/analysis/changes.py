"""E6: does reliance change as fine-tuning goes on? Paired tests between snapshots, probe by probe.

What chance gives changes, too: once the model tells labels apart, the strongest samples are those of the probe's label, and of
these a language may have more or fewer. So what is tested is the change of a value beyond its chance (`analysis.exchange`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy import stats

from lightning_tracin.analysis.reliance import Floats, tally_of
from lightning_tracin.analysis.scores import Scores
from lightning_tracin.analysis.tables import table_from
from lightning_tracin.analysis.tally import TrainLanguages
from lightning_tracin.errors import TracInError

_MEANS, _NULLS = ("mean_before", "mean_after", "difference"), ("null_before", "null_after", "beyond_null")
_TEST = ("probes", "statistic", "p")
COLUMNS = ("probe_language", "train_language", "before", "after", *_MEANS, *_NULLS, *_TEST, "p_adjusted")

#: A change is significant if its corrected p is below this.
SIGNIFICANT = 0.05


def change_table(
    scores: Mapping[int, Scores],
    train_languages: TrainLanguages | Sequence[str],
    probe_languages: Sequence[str],
    k: int,
) -> pd.DataFrame:
    """Change in reliance from each snapshot to the next, and from first to last, with Wilcoxon's signed-rank test.

    Args:
        scores: snapshot -> influence at that snapshot alone, [train, probes]; at least two snapshots.
        train_languages: language of each train sample; `TrainLanguages.of_table` adds their labels and items, which chance keeps.
        probe_languages: language of each probe.
        k: number of strongest train samples to count.

    Returns:
        Columns `COLUMNS`. Means are over the probes that have a value at both snapshots (`probes`). `null_before` and
        `null_after` are their chance; `beyond_null` is by how much the difference exceeds that of chance. Its `p` is two-sided
        and paired by probe (scipy.stats.wilcoxon with `zero_method="zsplit"`); 1 if no probe changes, NaN without probes.
        `p_adjusted` controls the false discovery rate over all tests in the table (Benjamini and Hochberg 1995).

    Raises:
        TracInError: there are fewer than two snapshots, or `k` is not between 1 and the number of train samples.

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
    languages = train_languages if isinstance(train_languages, TrainLanguages) else TrainLanguages.of(train_languages)
    tallies = {snapshot: tally_of(scores[snapshot], languages, k) for snapshot in snapshots}
    values = {snapshot: np.stack([tally.values(), tally.chance()]) for snapshot, tally in tallies.items()}
    rows = []
    for own in sorted(set(probe_languages)):
        mine = np.asarray([language == own for language in probe_languages])
        for column, train in enumerate(languages.names):
            for before, after in pairs:
                one, other = (values[snapshot][:, mine, column] for snapshot in (before, after))
                both = np.isfinite(one).all(0) & np.isfinite(other).all(0)
                rows.append((own, train, before, after, *_test(one[:, both], other[:, both])))
    table = table_from(rows, COLUMNS[:-1])
    table["p_adjusted"] = np.nan
    known = table["p"].notna()
    if known.any():
        table.loc[known, "p_adjusted"] = stats.false_discovery_control(table.loc[known, "p"].to_numpy())
    return table


def _test(before: Floats, after: Floats) -> tuple[float, ...]:
    """Means, chances, number of pairs, test statistic and p, from values and chances [2, probes]."""
    count = before.shape[1]
    if count == 0:
        return *[np.nan] * 6, 0, np.nan, np.nan
    (one, null), (other, null_after) = before, after
    # Whole numbers of samples over k, less the mean of chances: differences of rounding are none.
    change = np.round((other - null_after) - (one - null), 12)
    means = float(one.mean()), float(other.mean()), float((other - one).mean())
    nulls = float(null.mean()), float(null_after.mean()), float(change.mean())
    if not change.any():
        return *means, *nulls, count, 0.0, 1.0
    test = stats.wilcoxon(change, zero_method="zsplit")
    return *means, *nulls, count, float(test.statistic), float(test.pvalue)
