"""Points with horizontal intervals, one below the other, so that long names fit on the vertical axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lightning_tracin.reporting.figures.drawing import GREY, SMALL, Look

#: Inches for a point in a group of several, for the gap between groups, and at least for a group.
POINT, GAP, ROW = 0.1, 0.14, 0.26


def height(groups: int, series: int) -> float:
    """Height of a panel in inches.

    Example:
        >>> round(height(groups=5, series=4), 2)
        2.7
    """
    return groups * max(ROW, POINT * series + GAP)


def places(groups: int, series: int) -> tuple[list[list[float]], float]:
    """Vertical positions of the points, [groups][series], and the distance between two; group i is centred on i.

    Example:
        >>> places(groups=2, series=1)
        ([[0.0], [1.0]], 0.8)
    """
    room = 0.8 / series
    return [[group - 0.4 + room * (index + 0.5) for index in range(series)] for group in range(groups)], room


def grouped(
    panel: Axes,
    table: pd.DataFrame,
    columns: tuple[str, str, str],
    groups: Mapping[str, str],
    series: Mapping[str, Look],
    filled: Callable[[str, str], bool],
) -> None:
    """Draw one group per name, with a point, its interval and a dotted line at chance for each series.

    Args:
        panel: axes to draw on.
        table: one row for each group and series, with `low`, `high` and `chance`; missing rows stay empty.
        columns: the table's columns that hold the group, the series and the value.
        groups: name -> label.
        series: name -> look.
        filled: whether the point of a group and series is filled; the others are hollow.
    """
    group, one, value = columns
    ys, room = places(len(groups), len(series))
    lines = table.set_index([group, one])
    for column, (name, look) in enumerate(series.items()):
        mine = lines.reindex([(other, name) for other in groups])
        at = [line[column] for line in ys]
        chance = mine["chance"]
        panel.vlines(
            chance, [y - room / 2 for y in at], [y + room / 2 for y in at], colors="black", ls=":", lw=1, label=f"chance {name}"
        )
        interval(panel, mine, at, look, name)
        faces = [look.colour if filled(other, name) else "white" for other in groups]
        panel.scatter(mine[value], at, marker=look.marker, s=22, c=faces, edgecolors=look.colour, lw=1, zorder=3, label=name)
    rows(panel, list(groups.values()))


def interval(panel: Axes, lines: pd.DataFrame, at: Sequence[float], look: Look, name: str, columns: str = "") -> None:
    """Draw the intervals of some rows from the columns `low` and `high`, optionally with a prefix."""
    panel.hlines(
        at, lines[f"{columns}low"], lines[f"{columns}high"], colors=look.colour, lw=1.4, zorder=2, label=f"interval {name}"
    )


def rows(panel: Axes, names: Sequence[str]) -> None:
    """Put the names on the vertical axis, the first on top, with every second row shaded."""
    panel.set_yticks(range(len(names)), list(names), fontsize=SMALL)
    for row in range(0, len(names), 2):
        panel.axhspan(row - 0.5, row + 0.5, color="0.95", lw=0, zorder=0)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.tick_params(axis="y", length=0)
    panel.tick_params(axis="x", labelsize=SMALL, labelbottom=True)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    panel.grid(axis="x", alpha=0.3)


def zero(panel: Axes) -> None:
    """Draw a vertical line at zero."""
    panel.axvline(0, color=GREY, lw=1, zorder=1)
