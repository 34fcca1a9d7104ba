"""The results of a run as tables, which every logger and the run's `results` folder receive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from lightning_tracin.analysis.reliance import cross_lingual, mean_cross_lingual
from lightning_tracin.analysis.tables import stacked
from lightning_tracin.config import Measure, Scoring, Sign, View
from lightning_tracin.reporting.language_keys import language_keys
from lightning_tracin.run import TracInRun

#: Number of proponents and opponents shown for each probe, and of probes shown for each language.
_SHOWN, _PROBES_SHOWN = 3, 3


@dataclass(frozen=True)
class Point:
    """Reliance at one snapshot."""

    epoch: int
    step: int
    table: pd.DataFrame  # one row for each probe language and train language
    measure: Measure = "share"

    @property
    def keys(self) -> dict[str, str]:
        """Language -> its part of the keys."""
        return language_keys({*self.table["probe_language"], *self.table["train_language"]})

    @property
    def scalars(self) -> dict[str, float]:
        """Logged key -> value of its curve at this snapshot.

        Example:
            >>> table = pd.DataFrame([("de", "en", 0.25)], columns=["probe_language", "train_language", "share"])
            >>> Point(epoch=1, step=10, table=table.assign(lift=0.5), measure="mean").scalars
            {'tracin/mean_influence/de/en': 0.25}
        """
        values: dict[str, float] = {}
        key = self.keys
        lines = self.table[["probe_language", "train_language", "share", "lift"]].to_numpy()
        if self.measure == "mean":  # has neither a lift nor a cross-lingual complement
            return {f"tracin/mean_influence/{key[probe]}/{key[train]}": float(mean) for probe, train, mean, _ in lines}
        for probe, train, share, lift in lines:
            values[f"tracin/reliance/{key[probe]}/{key[train]}"] = float(share)
            values[f"tracin/lift/{key[probe]}/{key[train]}"] = float(lift)
        for language, value in cross_lingual(self.table).items():
            values[f"tracin/cross_lingual/{key[str(language)]}"] = float(value)
        values["tracin/cross_lingual/mean"] = mean_cross_lingual(self.table)
        return values


@dataclass(frozen=True)
class Results:
    """All tables of a run."""

    view: View
    reliance: pd.DataFrame  # long table: sign, cumulative, snapshot, epoch, step, ...
    top: pd.DataFrame  # strongest proponents and opponents of some probes of each language, with texts
    cautions: tuple[str, ...] = ()  # what readers have to know of the run, in sentences
    tokens: pd.DataFrame | None = None  # the scores of the pairs in `top`, token by token

    def points(self) -> list[Point]:
        """Reliance by proponents at each single snapshot: the curves."""
        chosen = self.reliance[(self.reliance["sign"] == "positive") & ~self.reliance["cumulative"]]
        return [
            Point(int(table["epoch"].iloc[0]), int(table["step"].iloc[0]), table, self.view.measure)
            for _, table in chosen.groupby("snapshot", sort=True)
        ]

    def final(self) -> Point:
        """Reliance by proponents, by the influence of the whole run."""
        chosen = self.reliance[(self.reliance["sign"] == "positive") & self.reliance["cumulative"]]
        last = chosen[chosen["snapshot"] == chosen["snapshot"].max()]
        return Point(int(last["epoch"].iloc[0]), int(last["step"].iloc[0]), last, self.view.measure)


def point(run: TracInRun, snapshot: int, view: View) -> Point:
    """Compute reliance at one snapshot, for live curves."""
    table = run.reliance(
        view.top_k, measure=view.measure, similarity=view.similarity, weighting=view.weighting, snapshots=[snapshot]
    )
    return Point(run.snapshots[snapshot].epoch, run.snapshots[snapshot].step, table, view.measure)


def analyse(run: TracInRun, view: View, progress: bool = False) -> Results:
    """Compute all tables of a run."""
    signs = _SIGNS if view.measure == "share" else _SIGNS[:1]  # a mean is over influence of both signs
    kinds = [(sign, cumulative) for cumulative in (False, True) for sign in signs]
    parts = {
        (sign, cumulative): run.reliance(view.top_k, sign, cumulative, view.measure, view.similarity, view.weighting)
        for sign, cumulative in tqdm(kinds, desc="reliance tables", delay=2, disable=not progress)
    }
    return Results(view, stacked(parts, "sign", "cumulative"), _top(run, view), run.record.cautions)


_SIGNS: tuple[Sign, Sign] = ("positive", "negative")


def _top(run: TracInRun, view: View) -> pd.DataFrame:
    shown: list[int] = []
    for language in sorted(set(run.queries.language)):
        shown += [index for index, other in enumerate(run.queries.language) if other == language][:_PROBES_SHOWN]
    k, scoring = min(_SHOWN, len(run.train)), Scoring(similarity=view.similarity, weighting=view.weighting)
    parts = []
    for sign in _SIGNS:
        for probe, table in zip(shown, run.tops(shown, k, sign, scoring), strict=True):
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
