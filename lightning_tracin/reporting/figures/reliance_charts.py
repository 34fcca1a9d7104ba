"""E3, E4 and the curves of E6: what a run's reliance tables look like."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_tracin.reporting.figures import dots, grids
from lightning_tracin.reporting.figures.drawing import (
    CHANCE,
    INTERVAL,
    SMALL,
    canvas,
    facts,
    key,
    legend,
    letters,
    looks,
    panels,
    require,
    span,
    title,
    top,
)
from lightning_tracin.reporting.results import Results

PROBES = "probe{} a language"
_SIGNS = {"positive": "proponents", "negative": "opponents"}


def curves(results: Results, languages: Sequence[str] | None = None) -> Figure:
    """Reliance curves: one panel a probe language, one line a train language, chance dotted, intervals shaded."""
    table = pd.concat([point.table for point in results.points()])
    probes, trains = sorted(table["probe_language"].unique()), sorted(table["train_language"].unique())
    style = looks(trains, languages)
    figure, axes = panels(len(probes), 4, (3.1, 2.5), 1.3 + letters(trains))
    for panel, language in zip(axes, probes, strict=True):
        mine = table[table["probe_language"] == language]
        for train in trains:
            line, look, own = mine[mine["train_language"] == train], style[train], train == language
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
        panel.set_title(language if language in trains else f"{language} (zero-shot)", fontsize=10)
        panel.grid(alpha=0.25)
    axes[0].xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    figure.supxlabel("optimizer step", fontsize=10)
    figure.supylabel(results.view.described, fontsize=10)
    legend(figure, "train language", {train: key(style[train], line="-") for train in trains})
    title(
        figure,
        "Reliance by probe language",
        facts(table, probes=PROBES),
        f"bold: own language; {CHANCE}; shaded: {INTERVAL} over probes",
    )
    return figure


def heat_map(results: Results) -> Figure:
    """Share and lift of the whole run: probe languages down, train languages across; grey where lift is undefined."""
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
    highest = max(2.0, float(lifts.max(axis=None)))  # NaN, where no lift is defined, compares as false and leaves 2
    figure = canvas(*grids.size(lifts))
    grids.coloured(figure, figure.subplots(), lifts, texts, TwoSlopeNorm(vmin=0, vcenter=1, vmax=highest), "lift")
    title(figure, f"Lift ({results.view.described}), all snapshots summed", facts(table, probes=PROBES), "outlined: own language")
    return figure


def shares(table: pd.DataFrame, languages: Sequence[str] | None = None) -> Figure:
    """E3, E4: the share of each train language in the top k, with its interval, beside chance.

    Args:
        table: as from `reliance.reliance_table`; with a column `score` a panel for each, with a column `sign` one for proponents
            and one for opponents.
        languages: all that should keep their colour in several figures, in order.

    Raises:
        TracInError: the table lacks a column, or has several lines for the same.
    """
    split = [name for name in ("score", "sign") if name in table]
    columns = ("probe_language", "train_language", "share")
    require(table, [*columns, "chance", "low", "high", "probes"], [*split, *columns[:2]])
    probes, trains = sorted(table["probe_language"].unique()), sorted(table["train_language"].unique())
    style = {name: look for name, look in looks(trains, languages).items() if name in trains}
    names = {name: _group(name, trains, table) for name in probes}
    parts = [part for _, part in table.groupby(split, sort=False)] if split else [table]
    figure, axes = panels(
        len(parts),
        5 if "sign" not in table else 4,
        (2.4, dots.height(len(probes), len(trains)) + 0.35),
        1.2 + letters(names.values()) + letters(trains),
    )
    for panel, part in zip(axes, parts, strict=True):
        dots.grouped(panel, part, columns, names, style, lambda probe, train: probe == train)
        panel.set_title(", ".join(_SIGNS.get(str(part[name].iloc[0]), str(part[name].iloc[0])) for name in split), fontsize=SMALL)
    sides = {_SIGNS.get(sign, sign) for sign in table["sign"]} if "sign" in table else {"proponents"}
    figure.supxlabel(f"share of the {top(table)}{f' {sides.pop()}' if len(sides) == 1 else ''}", fontsize=10)
    figure.supylabel("probe language", fontsize=10)
    legend(figure, "train language", {name: key(look) for name, look in style.items()})
    title(
        figure,
        "Reliance by probe language and train language",
        facts(table),
        f"filled: own language; {CHANCE}; bars: {INTERVAL} over n probes",
    )
    return figure


def _group(name: str, trains: Sequence[str], table: pd.DataFrame) -> str:
    """A probe language as it is written: with its number of probes, and whether it has train samples."""
    count = f"{name}\nn = {span(table.loc[table['probe_language'] == name, 'probes'])}"
    return count if name in trains else f"{count}\nzero-shot"
