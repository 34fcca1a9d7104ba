"""Heat maps of tables with the values written in the cells: probe languages are rows, train languages columns."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lightning_tracin.analysis.tables import own_cells
from lightning_tracin.reporting.figures.drawing import SMALL, letters
from lightning_tracin.reporting.figures.lettering import labels

#: Smallest and largest width of a cell, its height, and the width that a figure's title needs, in inches.
_NARROW, _WIDE, _ROW, _TITLE = 0.75, 1.1, 0.5, 5.5

_NO_VALUE = "–"


def written(value: float, style: str) -> str:
    """Format the value of a cell.

    Example:
        >>> written(0.125, "+.2f"), written(float("nan"), "+.2f")
        ('+0.12', '–')
    """
    return _NO_VALUE if np.isnan(value) else f"{value:{style}}"


def size(grid: pd.DataFrame) -> tuple[float, float]:
    """Width and height of a grid with its labels, in inches."""
    rows, columns = _names(grid)
    below = letters(columns) * 0.75 if _slanted(columns) else 0.2
    cell = min(max(_NARROW, letters(columns) + 0.1), _WIDE)
    return max(_TITLE, cell * grid.shape[1] + letters(rows) + 1.6), _ROW * grid.shape[0] + below + 1.2


def _names(grid: pd.DataFrame) -> tuple[list[str], list[str]]:
    """How rows and columns are shown; the same language in the same way."""
    shown = labels([*grid.index, *grid.columns])
    return [shown[name] for name in grid.index], [shown[name] for name in grid.columns]


def _slanted(columns: list[str]) -> bool:
    return letters(columns) + 0.1 > _WIDE


def coloured(figure: Figure, panel: Axes, grid: pd.DataFrame, texts: pd.DataFrame, norm: Normalize, label: str) -> None:
    """Draw a grid.

    Args:
        figure: the panel's figure; gets the colour bar.
        panel: axes to draw on.
        grid: values; NaN cells are grey.
        texts: text of each cell.
        norm: maps values to colours; its centre is white.
        label: label of the colour bar.
    """
    colours = colormaps["RdBu_r"]
    panel.set_facecolor("lightgrey")
    values = grid.to_numpy(dtype=np.float64)
    image = panel.imshow(values, cmap=colours, norm=norm, aspect="auto")
    rows, columns = _names(grid)
    panel.set_xticks(range(grid.shape[1]), columns, fontsize=SMALL)
    if _slanted(columns):
        for name in panel.get_xticklabels():
            name.set(rotation=40, ha="right", rotation_mode="anchor")
    panel.set_yticks(range(grid.shape[0]), rows, fontsize=SMALL)
    own = own_cells(grid)
    for row in range(len(grid.index)):
        for column in range(len(grid.columns)):
            value = values[row, column]
            red, green, blue, _ = colours(float(norm(value))) if np.isfinite(value) else (1.0, 1.0, 1.0, 1.0)
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            panel.text(
                column, row, str(texts.iat[row, column]), ha="center", va="center", fontsize=8, color="white" if dark else "black"
            )
            if own[row, column]:
                panel.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec="black", lw=1.6, zorder=3))
    panel.set_xlabel("train language")
    panel.set_ylabel("probe language")
    figure.colorbar(image, ax=panel, label=label)


def symmetric(grid: pd.DataFrame) -> Normalize:
    """A colour scale with zero in the middle."""
    values = np.abs(grid.to_numpy(dtype=np.float64))
    most = float(values[np.isfinite(values)].max(initial=0.0)) or 1.0
    return Normalize(-most, most)
