"""Which lines the charts in W&B have: few enough to look at, however many languages there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lightning_tracin.analysis.reliance import mean_cross_lingual
from lightning_tracin.analysis.tables import own_language
from lightning_tracin.reporting.line_choice import strongest
from lightning_tracin.reporting.results import Point

#: Probe languages with a chart of their own, lines of train languages in it, and lines in the chart of own languages.
PROBES, LINES, OWN_LINES = 5, 6, 10

#: W&B's chart of a matrix, and what its fields are in the table of influence.
MATRIX, MATRIX_FIELDS = (
    "wandb/confusion_matrix/v1",
    {"Actual": "probe_language", "Predicted": "train_language", "nPredictions": "value"},
)


@dataclass(frozen=True)
class LineChart:
    """The lines of a chart.

    Attributes:
        title: of the chart.
        steps: optimizer steps of the snapshots.
        values: name of a line -> its value at each step.
    """

    title: str
    steps: list[int]
    values: dict[str, list[float]]


def shown_probes(point: Point) -> list[str]:
    """The probe languages with a chart: those on which another language has the strongest influence, in alphabetical order.

    Example:
        >>> rows = [("de", "de", 9.0), ("de", "en", 0.1), ("fr", "de", -0.5), ("fr", "en", 0.25)]
        >>> table = pd.DataFrame(rows, columns=["probe_language", "train_language", "value"])
        >>> shown_probes(Point(1, 10, {"sum": table}))
        ['de', 'fr']
    """
    table = point.tables["sum"]
    others = table.drop(own_language(table).index)
    strongest = others["value"].abs().groupby(others["probe_language"]).max()
    every = strongest.reindex(sorted(table["probe_language"].unique()), fill_value=0.0)
    return sorted(every.sort_values(ascending=False, kind="stable").index[:PROBES])


def influence_lines(points: Sequence[Point], probe: str) -> LineChart:
    """The influence of each train language on a probe language, at each snapshot.

    The languages whose influence is strongest at the last one have a line, and the sum of the others is one. The probe language's
    own always has one, with its interval, where there is one, and what it would be by chance.

    Args:
        points: of each snapshot.
        probe: the probe language.
    """
    table = pd.concat([point.tables["sum"] for point in points])
    mine = table[table["probe_language"] == probe]
    wide = mine.pivot(index="step", columns="train_language", values="value")
    own = own_language(mine).sort_values("step")
    kept, others = strongest(wide.iloc[-1].abs(), LINES, own["train_language"].unique())
    values = {name: wide[name].tolist() for name in sorted(kept)}
    if others:
        values[f"{len(others)} others"] = wide[others].sum(axis=1).tolist()
    for column, said in (("low", "95 % low"), ("high", "95 % high"), ("null", "by chance")):
        if len(own) and own[column].notna().all():
            values[f"{own['train_language'].iloc[0]}, {said}"] = own[column].tolist()
    return LineChart(f"{probe}: influence of each train language ({mine['unit'].iloc[0]})", wide.index.tolist(), values)


def own_lines(points: Sequence[Point]) -> LineChart | None:
    """The share of the own language in the strongest samples of each probe language; None in a run without shares.

    The languages that rely on themselves most have a line, beside the mean over all, and its chance.
    """
    if not all("share" in point.tables for point in points):
        return None
    own = own_language(pd.concat([point.tables["share"] for point in points]))
    wide = own.pivot(index="step", columns="probe_language", values="value")
    if wide.empty:
        return None
    kept = sorted(wide.iloc[-1].sort_values(ascending=False, kind="stable").index[:OWN_LINES])
    values = {str(name): wide[name].tolist() for name in kept}
    for name, column in (("mean of all languages", "value"), ("mean by chance", "null")):
        values[name] = [1 - mean_cross_lingual(point.tables["share"], column) for point in points]
    return LineChart("Share of a language's own samples among the strongest", wide.index.tolist(), values)


def whole_run(point: Point, most: int) -> pd.DataFrame:
    """What each train language is to each probe language over the whole run, every measure: a table of at most `most` rows.

    If there are more, those with the strongest influence are kept.

    Example:
        >>> rows = [("de", "en", -0.5), ("de", "fr", 0.25), ("de", "de", 1.0)]
        >>> table = pd.DataFrame(rows, columns=["probe_language", "train_language", "value"])
        >>> whole_run(Point(1, 10, {"sum": table}), most=2)["train_language"].tolist()
        ['en', 'de']
    """
    table: pd.DataFrame = pd.concat([found.assign(measure=measure) for measure, found in point.tables.items()], ignore_index=True)
    if len(table) <= most:
        return table
    pairs = most // len(point.tables)
    strongest = point.tables["sum"].assign(size=lambda rows: rows["value"].abs()).nlargest(pairs, "size")
    chosen = set(zip(strongest["probe_language"], strongest["train_language"], strict=True))
    kept = np.array([pair in chosen for pair in zip(table["probe_language"], table["train_language"], strict=True)])
    rows: pd.DataFrame = table[kept].reset_index(drop=True)
    return rows
