"""E2, leaving languages out, LDS: whether influence and reliance predict the results of refits."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_tracin.analysis.agreement import correlations
from lightning_tracin.analysis.contrast import contrast_of
from lightning_tracin.analysis.tables import own_cells
from lightning_tracin.errors import TracInError
from lightning_tracin.reporting.figures import dots, drawing, grids

#: With more removals than this, each gets a panel of its own.
_TOGETHER = 5

_RANDOM, _POINT = drawing.Look(drawing.GREY, "d"), drawing.Look("#0072B2", "o")


def removal_curve(table: pd.DataFrame) -> Figure:
    """E2: how much the probability of the correct class drops without k samples, compared with random removals.

    Args:
        table: as from `removal.removal_table`, with a column `removed`: the name of the removal.

    Raises:
        TracInError: a column is missing, or two rows are for the same removal and k.
    """
    at_random = ["random_drop", "random_low", "random_high"]
    drawing.require(table, ["removed", "k", "drop", "low", "high", *at_random], ["removed", "k"])
    names = list(dict.fromkeys(table["removed"]))
    style = drawing.looks(names)
    shown = [names] if len(names) <= _TOGETHER else [[name] for name in names]
    figure, axes = drawing.panels(len(shown), 4, (4.8, 3.4) if len(shown) == 1 else (2.6, 2.3), 1.2 + drawing.letters(names))
    apart = (float(np.ptp(table["k"])) or float(table["k"].max())) / 70
    handles = {name: drawing.key(style[name], line="-") for name in names} if len(shown) == 1 else {}
    for panel, some in zip(axes, shown, strict=True):
        mine = table[table["removed"].isin(some)].sort_values("k", kind="stable")
        drawn = [(name, mine[mine["removed"] == name], "", style[name], "-") for name in some]
        if mine.groupby("k")[at_random].nunique(dropna=False).gt(1).to_numpy().any():  # each has random removals of its own
            drawn += [(f"at random, {name}", lines, "random_", look, "--") for name, lines, _, look, _ in drawn]
            handles["dashed: k at random"] = drawing.key(drawing.Look("black", ""), line="--")
        else:
            drawn.append(("at random", mine.drop_duplicates("k"), "random_", _RANDOM, "--"))
            handles["k at random"] = drawing.key(_RANDOM, line="--")
        for index, curve in enumerate(drawn):
            _draw(panel, (index - (len(drawn) - 1) / 2) * apart, *curve)
        panel.axhline(0, color=drawing.GREY, lw=0.8, zorder=1)
        panel.grid(alpha=0.25)
        if len(shown) > 1:
            panel.set_title(textwrap.fill(some[0], 30), fontsize=8)
    axes[0].margins(x=0.05 if table["k"].nunique() > 1 else 0.5)
    axes[0].set_xticks(sorted(table["k"].unique()))
    figure.supxlabel("k, removed train samples", fontsize=10)
    figure.supylabel("relative drop of the\ncorrect class's probability", fontsize=10)
    drawing.legend(figure, "removed", handles)
    drawing.title(
        figure,
        "Removing the most influential samples",
        drawing.facts(table.drop(columns="k"), probes="probe{}"),
        f"bars: {drawing.INTERVAL} over items",
    )
    return figure


def _draw(panel: Axes, aside: float, name: str, lines: pd.DataFrame, prefix: str, look: drawing.Look, line: str) -> None:
    """Draw a curve with its intervals, moved aside a little; the prefix is that of the columns `drop`, `low` and `high`."""
    at = lines["k"] + aside
    panel.vlines(at, lines[f"{prefix}low"], lines[f"{prefix}high"], colors=look.colour, lw=1.2, label=f"interval {name}")
    panel.plot(at, lines[f"{prefix}drop"], color=look.colour, marker=look.marker, ms=5, lw=1.4, ls=line, label=name)


def deletion_areas(rows: pd.DataFrame) -> Figure:
    """E2: AUC-DEL of each removal with its interval, the most negative on top.

    Args:
        rows: columns `removed`, `area`, `low`, `high`.

    Raises:
        TracInError: a column is missing, or two rows are for the same removal.
    """
    drawing.require(rows, ["removed", "area", "low", "high"], ["removed"])
    lines = rows.sort_values("area", kind="stable")
    figure, panel = _forest(lines, "removed", "area")
    panel.set_xlabel(
        "AUC-DEL: area under the change of the correct class's probability\n(negative: what was removed had supported)"
    )
    drawing.title(figure, "Area by deletion", drawing.facts(rows, probes="probe{}"), f"bars: {drawing.INTERVAL} over items")
    return figure


def lds_bars(rows: pd.DataFrame) -> Figure:
    """How well each score predicts refits (LDS), with its interval, the best on top; hollow: within the probe's class.

    Args:
        rows: columns `score`, `lds`, `low`, `high`, `within_class` (the LDS within classes, or NaN).

    Raises:
        TracInError: a column is missing, or two rows are for the same score.
    """
    drawing.require(rows, ["score", "lds", "low", "high", "within_class"], ["score"])
    lines = rows.sort_values("lds", ascending=False, kind="stable")
    figure, panel = _forest(lines, "score", "lds")
    panel.scatter(
        lines["within_class"],
        range(len(lines)),
        marker="s",
        s=22,
        c="white",
        edgecolors="#D55E00",
        zorder=4,
        label="within_class",
    )
    panel.set_xlabel("LDS: rank correlation with refits on random halves")
    drawing.title(
        figure,
        "How well scores predict refits",
        drawing.facts(rows, probes="probe{}", subsets="subset{}"),
        f"filled: all, with {drawing.INTERVAL}; hollow squares: within a class",
    )
    return figure


def agreement(table: pd.DataFrame) -> Figure:
    """How well each score's reliance table predicts leaving a language out, the best on top, with the noise floor.

    Args:
        table: as from `agreement.agreement_tables`; an optional column `cells` says how many cells of other languages the
            correlation is over.

    Raises:
        TracInError: a column is missing, or two rows are for the same score and measure.
    """
    columns = ["score", "measure", "contrast", "contrast_low", "contrast_high", "contrast_floor"]
    drawing.require(table, columns, columns[:2])
    measures = list(dict.fromkeys(table["measure"]))
    first = table[table["measure"] == measures[0]].sort_values("contrast", ascending=False, kind="stable")
    names = list(dict.fromkeys([*first["score"], *table["score"]]))
    style = drawing.looks(measures)
    lines = table.rename(columns={"contrast_low": "low", "contrast_high": "high", "contrast_floor": "chance"})
    figure, (panel,) = drawing.panels(
        1, 1, (4.4, dots.height(len(names), len(measures))), 1.2 + drawing.letters(names) + drawing.letters(measures)
    )
    dots.grouped(panel, lines, ("score", "measure", "contrast"), {name: name for name in names}, style, lambda *_: True)
    dots.zero(panel)
    panel.set_xlim(-1.03, 1.03)
    panel.set_xticks(np.linspace(-1, 1, 5))
    panel.set_xlabel("correlation with the measured change in loss\n(other languages, row and column effects taken out)")
    drawing.legend(figure, "measure", {name: drawing.key(look) for name, look in style.items()})
    drawing.title(
        figure,
        "Which tables predict the effect of leaving a language out",
        drawing.facts(table, cells="cell{} of other languages"),
        f"bars: {drawing.INTERVAL} over seeds and languages; dotted: 95th percentile of permuted tables",
    )
    return figure


def left_out(changes: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """Change in each probe language's loss without a train language: its contrast against a table's, and as a heat map.

    The correlation is that of `agreement.correlations` for contrasts: over cells of other languages than the probe language's
    own, whose high values would decide it alone.

    Args:
        changes: as from `leave_one_out.Changes.table`.
        table: as from `reliance.reliance_table`, of one score; a column `measure` says by which measure, otherwise it is
            the share. Cells without a value are in the heat map only.

    Raises:
        TracInError: a column is missing, two rows are for the same cell, or the tables have no cells in common.
    """
    columns = ["probe_language", "train_language"]
    drawing.require(changes, [*columns, "change", "error", "seeds", "probes"], columns)
    drawing.require(table, [*columns, "value"], columns)
    change, error = (changes.pivot(index=columns[0], columns=columns[1], values=value) for value in ("change", "error"))
    share = table.pivot(index=columns[0], columns=columns[1], values="value").reindex(index=change.index, columns=change.columns)
    known = share.where(change.notna()).dropna(axis="columns", how="all").dropna()
    if known.empty:
        raise TracInError("The table has shares for none of the measured languages; give one with the same languages.")
    spread = error.loc[known.index, known.columns].to_numpy()
    whole = pd.DataFrame(own_cells(change), change.index, change.columns)  # other names may tell which script a name means
    own = whole.loc[known.index, known.columns].to_numpy()
    measured = change.loc[known.index, known.columns]
    said, was = contrast_of(known, own), contrast_of(measured, own)
    pearson = correlations(known, measured, own)["contrast"]
    counted = np.isfinite(said) & np.isfinite(was) & ~own
    wide, tall = grids.size(change)
    figure = drawing.canvas(wide + 4.4, max(tall, 4.2))
    scatter, grid = figure.subplots(1, 2, width_ratios=[4.4, wide])
    kinds = {"own language": (own, drawing.Look("#D55E00", "s")), "other language": (~own, _POINT)}
    for name, (which, look) in kinds.items():
        middle, far = was[which], spread[which]
        scatter.vlines(said[which], middle - far, middle + far, colors=look.colour, lw=1, alpha=0.6, label=f"error {name}")
        scatter.scatter(said[which], middle, marker=look.marker, s=26, color=look.colour, label=name, zorder=3)
    scatter.axhline(0, color=drawing.GREY, lw=0.8, zorder=1)
    scatter.axvline(0, color=drawing.GREY, lw=0.8, zorder=1)
    measures = table["measure"].unique() if "measure" in table else ["share"]
    what = f"share of the {drawing.top(table)}" if list(measures) == ["share"] else f"{', '.join(measures)} of influence"
    scatter.set_xlabel(f"{what}\n(row and column effects taken out)")
    scatter.set_ylabel("change in loss\n(row and column effects taken out)")
    scatter.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    low, high = scatter.get_ylim()
    scatter.set_ylim(low, high + 0.12 * (high - low))  # space for the legend
    scatter.legend([drawing.key(look) for _, look in kinds.values()], list(kinds), loc="upper center", ncols=2, fontsize=8)
    scatter.set_title(
        f"Pearson {'undefined' if np.isnan(pearson) else format(pearson, '.2f')} over {counted.sum()} of "
        f"{(~whole).to_numpy().sum()} cells of other languages",
        fontsize=drawing.SMALL,
    )
    errors = error.map(lambda value: "" if np.isnan(value) else f"\n± {value:.2f}")
    texts = change.map(lambda value: grids.written(value, "+.2f")) + errors
    grids.coloured(figure, grid, change, [texts], grids.symmetric(change), "change in loss")
    grid.set_xlabel("train language left out")
    grid.set_title("measured change in loss", fontsize=drawing.SMALL)
    drawing.title(
        figure,
        "Leaving one language out, compared with reliance",
        drawing.facts(changes, probes="probe{} a language"),
        "outlined: own language",
        "bars and ±: standard error over seeds" if error.notna().any(axis=None) else "one seed: no error known",
    )
    return figure


def _forest(lines: pd.DataFrame, names: str, value: str) -> tuple[Figure, Axes]:
    """Draw a point with its interval for each row, in order, and a line at zero; random removals and scores are grey."""
    labels = list(lines[names])
    figure, (panel,) = drawing.panels(1, 1, (4.4, dots.height(len(labels), 1) + 0.4), 0.6 + drawing.letters(labels))
    for row, name in enumerate(labels):
        look = drawing.Look(drawing.GREY, "d") if str(name).startswith("random") else _POINT
        dots.interval(panel, lines.iloc[[row]], [row], look, name)
        panel.scatter(lines[value].iloc[row], row, marker=look.marker, s=28, color=look.colour, zorder=3, label=name)
    dots.zero(panel)
    dots.rows(panel, labels)
    return figure, panel
