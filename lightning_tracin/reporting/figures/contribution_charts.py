"""Contributions: the measured loss of a probe group, and which train groups lowered it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from lightning_tracin.analysis.contributions import UNEXPLAINED, grouping_of
from lightning_tracin.errors import TracInError
from lightning_tracin.reporting.figures import drawing
from lightning_tracin.reporting.figures.lettering import labels
from lightning_tracin.storage.account import OTHER_SOURCES

#: The greys of what is no train group, and the patterns of train groups that share a colour with an earlier one.
_GREYS = dict(zip((*OTHER_SOURCES, UNEXPLAINED), ("0.45", "0.6", "0.75", "0.88"), strict=True))
_PATTERNS = ("", "///", "...", "xxx", "\\\\\\", "+++")


def contributions(table: pd.DataFrame, probe: str | None = None, languages: Sequence[str] | None = None) -> Figure:
    """The measured loss of each probe group over the fit, and its fall split by train groups.

    From the loss at the start (dotted), what each source lowered is stacked downwards, and what it raised upwards, so that the
    two together end at the measured loss (black).

    Args:
        table: as from `contributions.contribution_table(..., cumulative=True)`.
        probe: a probe group. None: all, a panel each.
        languages: train groups in the order that decides their colours.

    Raises:
        TracInError: a column is missing, there are no rows, the table is not cumulative, or there is no such probe group.
    """
    drawing.require(table, ["window", "first_step", "step", "nats", "fall", "loss", "probes", "is_group"])
    group, train = grouping_of(table)
    starts = (table["loss"] + table["fall"]).groupby(table[group])
    if not np.allclose(starts.max(), starts.min(), rtol=1e-6, atol=1e-9):
        raise TracInError("The table holds each window alone, but the figure needs sums; take `cumulative=True`.")
    probes = sorted(table[group].unique())
    if probe is not None and probe not in probes:
        raise TracInError(f"There is no {group.replace('_', ' ')} {probe!r}; the table has {', '.join(probes)}.")
    shown = [name for name in probes if probe in (None, name)]
    sources = list(table[[train, "is_group"]].drop_duplicates().itertuples(index=False, name=None))
    styles, names = _styles(sources, languages), labels([*(name for name, _ in sources), *shown])
    margin = 1.3 + drawing.letters(names[name] for name, _ in sources)
    figure, axes = drawing.panels(len(shown), 4, (3.1, 2.7) if probe is None else (4.6, 3.4), margin)
    for panel, name in zip(axes, shown, strict=True):
        _draw(panel, table[table[group] == name], train, styles)
        panel.set_title(names[name], fontsize=10)
    axes[0].xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    figure.supxlabel("optimizer step", fontsize=10)
    figure.supylabel("loss (nats)", fontsize=10)
    line: dict[str, Any] = {"measured loss": Line2D([], [], color="black", lw=1.6)}
    patches = {_label(source, names, sources): Patch(**style) for source, style in styles.items()}
    drawing.legend(figure, f"lowered by {train.replace('_', ' ')}", line | patches)
    drawing.title(
        figure,
        f"What lowered the loss, by {group.replace('_', ' ')}",
        drawing.facts(table[table[group].isin(shown)], probes=f"probe{{}} a {group.removeprefix('probe_')}"),
        "dotted: loss at the start; above it: what raised the loss",
    )
    return figure


def _styles(sources: Sequence[tuple[str, bool]], languages: Sequence[str] | None) -> dict[tuple[str, bool], dict[str, Any]]:
    """How the area of each source is filled: train groups in colour, all else in grey."""
    looks = drawing.looks((name for name, is_group in sources if is_group), languages)
    used: list[str] = []
    styles: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, is_group in sources:
        colour, pattern = (looks[name].colour, "") if is_group else (_GREYS[name], "")
        if is_group:
            pattern = _PATTERNS[used.count(colour) % len(_PATTERNS)]
            used.append(colour)
        styles[name, is_group] = {"facecolor": colour, "hatch": pattern, "edgecolor": "white", "linewidth": 0.0}
    return styles


def _label(source: tuple[str, bool], names: dict[str, str], sources: Sequence[tuple[str, bool]]) -> str:
    """The name of a source in the legend; where a train group is called like something else, that is in brackets."""
    name, is_group = source
    return f"({names[name]})" if not is_group and (name, True) in sources else names[name]


def _draw(panel: Axes, mine: pd.DataFrame, train: str, styles: dict[tuple[str, bool], dict[str, Any]]) -> None:
    """Draw the rows of one probe group."""
    windows = mine.groupby("window", sort=True)[["first_step", "step", "fall", "loss"]].first()
    start = float(windows["loss"].iloc[0] + windows["fall"].iloc[0])
    steps = [int(windows["first_step"].iloc[0]) - 1, *windows["step"]]
    below, above = np.full(len(steps), start), np.full(len(steps), start)
    for source, style in styles.items():
        nats = np.array([0.0, *_of(mine, train, source)])
        lowered, raised = np.clip(nats, 0, None), np.clip(-nats, 0, None)
        for floor, ceiling in ((below - lowered, below), (above, above + raised)):
            if (ceiling > floor).any():
                panel.fill_between(steps, floor, ceiling, label=source[0], **style)
        below, above = below - lowered, above + raised
    panel.plot(steps, [start, *(start - windows["fall"])], color="black", lw=1.6, label="measured loss")
    panel.axhline(start, color=drawing.GREY, lw=0.8, ls=":", label="start")
    panel.grid(alpha=0.25)


def _of(mine: pd.DataFrame, train: str, source: tuple[Hashable, bool]) -> list[float]:
    rows = mine[(mine[train] == source[0]) & (mine["is_group"] == source[1])].sort_values("window")
    return [float(value) for value in rows["nats"]]
