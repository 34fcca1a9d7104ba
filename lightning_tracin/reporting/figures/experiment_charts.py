"""E5 to E9: figures of the experiments on one or several fits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lightning_tracin.analysis.changes import SIGNIFICANT
from lightning_tracin.analysis.reinforcement import ALL
from lightning_tracin.reporting.figures import dots, drawing, grids
from lightning_tracin.reporting.figures.lettering import language_labels
from lightning_tracin.reporting.figures.reliance_charts import INTERVAL

_MEASURES = {
    "translations": "translations of its samples\nin the top {k} without it",
    "stayed": "other languages' samples\nthat stay in the top {k}",
}


def reinforcement(table: pd.DataFrame, languages: Sequence[str] | None = None) -> Figure:
    """E5: the reinforcing fraction of the top samples from other languages, with its interval and chance.

    Args:
        table: as from `reinforcement.reinforcement_table`.
        languages: train languages in the order that decides their colours.

    Raises:
        TracInError: a column is missing, or two rows are for the same cell.
    """
    columns = ("probe_language", "train_language", "reinforcing")
    drawing.require(table, [*columns, "chance", "low", "high", "probes", "samples"], columns[:2])
    trains = sorted(set(table["train_language"]) - {ALL})
    found = drawing.looks(trains, languages)
    style = {ALL: drawing.Look("black", "D"), **{train: found[train] for train in trains}}
    whole = table[table["train_language"] == ALL].set_index("probe_language")
    probes, names = sorted(table["probe_language"].unique()), {}
    shown = language_labels([*probes, *style])
    for name in probes:
        line = whole.loc[name]
        names[name] = f"{shown[name]}\n{line['probes']:,} probes, {line['samples']:,} samples"
        if line["chance"] == 0:
            names[name] += "\nnone possible (zero-shot)"
    figure, (panel,) = drawing.panels(
        1,
        1,
        (4.2, dots.height(len(names), max(3, len(style)))),
        1.6 + drawing.letters(names.values()) + drawing.letters(shown[name] for name in style),
    )
    dots.grouped(panel, table, columns, names, style, lambda _, train: train == ALL)
    panel.set_xlim(-0.03, 1.03)
    panel.set_xlabel(f"reinforcing part of the {drawing.top(table)} samples from other languages\n(the rest are complementary)")
    panel.set_ylabel("probe language")
    drawing.legend(figure, "train language", {shown[name]: drawing.key(look, name == ALL) for name, look in style.items()})
    drawing.title(
        figure,
        "Do other languages reinforce or complement?",
        drawing.facts(table),
        f"{drawing.CHANCE}; bars: {drawing.INTERVAL} over probes",
    )
    return figure


def changes(table: pd.DataFrame) -> Figure:
    """E6: the change in reliance from the first snapshot to the last; significant changes have a star.

    Args:
        table: as from `changes.change_table`.

    Raises:
        TracInError: a column is missing, or two rows are for the same cell.
    """
    columns = ["probe_language", "train_language"]
    drawing.require(table, [*columns, "before", "after", "difference", "p", "p_adjusted", "probes"])
    first, last = table["before"].min(), table["after"].max()
    whole = table[(table["before"] == first) & (table["after"] == last)]
    drawing.require(whole, columns, columns)
    grid, adjusted = (whole.pivot(index=columns[0], columns=columns[1], values=value) for value in ("difference", "p_adjusted"))
    stars = adjusted.map(lambda p: "*" if p < SIGNIFICANT else "")
    texts = grid.map(lambda value: grids.written(value, "+.2f")) + stars
    figure = drawing.canvas(*grids.size(grid))
    grids.coloured(figure, figure.subplots(), grid, [texts], grids.symmetric(grid), "change of the share")
    drawing.title(
        figure,
        f"Change of the share of the {drawing.top(table)}, snapshot {first} to {last}",
        drawing.facts(whole, probes="probe{} a language"),
        f"* p < {SIGNIFICANT:g} (Wilcoxon, corrected for all {int(table['p'].notna().sum())} tests)",
        "outlined: own language",
    )
    return figure


def zero_shot(table: pd.DataFrame, languages: Sequence[str] | None = None) -> Figure:
    """E7: what takes a language's place when it is left out of training, with chance.

    Args:
        table: as from `zero_shot.zero_shot_table`, with a column `language`.
        languages: train languages in the order that decides their colours.

    Raises:
        TracInError: a column is missing, or two rows are for the same language and measure.
    """
    drawing.require(table, ["language", "measure", "share", "chance", "low", "high", "probes"], ["language", "measure"])
    names = sorted(table["language"].unique())
    found = drawing.looks(names, languages)
    measures = [name for name in _MEASURES if name in set(table["measure"])]
    shown = list(language_labels(names).values())
    figure, axes = drawing.panels(len(measures), 2, (3.2, dots.height(len(names), 1) + 0.9), 1.2 + drawing.letters(shown))
    for panel, measure in zip(axes, measures, strict=True):
        mine = table[table["measure"] == measure].set_index("language").reindex(names)
        for row, (name, line) in enumerate(mine.iterrows()):
            one, look = mine.loc[[name]], found[str(name)]
            panel.vlines(line["chance"], row - 0.4, row + 0.4, colors="black", ls=":", lw=1.4, label=f"chance {name}")
            dots.interval(panel, one, [row], look, str(name))
            panel.scatter(line["share"], row, marker=look.marker, s=30, color=look.colour, zorder=3, label=str(name))
            panel.annotate(
                f"n = {drawing.span(one['probes'])}",
                (1, row),
                (-3, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=7,
                color=drawing.GREY,
            )
        panel.set_title(_MEASURES[measure].format(k=drawing.span(table["k"]) if "k" in table else "k"), fontsize=drawing.SMALL)
        dots.rows(panel, shown)
        panel.set_xlim(-0.03, 1.22)  # space for the number of probes
        panel.set_xticks(np.linspace(0, 1, 5))
    figure.supxlabel("share", fontsize=10)
    figure.supylabel("language left out", fontsize=10)
    drawing.title(
        figure,
        "What takes a language's place when it is left out",
        drawing.facts(table),
        f"{drawing.CHANCE}; bars: {drawing.INTERVAL} over the n probes",
    )
    return figure


def imbalance(table: pd.DataFrame, languages: Sequence[str] | None = None) -> Figure:
    """E8: own-language share by the amount of added data, one panel per language, chance dotted.

    Args:
        table: as from `imbalance.imbalance_table`.
        languages: train languages in the order that decides their colours.

    Raises:
        TracInError: a column is missing, or two rows are for the same language and amount.
    """
    drawing.require(table, ["language", "added", "share", "low", "high", "chance"], ["language", "added"])
    names = sorted(table["language"].unique())
    found = drawing.looks(names, languages)
    shown = language_labels(names)
    figure, axes = drawing.panels(len(names), 4, (2.5, 2.3))
    for panel, name in zip(axes, names, strict=True):
        mine, look = table[table["language"] == name].sort_values("added"), found[name]
        panel.plot(mine["added"], mine["chance"], color="black", ls=":", marker="_", lw=1.2, label="chance")
        panel.vlines(mine["added"], mine["low"], mine["high"], colors=look.colour, lw=1.4, label="interval")
        panel.plot(mine["added"], mine["share"], color=look.colour, marker=look.marker, ms=5, label="share")
        panel.set_title(shown[name], fontsize=10)
        panel.grid(alpha=0.3)
    axes[0].set_xticks(sorted(table["added"].unique()))
    figure.supxlabel("more data of the language, per cent", fontsize=10)
    figure.supylabel(f"own-language share of the {drawing.top(table)}", fontsize=10)
    drawing.title(
        figure,
        "Own-language reliance as a language gets more data",
        drawing.facts(table, probes="probe{} a language"),
        f"{drawing.CHANCE}; bars: {INTERVAL}",
    )
    return figure


def masks(table: pd.DataFrame, languages: Sequence[str] | None = None) -> Figure:
    """E9: own-language share by the gradients of a language's subnetwork, of random ones of its size, and of the whole model.

    Args:
        table: `probe_language`; `share`, `low`, `high` with its own mask; `random_share`, `random_low`, `random_high` of random
            masks (mean, least and most); `whole_share` without a mask; `chance`.
        languages: train languages in the order that decides their colours.

    Raises:
        TracInError: a column is missing, or two rows are for the same language.
    """
    at_random = ["random_share", "random_low", "random_high"]
    drawing.require(table, ["probe_language", "share", "low", "high", "chance", *at_random, "whole_share"], ["probe_language"])
    lines = table.sort_values("probe_language").reset_index(drop=True)
    found, grey = drawing.looks(lines["probe_language"], languages), drawing.Look(drawing.GREY, "o")
    shown = language_labels(lines["probe_language"])
    names = [
        f"{shown[name]} (n = {drawing.span(lines.loc[[row], 'probes'])})" if "probes" in lines else shown[name]
        for row, name in enumerate(lines["probe_language"])
    ]
    figure, (panel,) = drawing.panels(
        1, 1, (4.2, dots.height(len(names), 3)), 1.0 + drawing.letters(names) + drawing.letters(["language's own mask"])
    )
    for row, line in lines.iterrows():
        at, look = float(str(row)), found[line["probe_language"]]
        one = lines.loc[[row]]
        panel.vlines(line["chance"], at - 0.45, at + 0.45, colors="black", ls=":", lw=1.2, label=f"chance {row}")
        dots.interval(panel, one, [at - 0.15], look, line["probe_language"])
        panel.scatter(
            line["share"], at - 0.15, marker=look.marker, s=34, color=look.colour, zorder=3, label=line["probe_language"]
        )
        dots.interval(panel, one, [at + 0.15], grey, f"random {row}", "random_")
        panel.scatter(line["random_share"], at + 0.15, s=24, c="white", edgecolors=drawing.GREY, zorder=3, label=f"random {row}")
        panel.scatter(line["whole_share"], at, marker="|", s=130, color="black", lw=1.8, zorder=4, label=f"whole {row}")
    dots.rows(panel, names)
    panel.set_xlabel(f"own-language share of the {drawing.top(table)}")
    panel.set_ylabel("probe language")
    handles = {
        "language's own mask": drawing.key(drawing.Look("black", "o")),
        "random masks": drawing.key(grey, filled=False),
        "whole model": drawing.key(drawing.Look("black", "|")),
    }
    drawing.legend(figure, "gradients of", handles)
    drawing.title(
        figure,
        "Reliance within subnetworks",
        drawing.facts(table),
        f"{drawing.CHANCE}; bars: {INTERVAL}, of random masks the range",
    )
    return figure
