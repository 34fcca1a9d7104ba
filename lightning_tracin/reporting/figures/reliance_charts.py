"""E3, E4 and the curves of E6: figures of a run's reliance tables."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pandas as pd
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_tracin.reporting.figures import dots, drawing, grids
from lightning_tracin.reporting.figures.lettering import labels
from lightning_tracin.reporting.results import Results
from lightning_tracin.storage.languages import own_languages

PROBES = "probe{} a language"
_SIGNS = {"positive": "proponents", "negative": "opponents"}


def curves(results: Results, languages: Sequence[str] | None = None) -> Figure:
    """Reliance curves: one panel per probe language, one line per train language, chance dotted, intervals shaded."""
    table = pd.concat([point.table for point in results.points()])
    probes, trains = sorted(table["probe_language"].unique()), sorted(table["train_language"].unique())
    style = drawing.looks(trains, languages)
    shown = labels([*probes, *trains])
    figure, axes = drawing.panels(len(probes), 4, (3.1, 2.5), 1.3 + drawing.letters(shown[train] for train in trains))
    own_of = own_languages(probes, trains)
    for panel, language in zip(axes, probes, strict=True):
        mine = table[table["probe_language"] == language]
        for train in trains:
            line, look, own = mine[mine["train_language"] == train], style[train], train == own_of.get(language)
            panel.plot(
                line["step"],
                line["share"],
                color=look.colour,
                marker=look.marker,
                ms=5 if own else 3.5,
                lw=2.4 if own else 1.2,
                label=train,
            )
            panel.fill_between(line["step"], line["low"], line["high"], color=look.colour, alpha=0.15, lw=0)
            panel.axhline(line["chance"].iloc[0], color=look.colour, lw=0.8, ls=":")
        panel.set_title(shown[language] if language in own_of else f"{shown[language]} (zero-shot)", fontsize=10)
        panel.grid(alpha=0.25)
    axes[0].xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    figure.supxlabel("optimizer step", fontsize=10)
    figure.supylabel(results.view.described, fontsize=10)
    drawing.legend(figure, "train language", {shown[train]: drawing.key(style[train], line="-") for train in trains})
    drawing.title(
        figure,
        "Reliance by probe language",
        drawing.facts(table, probes=PROBES),
        f"bold: own language; {drawing.CHANCE}; shaded: {drawing.INTERVAL} over probes",
    )
    return figure


def heat_map(results: Results) -> Figure:
    """Share and lift of the whole run: probe languages are rows, train languages columns; grey if the lift is undefined."""
    table = results.final().table
    lifts = table.pivot(index="probe_language", columns="train_language", values="lift")
    values = table.pivot(index="probe_language", columns="train_language", values="share")
    style = ".0%" if results.view.measure == "share" else ".2g"
    texts = pd.DataFrame(
        [
            [
                f"{grids.written(lift, '.2f')}\n({grids.written(value, style)})"
                for lift, value in zip(lifts.loc[row], values.loc[row], strict=True)
            ]
            for row in lifts.index
        ]
    )
    highest = max(2.0, float(lifts.max(axis=None)))  # stays 2 if the maximum is NaN
    figure = drawing.canvas(*grids.size(lifts))
    grids.coloured(figure, figure.subplots(), lifts, texts, TwoSlopeNorm(vmin=0, vcenter=1, vmax=highest), "lift")
    drawing.title(
        figure,
        f"Lift ({results.view.described}), all snapshots summed",
        drawing.facts(table, probes=PROBES),
        "outlined: own language",
    )
    return figure


def shares(table: pd.DataFrame, languages: Sequence[str] | None = None) -> Figure:
    """E3, E4: the share of each train language in the top k, with its interval and chance.

    Args:
        table: as from `reliance.reliance_table`; optional columns `score` and `sign` give one panel for each value.
        languages: train languages in the order that decides their colours.

    Raises:
        TracInError: a column is missing, or two rows are for the same cell.
    """
    split = [name for name in ("score", "sign") if name in table]
    columns = ("probe_language", "train_language", "share")
    drawing.require(table, [*columns, "chance", "low", "high", "probes"], [*split, *columns[:2]])
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
        dots.grouped(panel, part, columns, names, style, lambda probe, train: own_of.get(probe) == train)
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
        f"filled: own language; {drawing.CHANCE}; bars: {drawing.INTERVAL} over n probes",
    )
    return figure


def _group(name: str, label: str, trained: Collection[str], table: pd.DataFrame) -> str:
    """Label of a probe language: its number of probes, and whether it is zero-shot."""
    count = f"{label}\nn = {drawing.span(table.loc[table['probe_language'] == name, 'probes'])}"
    return count if name in trained else f"{count}\nzero-shot"
