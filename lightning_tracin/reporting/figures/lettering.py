"""Names from data sets as text in figures: short, no formulas, in fonts that have their letters."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Callable, Iterable
from functools import wraps
from typing import ParamSpec

import matplotlib as mpl
from matplotlib.text import Text

from lightning_tracin.errors import one_line
from lightning_tracin.reporting.figures.fallback_fonts import LACKING, fallback_fonts
from lightning_tracin.reporting.figures.paper_figure import PaperFigure
from lightning_tracin.storage.display_names import display_names

_Arguments = ParamSpec("_Arguments")

#: Width of the longest label, in letters; a Chinese one is as wide as two.
_WIDEST = 24


def labels(names: Iterable[str]) -> dict[str, str]:
    r"""Name -> how charts show it: on one line, without control characters, cut if it is long, and unlike all the others.

    Example:
        >>> shown = labels(["de", "a\nb", "x" * 300, "x" * 299])
        >>> shown["de"], shown["a\nb"], shown["x" * 299][-3:], shown["x" * 300][-3:]
        ('de', 'a b', 'xx…', '… 2')
    """
    known = dict.fromkeys(map(str, names))
    cuts = {name: clipped(" ".join(one_line(name).split()) or ascii(name)) for name in known}
    shown: dict[str, str] = {}
    for name in sorted(known, key=lambda one: (cuts[one] != one, one)):  # those that stay as they are come first
        count, label = 1, cuts[name]
        while label in shown.values():
            count, label = count + 1, f"{cuts[name]} {count + 1}"
        shown[name] = label
    return {name: shown[name] for name in known}


def language_labels(names: Iterable[str]) -> dict[str, str]:
    """Like `labels`, for languages: codes are shown as the names that people write.

    Example:
        >>> language_labels(["de", "zho_Hans", "klingon-x"])
        {'de': 'German', 'zho_Hans': 'Chinese (Simplified)', 'klingon-x': 'klingon-x'}
    """
    said = display_names(names)
    short = labels(said.values())
    return {name: short[shown] for name, shown in said.items()}


def width(text: str) -> int:
    """Approximate width of a line in letters.

    Example:
        >>> width("de"), width("中文")
        (2, 4)
    """
    return sum(0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text)


def clipped(line: str, widest: int = _WIDEST) -> str:
    """A line, cut if it is wider than so many letters.

    Example:
        >>> clipped("a long line", 6), clipped("中文字", 5)
        ('a lon…', '中文…')
    """
    if width(line) <= widest:
        return line
    kept = next(end for end in range(len(line), -1, -1) if width(line[:end]) < widest)
    return f"{line[:kept]}…"


def lettered(draw: Callable[_Arguments, PaperFigure]) -> Callable[_Arguments, PaperFigure]:
    """Make a function draw its texts as they are: `$x$` is a name, not a formula.

    Args:
        draw: draws a figure.
    """

    @wraps(draw)
    def drawn(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> PaperFigure:
        with mpl.rc_context({"text.parse_math": False}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", LACKING.pattern)  # said once when it is saved
            figure = draw(*arguments, **named)
        for text in figure.findobj(Text):
            text.set_parse_math(False)  # also those that matplotlib has made in the meantime
            more = fallback_fonts(text.get_text(), tuple(text.get_fontfamily()))
            if more:
                text.set_fontfamily([*text.get_fontfamily(), *more])
        return figure

    return drawn
