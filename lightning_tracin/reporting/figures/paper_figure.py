"""The figures' class: text stays text in vector files, and a notebook shows it without pyplot."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lightning_tracin.reporting.figures.fallback_fonts import one_warning_for_letters

#: Text is text in SVG, with the reader's fonts, and embedded as TrueType in PDF and PostScript, as publishers ask for.
_TEXT_AS_TEXT: dict[Any, Any] = {"svg.fonttype": "none", "pdf.fonttype": 42, "ps.fonttype": 42}

#: Pixels an inch in a notebook, and how many of them a pixel of the page is.
_DOTS, _DENSE = 220, 2


class PaperFigure(Figure):
    """A matplotlib figure to put in a paper; it needs no display.

    Attributes:
        caption: what a title would say: what is shown, of how many probes, and what signs mean. A figure on a wide page has it as
            its title, too.

    Example:
        >>> buffer = io.StringIO()
        >>> figure = PaperFigure(figsize=(1, 1))
        >>> _ = figure.text(0.5, 0.5, "Korean")
        >>> figure.savefig(buffer, format="svg")
        >>> ">Korean</text>" in buffer.getvalue()
        True
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.caption = ""
        FigureCanvasAgg(self)

    def savefig(self, fname: Any, **settings: Any) -> None:
        """As `Figure.savefig`; the user's global settings stay as they are. One warning names the letters that no font has."""
        with mpl.rc_context(_TEXT_AS_TEXT), one_warning_for_letters():
            super().savefig(fname, **settings)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """For notebooks: at twice the density of the page."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=_DOTS)
        wide, high = (round(inches * _DOTS / _DENSE) for inches in self.get_size_inches())
        return buffer.getvalue(), {"width": wide, "height": high}
