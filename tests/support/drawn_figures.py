"""What tests read back from a figure: its title, panels, points, bars and names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D


def said(figure: Figure) -> str:
    """The title, its line breaks taken out."""
    return figure.get_suptitle().replace("\n", " ")


def named(panel: Axes, name: str) -> Sequence[object]:
    return [artist for artist in (*panel.lines, *panel.collections) if artist.get_label() == name]


def points(panel: Axes, name: str) -> np.ndarray:
    """Where the points of a name lie: [points, 2]."""
    (found,) = named(panel, name)
    return np.column_stack(found.get_data()) if isinstance(found, Line2D) else np.ma.filled(found.get_offsets(), np.nan)


def bars(panel: Axes, name: str, of: str = "interval") -> np.ndarray:
    """The ends of the lines of a name, NaN where none is drawn: [lines, 2, 2]."""
    (found,) = named(panel, f"{of} {name}" if name else of)
    assert isinstance(found, LineCollection)
    return np.stack([path.vertices for path in found.get_paths()])


def panel_of(figure: Figure, name: str) -> Axes:
    (found,) = [panel for panel in figure.axes if panel.get_title().split(" (")[0] == name]
    return found


def ticks(panel: Axes) -> list[str]:
    return [name.get_text() for name in panel.get_yticklabels()]
