"""The influence of languages, and their shares of the strongest k (E3, E4, E6): figures of a run's tables."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import pandas as pd
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lightning_tracin.analysis.reliance_by_snapshot import NATS
from lightning_tracin.analysis.tally import SIGNED
from lightning_tracin.config import Measure
from lightning_tracin.errors import TracInError
from lightning_tracin.reporting.figures import dots, drawing, grids
from lightning_tracin.reporting.figures.lettering import labels
from lightning_tracin.reporting.results import Point, Results
from lightning_tracin.storage.languages import own_languages

PROBES = "probe{} a language"
INTERVAL = f"{drawing.INTERVAL} over train samples and probes"
_RAILS = ("--", "-.")
_SIGNS = {"positive": "proponents", "negative": "opponents"}


def curves(
    results: Results, languages: Sequence[str] | None = None, measure: Measure = "sum", rails: pd.DataFrame | None = None
) -> Figure:
    """A panel per probe language, a line per train language, by snapshot; chance dotted, intervals shaded.

    Args:
        results: of a run.
        languages: train languages in the order that decides their colours.
        measure: `"sum"` or `"mean"` of influence, the `"share"` of the strongest k, or the `"mass"`: the share of all positive
            influence.
        rails: what the own language's share is where languages share nothing, and where all are one language, drawn as dashed
            lines: columns `probe_language`, `shared` (0 or 1), `step` and `own`.

    Raises:
        TracInError: the results have no such measure.
    """
    table = pd.concat([_table(point, measure) for point in results.points()])
    probes, trains = sorted(table["probe_language"].unique()), sorted(table["train_language"].unique())
    style = drawing.looks(trains, languages)
    shown = labels([*probes, *trains])
    figure, axes = drawing.panels(len(probes), 4, (3.1, 2.5), 1.3 + drawing.letters(shown[train] for train in trains))
    own_of = own_languages(probes, trains)
    for panel, language in zip(axes, probes, strict=True):
        mine = table[table["probe_language"] == language]
        if measure in SIGNED:
            panel.axhline(0, color=drawing.GREY, lw=0.8, zorder=1)
        for train in trains:
            line, look, own = mine[mine["train_language"] == train], style[train], train == own_of.get(language)
            panel.plot(
                line["step"],
                line["value"],
                color=look.colour,
                marker=look.marker,
                ms=5 if own else 3.5,
                lw=2.4 if own else 1.2,
                label=train,
            )
            panel.fill_between(line["step"], line["low"], line["high"], color=look.colour, alpha=0.15, lw=0)
            panel.plot(line["step"], line["null"], color=look.colour, lw=0.8, ls=":")
        if rails is not None:
            for shared, rail in rails[rails["probe_language"] == language].groupby("shared"):
                panel.plot(rail["step"], rail["own"], color=drawing.GREY, lw=1.4, ls=_RAILS[int(str(shared))])
        panel.set_title(shown[language] if language in own_of else f"{shown[language]} (zero-shot)", fontsize=10)
        panel.grid(alpha=0.25)
    axes[0].xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    figure.supxlabel("optimizer step", fontsize=10)
    figure.supylabel(described(results, measure), fontsize=10)
    handles: dict[str, Line2D] = {shown[train]: drawing.key(style[train], line="-") for train in trains}
    if rails is not None:
        handles |= {f"own, p = {shared}": Line2D([], [], color=drawing.GREY, ls=_RAILS[shared]) for shared in (0, 1)}
    drawing.legend(figure, "train language", handles)
    drawing.title(
        figure,
        "What each probe language gets from each train language, snapshot by snapshot",
        drawing.facts(table, probes=PROBES),
        f"bold: own language; {drawing.CHANCE}; shaded: {INTERVAL}",
        "" if rails is None else "grey: own language where languages share nothing (p = 0), and where all are one (p = 1)",
    )
    return figure


def described(results: Results, measure: Measure) -> str:
    """Axis label of a measure."""
    if measure == "share":
        return results.view.described
    if measure == "mass":
        return f"share of all positive influence ({results.view.similarity})"
    unit = _table(results.final(), measure)["unit"].iloc[0]
    what = "influence of a language" if measure == "sum" else "influence of a sample"
    return f"{what}, {unit}" if unit == NATS else f"{what} ({results.view.similarity})"


def _table(point: Point, measure: Measure) -> pd.DataFrame:
    """The table of a measure.

    Raises:
        TracInError: the results have no such measure.
    """
    if measure not in point.tables:
        raise TracInError(f"The results have no measure {measure!r}; they have {', '.join(point.tables)}.")
    return point.tables[measure]


def heat_map(results: Results, measure: Measure = "sum") -> Figure:
    """The whole run: the values of a signed measure, and their contrasts; probe languages are rows, train languages columns.

    Args:
        results: of a run.
        measure: `"sum"` or `"mean"`.

    Raises:
        TracInError: the results have no such measure, or it has no sign.
    """
    table = _table(results.final(), measure)
    if measure not in SIGNED:
        others = "`lift` or `curves`" if measure == "share" else "`curves`"
        raise TracInError(f"measure={measure!r} has no sign; draw it with {others}, or choose 'sum' or 'mean'.")
    parts = {described(results, measure): ("value", "low", "high")}
    if table["contrast"].notna().any():
        parts["contrast: without row and column effects"] = ("contrast", "contrast_low", "contrast_high")
    wide, tall = grids.size(table.pivot(index="probe_language", columns="train_language", values="value"))
    figure = drawing.canvas(wide * len(parts), tall)
    for panel, (label, columns) in zip(figure.subplots(1, len(parts), squeeze=False).flat, parts.items(), strict=True):
        value, low, high = (table.pivot(index="probe_language", columns="train_language", values=name) for name in columns)
        clear = ((low > 0) | (high < 0)).to_numpy()
        style = f"+.{_digits(value)}f"
        texts = pd.DataFrame(
            [
                [f"{grids.written(one, style)}{'*' if clear[row, column] else ''}" for column, one in enumerate(line)]
                for row, line in enumerate(value.to_numpy(dtype=float))
            ]
        )
        grids.coloured(figure, panel, value, texts, grids.symmetric(value), label)
    drawing.title(
        figure,
        f"Influence of {'whole languages' if measure == 'sum' else 'a sample of each language'}, all snapshots summed",
        drawing.facts(table, probes=PROBES),
        f"outlined: own language; *: {INTERVAL} without 0",
    )
    return figure


def _digits(values: pd.DataFrame) -> int:
    """Decimals that show two digits of the largest value."""
    most = float(values.abs().max(axis=None))
    return max(0, 1 - math.floor(math.log10(most))) if most > 0 else 1


def lift(results: Results) -> Figure:
    """Share of the strongest k and its lift in the whole run; grey if the lift is undefined.

    Raises:
        TracInError: the run has language means only.
    """
    table = _table(results.final(), "share")
    lifts = table.pivot(index="probe_language", columns="train_language", values="lift")
    values = table.pivot(index="probe_language", columns="train_language", values="value")
    nulls = table.pivot(index="probe_language", columns="train_language", values="null")
    texts = pd.DataFrame(
        [
            [
                f"{grids.written(one, '.2f')}\n{grids.written(value, '.0%')} ({grids.written(null, '.0%')})"
                for one, value, null in zip(lifts.loc[row], values.loc[row], nulls.loc[row], strict=True)
            ]
            for row in lifts.index
        ]
    )
    highest = max(2.0, float(lifts.max(axis=None)))  # stays 2 if the maximum is NaN
    figure = drawing.canvas(*grids.size(lifts))
    grids.coloured(figure, figure.subplots(), lifts, texts, TwoSlopeNorm(vmin=0, vcenter=1, vmax=highest), "lift")
    drawing.title(
        figure,
        f"Lift, {results.view.described} and (chance), all snapshots summed",
        drawing.facts(table, probes=PROBES),
        "outlined: own language",
    )
    return figure


def shares(table: pd.DataFrame, languages: Sequence[str] | None = None) -> Figure:
    """E3, E4: the share of each train language in the strongest k, with its interval and chance.

    Args:
        table: as from `reliance.reliance_table`; optional columns `score` and `sign` give one panel for each value.
        languages: train languages in the order that decides their colours.

    Raises:
        TracInError: a column is missing, or two rows are for the same cell.
    """
    split = [name for name in ("score", "sign") if name in table]
    columns = ("probe_language", "train_language", "value")
    drawing.require(table, [*columns, "null", "low", "high", "probes"], [*split, *columns[:2]])
    probes, trains = sorted(table["probe_language"].unique()), sorted(table["train_language"].unique())
    style = {name: look for name, look in drawing.looks(trains, languages).items() if name in trains}
    own_of = own_languages(probes, trains)
    shown = labels([*probes, *trains])
    names = {name: _group(name, shown[name], own_of, table) for name in probes}
    parts = [part for _, part in table.groupby(split, sort=False)] if split else [table]
    figure, axes = drawing.panels(
        len(parts),
        5 if "sign" not in table else 4,
        (2.4, dots.height(len(probes), len(trains)) + 0.35),
        1.2 + drawing.letters(names.values()) + drawing.letters(shown[train] for train in trains),
    )
    for panel, part in zip(axes, parts, strict=True):
        dots.grouped(
            panel, part.rename(columns={"null": "chance"}), columns, names, style, lambda probe, train: own_of.get(probe) == train
        )
        panel.set_title(
            ", ".join(_SIGNS.get(str(part[name].iloc[0]), str(part[name].iloc[0])) for name in split), fontsize=drawing.SMALL
        )
    sides = {_SIGNS.get(sign, sign) for sign in table["sign"]} if "sign" in table else {"proponents"}
    figure.supxlabel(f"share of the {drawing.top(table)}{f' {sides.pop()}' if len(sides) == 1 else ''}", fontsize=10)
    figure.supylabel("probe language", fontsize=10)
    drawing.legend(figure, "train language", {shown[name]: drawing.key(look) for name, look in style.items()})
    drawing.title(
        figure,
        "Reliance by probe language and train language",
        drawing.facts(table),
        f"filled: own language; {drawing.CHANCE}; bars: {INTERVAL}",
    )
    return figure


def _group(name: str, label: str, trained: Collection[str], table: pd.DataFrame) -> str:
    """Label of a probe language: its number of probes, and whether it is zero-shot."""
    count = f"{label}\nn = {drawing.span(table.loc[table['probe_language'] == name, 'probes'])}"
    return count if name in trained else f"{count}\nzero-shot"
