"""Heat maps of tables with the values written in the cells: probe languages are rows, train languages columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from lightning_tracin.analysis.tables import own_cells
from lightning_tracin.reporting.figures.drawing import DIVERGING, letters
from lightning_tracin.reporting.figures.lettering import language_labels
from lightning_tracin.reporting.figures.paper_figure import PaperFigure
from lightning_tracin.reporting.figures.sheets import Sheet

#: Smallest and largest width of a cell, its height, and the width that a figure's title needs, in inches, on a wide page.
_NARROW, _WIDE, _ROW, _TITLE = 0.75, 1.1, 0.5, 5.5

#: In a column of a paper: smallest and largest height of a cell, and smallest width of a grid beside another, in inches.
_LOW, _HIGH, _PANEL = 0.1, 0.3, 3.0
#: Names of columns are upright in cells narrower than this part of the longest.
_FLAT = 1.1
#: Smallest text, and the diameter of a dot, in points.
_SMALLEST, _DOT = 5.0, 2.0
#: Size of a colour bar's label, in points, and letters of its shortest line.
_LABEL, _SHORTEST = 10.0, 16

_PAGE = Sheet()

_NO_VALUE = "–"


def written(value: float, style: str) -> str:
    """Format the value of a cell.

    Example:
        >>> written(0.125, "+.2f"), written(float("nan"), "+.2f")
        ('+0.12', '–')
    """
    return _NO_VALUE if np.isnan(value) else f"{value:{style}}"


def size(grid: pd.DataFrame) -> tuple[float, float]:
    """Width and height of a grid with its labels on a wide page, in inches."""
    rows, columns = _names(grid)
    below = letters(columns) * 0.75 if _slanted(columns) else 0.2
    cell = min(max(_NARROW, letters(columns) + 0.1), _WIDE)
    return max(_TITLE, cell * grid.shape[1] + letters(rows) + 1.6), _ROW * grid.shape[0] + below + 1.2


def canvas(sheet: Sheet, grid: pd.DataFrame, parts: int) -> tuple[PaperFigure, list[Axes]]:
    """An empty figure for some grids of one shape: side by side, or one below the other in a narrow column."""
    if sheet.width is None:
        wide, tall = size(grid)
        figure = sheet.canvas(wide * parts, tall)
        return figure, list(figure.subplots(1, parts, squeeze=False).flat)
    across = parts if sheet.width / parts >= _PANEL else 1
    cell, tall = _cell(sheet, grid, across)
    down = -(-parts // across)
    below = letters(_names(grid)[1], sheet.small) if cell < _FLAT * letters(_names(grid)[1], sheet.small) else 0.15
    figure = sheet.canvas(sheet.width, down * (tall * grid.shape[0] + 0.45) + below + 0.3)
    panels = list(figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flat)
    return figure, panels


def _cell(sheet: Sheet, grid: pd.DataFrame, across: int) -> tuple[float, float]:
    """Width and height of a cell in a column, in inches."""
    assert sheet.width is not None
    names = letters(_names(grid)[0], sheet.small)
    wide = (sheet.width - names - 0.4) / across / grid.shape[1]
    return wide, min(max(wide, _LOW), _HIGH)


def _names(grid: pd.DataFrame) -> tuple[list[str], list[str]]:
    """How rows and columns are shown; the same language in the same way."""
    shown = language_labels([*grid.index, *grid.columns])
    return [shown[name] for name in grid.index], [shown[name] for name in grid.columns]


def _slanted(columns: list[str]) -> bool:
    return letters(columns) + 0.1 > _WIDE


def coloured(
    figure: PaperFigure,
    panel: Axes,
    grid: pd.DataFrame,
    texts: Sequence[pd.DataFrame],
    norm: Normalize,
    label: str,
    sheet: Sheet = _PAGE,
    marked: pd.DataFrame | None = None,
) -> None:
    """Draw a grid.

    Args:
        figure: the panel's figure; gets the colour bar.
        panel: axes to draw on.
        grid: values; NaN cells are grey.
        texts: texts of the cells, the longest first; in a column of a paper, those that fit are written.
        norm: maps values to colours; its centre is white.
        label: label of the colour bar.
        sheet: where the figure goes.
        marked: cells that get a dot where no text fits.
    """
    panel.set_facecolor("lightgrey")
    values = grid.to_numpy(dtype=np.float64)
    image = panel.imshow(values, cmap=DIVERGING, norm=norm, aspect="auto")
    _name_axes(panel, grid, sheet)
    chosen, points = _fitting(texts, sheet, grid, _across(panel))
    own = own_cells(grid)
    for row in range(len(grid.index)):
        for column in range(len(grid.columns)):
            value = values[row, column]
            red, green, blue, _ = DIVERGING(float(norm(value))) if np.isfinite(value) else (1.0, 1.0, 1.0, 1.0)
            ink = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "black"
            if chosen is not None:
                said = str(chosen.iat[row, column])
                panel.text(column, row, said, ha="center", va="center", fontsize=points, color=ink, linespacing=1.0)
            elif marked is not None and marked.iat[row, column]:
                panel.plot(column, row, ".", ms=_DOT, mew=0, color=ink)
            if own[row, column]:
                frame = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec="black", lw=1.6 * sheet.fine, zorder=3)
                panel.add_patch(frame)
    if sheet.width is None:
        figure.colorbar(image, ax=panel, label=_beside(label, _ROW * len(grid.index)))
    else:
        bar = figure.colorbar(image, ax=panel, location="top", fraction=0.05, aspect=30, pad=0.02)
        bar.set_label(label, size=sheet.text)
        bar.ax.tick_params(labelsize=sheet.small, length=2, width=0.5, pad=1)
        bar.outline.set_linewidth(0.5)


def _beside(label: str, room: float) -> str:
    """The label of a colour bar, in as many lines as its height takes, in inches."""
    return textwrap.fill(label, max(_SHORTEST, int(len(label) * room / letters([label], _LABEL))))


def _name_axes(panel: Axes, grid: pd.DataFrame, sheet: Sheet) -> None:
    rows, columns = _names(grid)
    panel.set_xticks(range(grid.shape[1]), columns, fontsize=sheet.small)
    panel.set_yticks(range(grid.shape[0]), rows, fontsize=sheet.small)
    spec = panel.get_subplotspec()
    first, last = (True, True) if sheet.width is None or spec is None else (spec.is_first_col(), spec.is_last_row())
    if last:
        panel.set_xlabel("train language", fontsize=sheet.text)
    if first:
        panel.set_ylabel("probe language", fontsize=sheet.text)
    if sheet.width is None:
        if _slanted(columns):
            for name in panel.get_xticklabels():
                name.set(rotation=40, ha="right", rotation_mode="anchor")
        return
    wide, _ = _cell(sheet, grid, _across(panel))
    panel.tick_params(length=1.5, pad=1.5, width=0.4, labelleft=first, labelbottom=last)
    points = min(sheet.small, max(_SMALLEST, 72 * wide * 0.95))
    if wide < _FLAT * letters(columns, sheet.small):
        for name in panel.get_xticklabels():
            name.set(rotation=90, fontsize=points)
    for side in panel.spines.values():
        side.set_linewidth(0.5)


def _across(panel: Axes) -> int:
    """How many grids are side by side."""
    spec = panel.get_subplotspec()
    return 1 if spec is None else spec.get_gridspec().ncols


def _fitting(texts: Sequence[pd.DataFrame], sheet: Sheet, grid: pd.DataFrame, across: int) -> tuple[pd.DataFrame | None, float]:
    """The longest texts that fit into the cells, and their size in points; None if none fits."""
    if sheet.width is None:
        return texts[0], 8
    wide, tall = _cell(sheet, grid, across)
    for one in texts:
        lines = [str(text).split("\n") for text in one.to_numpy().ravel()]
        longest, most = max(len(line) for text in lines for line in text), max(map(len, lines))
        points = min(sheet.text, 72 * wide / (0.62 * longest), 72 * tall / (1.25 * most))
        if points >= _SMALLEST:
            return one, points
    return None, _SMALLEST


def symmetric(grid: pd.DataFrame) -> Normalize:
    """A colour scale with zero in the middle."""
    values = np.abs(grid.to_numpy(dtype=np.float64))
    most = float(values[np.isfinite(values)].max(initial=0.0)) or 1.0
    return Normalize(-most, most)
