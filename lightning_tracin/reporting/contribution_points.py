"""Contributions up to a window of the fit, as the numbers that loggers get."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from lightning_tracin.analysis.contributions import UNEXPLAINED, contribution_table, grouping_of, mean_losses, whole_fit
from lightning_tracin.analysis.resampling import NO_INTERVAL
from lightning_tracin.errors import TracInError
from lightning_tracin.reporting import logged_keys
from lightning_tracin.reporting.language_keys import language_keys
from lightning_tracin.reporting.logged_keys import CONTRIBUTION, LOSS, UNEXPLAINED_SHARE, shown
from lightning_tracin.storage.account import AccountStore, Window


@dataclass(frozen=True)
class ContributionPoint:
    """Contributions summed up to the end of a window.

    Attributes:
        step: last optimizer step of the window.
        epoch: its epoch.
        table: rows of `contributions.contribution_table(..., cumulative=True)` for this window alone.
        losses: probe group -> mean loss of all its measured probes at the end of the window.
    """

    step: int
    epoch: int
    table: pd.DataFrame
    losses: Mapping[str, float] = field(default_factory=dict)

    @property
    def keys(self) -> dict[str, str]:
        """Probe or train group -> its part of the keys."""
        probe, train = grouping_of(self.table)
        groups = self.table.loc[self.table["is_group"].astype(bool), train]
        return language_keys({*self.table[probe], *groups, *self.losses})

    @property
    def scalars(self) -> dict[str, float]:
        """Logged key -> value, all cumulative and in nats but `unexplained_share`, a part of the fall.

        Example:
            >>> rows = [("de", 0.75, True), ("decay", 0.125, False), ("unexplained", 0.125, False)]
            >>> table = pd.DataFrame(rows, columns=["train_language", "nats", "is_group"]).assign(probe_language="fr", fall=1.0)
            >>> ContributionPoint(step=8, epoch=1, table=table, losses={"fr": 2.5}).scalars  # doctest: +NORMALIZE_WHITESPACE
            {'tracin/contribution/fr/de': 0.75, 'tracin/contribution/fr/decay': 0.125, 'tracin/unexplained/fr': 0.125,
             'tracin/unexplained_share/fr': 0.125, 'tracin/loss/fr': 2.5}
        """
        values: dict[str, float] = {}
        key = self.keys
        columns = [*grouping_of(self.table), "nats", "is_group", "fall"]
        for probe, train, nats, is_group, fall in self.table[columns].itertuples(index=False, name=None):
            if is_group:
                values[shown(CONTRIBUTION, key[probe], key[train])] = float(nats)
            elif train != UNEXPLAINED:  # no group has such a key
                values[shown(CONTRIBUTION, key[probe], train)] = float(nats)
            else:
                values[shown(logged_keys.UNEXPLAINED, key[probe])] = float(nats)
                if fall > 0:
                    values[shown(UNEXPLAINED_SHARE, key[probe])] = float(nats / fall)
        return values | {shown(LOSS, key[group]): loss for group, loss in self.losses.items()}


class ContributionPoints:
    """The points of an account that grows; the numbers of each window are read once.

    Args:
        store: the account.

    Example:
        Skipped: needs a fit.

        >>> points = ContributionPoints(AccountStore(Path("runs/xnli")))  # doctest: +SKIP
        >>> sink.window(points.latest())  # after each window  # doctest: +SKIP
    """

    def __init__(self, store: AccountStore) -> None:
        self._store = store
        self._windows: list[Window] = []

    def latest(self) -> ContributionPoint:
        """The point at the end of the last window; without intervals.

        Raises:
            TracInError: there is no window, or a file is missing or damaged.
        """
        record, windows = self._store.record(), self._store.windows()
        kept = [old for old, new in zip(self._windows, windows, strict=False) if old.record == new.record]
        self._windows = [*kept, *windows[len(kept) :]]
        if not windows:
            raise TracInError(f"{self._store.folder} has no windows; the fit ended before the first one did.")
        last = self._windows[-1]
        table = whole_fit(contribution_table(record, self._windows, cumulative=True, interval=NO_INTERVAL))
        return ContributionPoint(last.record.last_step, last.record.epoch, table, mean_losses(record, last))


def final_point(table: pd.DataFrame) -> ContributionPoint:
    """The point of the whole fit, without losses.

    Args:
        table: as from `contributions.contribution_table(..., cumulative=True)`; not empty.
    """
    whole = whole_fit(table)
    return ContributionPoint(int(whole["step"].iloc[0]), int(whole["epoch"].iloc[0]), whole)
