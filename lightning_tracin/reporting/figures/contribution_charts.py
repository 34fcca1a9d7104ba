"""Contributions: the measured loss of a probe group, and which train groups lowered it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from lightning_tracin.analysis.contributions import UNEXPLAINED, grouping_of
from lightning_tracin.analysis.language_order import ordered
from lightning_tracin.errors import TracInError
from lightning_tracin.reporting.figures import drawing
from lightning_tracin.reporting.figures.language_lines import LINES
from lightning_tracin.reporting.figures.lettering import labels, language_labels
from lightning_tracin.reporting.figures.paper_figure import PaperFigure
from lightning_tracin.reporting.figures.sheets import Sheet
from lightning_tracin.reporting.line_choice import strongest
from lightning_tracin.storage.account import OTHER_SOURCES
from lightning_tracin.storage.languages import own_languages

#: The greys of what is no train group.
_GREYS = dict(zip((*OTHER_SOURCES, UNEXPLAINED), ("0.45", "0.6", "0.75", "0.88"), strict=True))

#: The sources of what train groups without an area of their own did: a probe group's own, and all others. And their colours.
OWN_GROUP, OTHER_GROUPS = "own, if not above", "others together"
_MERGED = {OWN_GROUP: "#333333", OTHER_GROUPS: "#ddcfb4"}


def contributions(
    table: pd.DataFrame, probe: str | None = None, languages: Sequence[str] | None = None, width: float | None = None
) -> PaperFigure:
    """The measured loss of each probe group over the fit, and its fall split by train groups.

    From the loss at the start (dotted), what each source lowered is stacked downwards, and what it raised upwards, so that the
    two together end at the measured loss (black). Of more than nine train groups, the eight that changed a loss most have areas
    of their own, and the others one together.

    Args:
        table: as from `contributions.contribution_table(..., cumulative=True)`.
        probe: a probe group. None: all, a panel each.
        languages: train groups in the order that decides their colours.
        width: of the figure in inches, in a paper. None: a wide page.

    Raises:
        TracInError: a column is missing, there are no rows, the table is not cumulative, there is no such probe group, or the
            width is out of range.
    """
    drawing.require(table, ["window", "first_step", "step", "nats", "fall", "loss", "probes", "is_group"])
    group, train = grouping_of(table)
    starts = (table["loss"] + table["fall"]).groupby(table[group])
    if not np.allclose(starts.max(), starts.min(), rtol=1e-6, atol=1e-9):
        raise TracInError("The table holds each window alone, but the figure needs sums; take `cumulative=True`.")
    probes = _order(table[group].unique(), group)
    if probe is not None and probe not in probes:
        raise TracInError(f"There is no {group.replace('_', ' ')} {probe!r}; the table has {', '.join(sorted(probes))}.")
    shown, sheet = [name for name in probes if probe in (None, name)], Sheet(width)
    table = _others_together(table[table[group].isin(shown)], group, train)
    found = table[[train, "is_group"]].drop_duplicates().itertuples(index=False, name=None)
    sources = sorted(found, key=lambda source: (not source[1], [*_MERGED].index(source[0]) if source[0] in _MERGED else -1))
    styles = _styles(sources, languages)
    names = (language_labels if train.endswith("language") else labels)([*(name for name, _ in sources), *shown])
    line: dict[str, Any] = {"measured loss": Line2D([], [], color="black", lw=1.6 * sheet.fine)}
    patches = {_label(source, names, sources): Patch(**style) for source, style in styles.items()}
    margin, handles = 1.3 + drawing.letters(names[name] for name, _ in sources), line | patches
    figure, axes = sheet.panels(len(shown), 4, (3.1, 2.7) if probe is None else (4.6, 3.4), margin, len(handles))
    for panel, name in zip(axes, shown, strict=True):
        _draw(panel, table[table[group] == name], train, styles, sheet.fine)
        panel.set_title(names[name], fontsize=sheet.text, pad=6 * sheet.fine)
    axes[0].xaxis.set_major_locator(MaxNLocator(nbins=5 if width is None else 3, integer=True))
    sheet.name_axes(figure, "optimizer step", "loss (nats)")
    sheet.legend(figure, train.replace("_", " "), handles)
    sheet.title(
        figure,
        f"What lowered the loss, by {group.replace('_', ' ')}",
        drawing.facts(table, probes=f"probe{{}} a {group.removeprefix('probe_')}"),
        "dotted: loss at the start; above it: what raised the loss",
    )
    return figure


def _order(names: Iterable[str], group: str) -> list[str]:
    return ordered(names) if group.endswith("language") else sorted(names)


def _others_together(table: pd.DataFrame, group: str, train: str) -> pd.DataFrame:
    """The table with one source for all train groups that have no area of their own, and one for a probe group's own.

    Contributions add up, so theirs do.
    """
    groups = table[table["is_group"]]
    _, others = strongest(groups["nats"].abs().groupby(groups[train]).max(), LINES)
    if not others:
        return table
    own_of = own_languages(list(table[group].unique()), list(groups[train].unique()))
    left = table["is_group"] & table[train].isin(others)
    named = table[train].mask(left, OTHER_GROUPS).mask(left & (table[group].map(own_of) == table[train]), OWN_GROUP)
    merged = table.assign(**{train: named})
    keys = [name for name in merged.columns if name not in ("nats", "low", "high", "samples")]
    summed: pd.DataFrame = merged.groupby(keys, sort=False, dropna=False, as_index=False)["nats"].sum()
    return summed


def _styles(sources: Sequence[tuple[str, bool]], languages: Sequence[str] | None) -> dict[tuple[str, bool], dict[str, Any]]:
    """How the area of each source is filled: train groups in colour, all else in grey."""
    looks = drawing.looks((name for name, is_group in sources if is_group and name not in _MERGED), languages)
    used: list[str] = []
    styles: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, is_group in sources:
        if not is_group:
            colour, pattern = _GREYS[name], ""
        elif name in _MERGED:
            colour, pattern = _MERGED[name], ""
        else:
            colour = looks[name].colour
            pattern = drawing.PATTERNS[used.count(colour) % len(drawing.PATTERNS)]
            used.append(colour)
        styles[name, is_group] = {"facecolor": colour, "hatch": pattern, "edgecolor": "white", "linewidth": 0.0}
    return styles


def _label(source: tuple[str, bool], names: dict[str, str], sources: Sequence[tuple[str, bool]]) -> str:
    """The name of a source in the legend; where a train group is called like something else, that is in brackets."""
    name, is_group = source
    return f"({names[name]})" if not is_group and (name, True) in sources else names[name]


def _draw(panel: Axes, mine: pd.DataFrame, train: str, styles: dict[tuple[str, bool], dict[str, Any]], fine: float) -> None:
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
    panel.plot(steps, [start, *(start - windows["fall"])], color="black", lw=1.6 * fine, label="measured loss")
    panel.axhline(start, color=drawing.GREY, lw=0.8, ls=":", label="start")
    panel.grid(alpha=0.25)
    panel.set_axisbelow(True)


def _of(mine: pd.DataFrame, train: str, source: tuple[Hashable, bool]) -> list[float]:
    rows = mine[(mine[train] == source[0]) & (mine["is_group"] == source[1])].sort_values("window")
    return [float(value) for value in rows["nats"]]
