"""The results of a run as tables, which every logger and the run's `results` folder receive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lightning_tracin.analysis.reliance import cross_lingual, mean_cross_lingual
from lightning_tracin.analysis.resampling import NO_INTERVAL, Interval
from lightning_tracin.analysis.tables import stacked
from lightning_tracin.analysis.tally import SIGNED
from lightning_tracin.attribution.progress import Progress, tracked
from lightning_tracin.config import Measure, Scoring, Sign, View
from lightning_tracin.reporting.explorer import Explorer
from lightning_tracin.reporting.language_keys import language_keys
from lightning_tracin.reporting.layer_table import layer_table
from lightning_tracin.reporting.logged_keys import (
    CONTRAST,
    CROSS_LINGUAL,
    CROSS_LINGUAL_NULL,
    INFLUENCE,
    LIFT,
    MEAN,
    MEAN_INFLUENCE,
    RELIANCE,
    shown,
)
from lightning_tracin.run import TracInRun

#: Number of proponents and opponents shown for each probe, and of probes shown for each language.
_SHOWN, _PROBES_SHOWN = 3, 3


@dataclass(frozen=True)
class Point:
    """What each train language is to each probe language at one snapshot.

    Attributes:
        epoch: of the snapshot.
        step: of the snapshot.
        tables: measure -> one row for each probe language and train language; see `reliance_by_snapshot`. There are no shares
            in a run with language means.
    """

    epoch: int
    step: int
    tables: Mapping[Measure, pd.DataFrame]

    @property
    def keys(self) -> dict[str, str]:
        """Language -> its part of the keys."""
        table = self.tables["sum"]
        return language_keys({*table["probe_language"], *table["train_language"]})

    @property
    def scalars(self) -> dict[str, float]:
        """Logged key -> value of its curve at this snapshot.

        Example:
            >>> table = pd.DataFrame([("de", "en", 0.25, 0.1)], columns=["probe_language", "train_language", "value", "contrast"])
            >>> Point(epoch=1, step=10, tables={"sum": table, "mean": table}).scalars
            {'tracin/influence/de/en': 0.25, 'tracin/contrast/de/en': 0.1, 'tracin/mean_influence/de/en': 0.25}
        """
        values: dict[str, float] = {}
        keys = self.keys
        for name, measure, column in _CURVES:
            if measure in self.tables:
                lines = self.tables[measure][["probe_language", "train_language", column]].to_numpy()
                values |= {
                    shown(name, keys[probe], keys[train]): float(value)
                    for probe, train, value in lines
                    if column != "contrast" or np.isfinite(value)
                }
        if "share" in self.tables:  # 1 minus a share says something beside its null only
            shares = self.tables["share"]
            for name, column in ((CROSS_LINGUAL, "value"), (CROSS_LINGUAL_NULL, "null")):
                found = cross_lingual(shares, column)
                values |= {shown(name, keys[str(language)]): float(value) for language, value in found.items()}
                values[shown(name, MEAN)] = mean_cross_lingual(shares, column)
        return values


#: The curves of each pair of languages: part of the key, measure, column. A contrast that nothing is known of is not logged.
_CURVES: tuple[tuple[str, Measure, str], ...] = (
    (INFLUENCE, "sum", "value"),
    (CONTRAST, "sum", "contrast"),
    (MEAN_INFLUENCE, "mean", "value"),
    (RELIANCE, "share", "value"),
    (LIFT, "share", "lift"),
)


@dataclass(frozen=True)
class Results:
    """All tables of a run."""

    view: View
    reliance: pd.DataFrame  # long table: measure, sign, cumulative, snapshot, epoch, step, ...
    top: pd.DataFrame  # strongest proponents and opponents of some probes of each language, with texts
    cautions: tuple[str, ...] = ()  # what readers have to know of the run, in sentences
    tokens: pd.DataFrame | None = None  # the scores of the pairs in `top`, token by token
    layers: pd.DataFrame | None = None  # see `layer_table`
    explorer: Explorer | None = None  # what the page lets readers explore
    need: pd.DataFrame | None = None  # see `TracInRun.predicted_need`

    def points(self) -> list[Point]:
        """Each single snapshot: the curves."""
        alone = self.reliance[~self.reliance["cumulative"]]
        return [_point(table) for _, table in alone.groupby("snapshot", sort=True)]

    def final(self) -> Point:
        """The whole run, all snapshots summed."""
        summed = self.reliance[self.reliance["cumulative"]]
        return _point(summed[summed["snapshot"] == summed["snapshot"].max()])


def _point(table: pd.DataFrame) -> Point:
    """The rows of one snapshot, proponents only where a measure has a sign."""
    mine = table[table["sign"] == "positive"]
    tables: dict[Any, pd.DataFrame] = dict(iter(mine.groupby("measure", sort=False)))
    return Point(int(table["epoch"].iloc[0]), int(table["step"].iloc[0]), tables)


def point(run: TracInRun, snapshot: int, view: View) -> Point:
    """Compute the measures at one snapshot, without intervals, for live curves."""
    tables = {
        measure: run.reliance(
            view.top_k,
            measure=measure,
            similarity=view.similarity,
            weighting=view.weighting,
            snapshots=[snapshot],
            interval=NO_INTERVAL,
        )
        for measure in measures_of(view)
    }
    return Point(run.snapshots[snapshot].epoch, run.snapshots[snapshot].step, tables)


def measures_of(view: View) -> tuple[Measure, ...]:
    """The measures that are shown: the influence of a language with its sign first, then shares where samples can be ranked.

    Example:
        >>> measures_of(View()), measures_of(View(measure="mean"))
        (('sum', 'mean', 'share'), ('sum', 'mean'))
    """
    return (*SIGNED, "share") if view.measure == "share" else SIGNED


def analyse(run: TracInRun, view: View, progress: Progress = False) -> Results:
    """Compute all tables of a run."""
    layers = layer_table(run, view)
    return Results(view, reliance_of(run, view, progress), _top(run, view), run.record.cautions, layers=layers)


def reliance_of(
    run: TracInRun, view: View, progress: Progress = False, measures: Sequence[Measure] | None = None
) -> pd.DataFrame:
    """Measures at each snapshot and summed up to each, with the columns `measure`, `sign` and `cumulative` in front.

    Args:
        run: the run.
        view: the score, and k for shares.
        progress: the bar that is shown.
        measures: which ones. None: all that are shown; see `measures_of`.

    Raises:
        TracInError: the run does not support a measure.
    """
    kinds = [
        (measure, sign, cumulative)
        for measure in measures or measures_of(view)
        for cumulative in (False, True)
        for sign in (_SIGNS if measure == "share" else _SIGNS[:1])
    ]
    parts = {
        (measure, sign, cumulative): run.reliance(
            view.top_k, sign, cumulative, measure, view.similarity, view.weighting, interval=None if cumulative else _CURVES_ALONE
        )
        for measure, sign, cumulative in tracked(progress, kinds, desc="reliance tables", delay=2)
    }
    return stacked(parts, "measure", "sign", "cumulative")


_SIGNS: tuple[Sign, Sign] = ("positive", "negative")

#: Intervals of curves are looked at, not read off: a tenth of the resamples takes a tenth of the time.
_CURVES_ALONE = Interval(resamples=99)


def _top(run: TracInRun, view: View) -> pd.DataFrame:
    probes: list[int] = []
    for language in sorted(set(run.queries.language)):
        probes += [index for index, other in enumerate(run.queries.language) if other == language][:_PROBES_SHOWN]
    k, scoring = min(_SHOWN, len(run.train)), Scoring(similarity=view.similarity, weighting=view.weighting)
    parts = []
    for sign in _SIGNS:
        for probe, table in zip(probes, run.tops(probes, k, sign, scoring), strict=True):
            facts = run.queries.take([probe])
            about: dict[str, Any] = {
                "probe": probe,
                "probe_language": facts.language[0],
                "probe_label": facts.label[0],
                "probe_text": facts.text[0],
                "sign": sign,
                "rank": range(1, len(table) + 1),
            }
            parts.append(table.assign(**about)[[*about, *table.columns]])
    whole: pd.DataFrame = pd.concat(parts, ignore_index=True).sort_values(
        ["probe", "sign", "rank"], ascending=[True, False, True], ignore_index=True
    )
    return whole
