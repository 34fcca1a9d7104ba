"""Where a figure goes: on a wide page, with a title, or in a column of a paper, where the caption says what a title would."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine

from lightning_tracin.errors import TracInError
from lightning_tracin.reporting.figures import drawing
from lightning_tracin.reporting.figures.paper_figure import PaperFigure

#: Width of a column of ACL's and of NeurIPS's papers with figures side by side, and of a whole page, in inches.
COLUMN, PAGE = 3.3, 7.0

#: Smallest and largest width of a figure, and the smallest of a panel, in inches.
_NARROWEST, _WIDEST, _PANEL = 2.0, 30.0, 1.05


@dataclass(frozen=True)
class Sheet:
    """Sizes of all that is drawn.

    Attributes:
        width: of the figure, in inches; None: a wide page, as wide as the panels need.

    Raises:
        TracInError: no figure can be so narrow or so wide.

    Example:
        >>> Sheet().text, Sheet(3.3).text
        (10, 7)
    """

    width: float | None = None

    def __post_init__(self) -> None:
        if self.width is not None and not _NARROWEST <= self.width <= _WIDEST:
            raise TracInError(
                f"width={self.width} should be from {_NARROWEST:g} to {_WIDEST:g} inches: {COLUMN} for a column, "
                f"{PAGE:g} for a page."
            )

    @property
    def text(self) -> int:
        """Size of titles and axes' names, in points."""
        return 10 if self.width is None else 7

    @property
    def small(self) -> int:
        """Size of ticks and legends, in points."""
        return drawing.SMALL if self.width is None else 6

    @property
    def fine(self) -> float:
        """What lines and markers are multiplied by."""
        return 1.0 if self.width is None else 0.6

    def canvas(self, width: float, height: float) -> PaperFigure:
        """An empty figure; on a wide page of this width, in a column of the column's."""
        figure = drawing.canvas(width if self.width is None else self.width, height)
        if self.width is not None:
            engine = figure.get_layout_engine()
            assert isinstance(engine, ConstrainedLayoutEngine)
            engine.set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
        return figure

    def panels(
        self, count: int, across: int, size: tuple[float, float], margin: float, handles: int
    ) -> tuple[PaperFigure, list[Axes]]:
        """A figure of equal panels with shared axes.

        Args:
            count: number of panels.
            across: largest number in a row on a wide page.
            size: of a panel on a wide page, in inches.
            margin: width left for labels and the legend on a wide page, in inches.
            handles: number of entries of the legend, which is above the panels in a column.
        """
        if self.width is None:
            return drawing.panels(count, across, size, margin)
        down = math.ceil(count / min(count, max(1, int(self.width / _PANEL))))
        across = math.ceil(count / down)
        tall = min(max(0.8 * (self.width - 0.4) / across, 0.75), 2.0)
        figure = self.canvas(self.width, tall * down + 0.14 * math.ceil(handles / (3 * self.width / COLUMN)) + 0.5)
        axes = list(figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat)
        for panel in axes:
            panel.tick_params(labelsize=self.small, length=2, pad=1.5, width=0.5)
            for side in panel.spines.values():
                side.set_linewidth(0.5)
        for panel in axes[count:]:
            panel.set_axis_off()
        for panel in axes[max(0, count - across) : count]:
            panel.tick_params(labelbottom=True)
        return figure, axes[:count]

    def legend(self, figure: PaperFigure, heading: str, handles: Mapping[str, Artist]) -> None:
        """Draw a legend: to the right of all panels, or above them in a column."""
        if self.width is None:
            drawing.legend(figure, heading, handles)
            return
        across = max(1, int((self.width - 0.1) / (0.85 * drawing.letters(handles, self.small) + 0.36)))
        figure.legend(
            list(handles.values()),
            list(handles),
            title=heading,
            loc="outside upper center",
            ncols=min(across, len(handles)),
            fontsize=self.small,
            title_fontsize=self.small,
            handlelength=1.6,
            handletextpad=0.4,
            columnspacing=1.0,
            borderpad=0.3,
            labelspacing=0.25,
            frameon=False,
        )

    def name_axes(self, figure: PaperFigure, across: str, up: str) -> None:
        """Name both axes of all panels; a long name is wrapped."""
        figure.supxlabel(across, fontsize=self.text)
        room = int((figure.get_figheight() - (0 if self.width is None else 0.8)) * 72 / (self.text * 0.58))
        figure.supylabel("\n".join(textwrap.wrap(up, max(room, 12))), fontsize=self.text)

    def title(self, figure: PaperFigure, heading: str, *notes: str) -> None:
        """Set the caption, and on a wide page the title."""
        said = "; ".join(note for note in notes if note)
        figure.caption = f"{heading}. {said[:1].upper()}{said[1:]}." if said else f"{heading}."
        if self.width is None:
            drawing.title(figure, heading, *notes)
