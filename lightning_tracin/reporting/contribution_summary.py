"""Contributions of a whole fit in brief: a table with a row for each probe group, and one sentence for the account."""

from __future__ import annotations

import pandas as pd

from lightning_tracin.analysis.contributions import UNEXPLAINED, grouping_of, whole_fit
from lightning_tracin.analysis.resampling import NO_INTERVAL
from lightning_tracin.errors import one_line
from lightning_tracin.run import TracInRun


def wide(whole: pd.DataFrame) -> pd.DataFrame:
    """A row for each probe group: number of queries, measured fall, then a column for each source.

    Args:
        whole: the rows of a whole fit, as from `contributions.whole_fit`.

    Example:
        >>> rows = [("fall", 0.75, True), ("decay", 0.125, False), ("unexplained", 0.125, False)]
        >>> whole = pd.DataFrame(rows, columns=["train_language", "nats", "is_group"])
        >>> wide(whole.assign(probe_language="fr", fall=1.0, probes=9)).to_dict("records")  # not the fall
        [{'probe_language': 'fr', 'probes': 9, 'fall': 1.0, "'fall'": 0.75, 'decay': 0.125, 'unexplained': 0.125}]
    """
    probe, train = grouping_of(whole)
    sources = list(whole[[train, "is_group"]].drop_duplicates().itertuples(index=False, name=None))
    taken = {probe, "probes", "fall", *(name for name, is_group in sources if not is_group)}
    columns: dict[tuple[str, bool], str] = {}
    for name, is_group in sources:
        shown = one_line(str(name))
        while is_group and shown in taken:
            shown = f"'{shown}'"
        taken.add(shown)
        columns[name, is_group] = shown
    lines: dict[str, dict[str, object]] = {}
    for row in whole.to_dict("records"):
        line = lines.setdefault(row[probe], {probe: row[probe], "probes": row["probes"], "fall": row["fall"]})
        line[columns[row[train], row["is_group"]]] = row["nats"]
    table: pd.DataFrame = pd.DataFrame(list(lines.values()))
    return table


def described_account(run: TracInRun) -> str:
    """What the account of a run covers, in a sentence.

    Raises:
        TracInError: see `TracInRun.contributions`.
    """
    record = run.account.record()
    how = "every step" if record.every_n_steps == 1 else f"one step in {record.every_n_steps}"
    about = f"Contributions by {record.by} in {run.path}"
    whole = whole_fit(run.contributions(cumulative=True, interval=NO_INTERVAL))
    if whole.empty:
        return f"{about}: no window yet."
    windows, step = int(whole["window"].iloc[0]), int(whole["step"].iloc[0])
    probe, train = grouping_of(whole)
    left = whole[(whole[train] == UNEXPLAINED) & ~whole["is_group"]].set_index(probe)
    parts = (left["nats"] / left["fall"].where(left["fall"] != 0)).abs()
    worst = parts.idxmax() if parts.notna().any() else None
    unexplained = "" if worst is None else f"; unexplained: at most {parts[worst]:.1%} of the change ({worst})".replace("%", " %")
    split = "" if record.approximate is None else f"; approximate: {record.approximate.rstrip('.')}"
    ended = "" if record.ended else "; the fit has not ended"
    return f"{about}: {windows} windows, steps {record.began_at + 1} to {step}, {how}{unexplained}{split}{ended}."
