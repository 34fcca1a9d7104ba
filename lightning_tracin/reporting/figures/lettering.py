"""Names from data sets as text in figures: never taken for formulas, and one warning for all letters that the font lacks."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.text import Text

_Arguments = ParamSpec("_Arguments")

#: What matplotlib says of each letter that its font lacks.
_LACKING = re.compile(r"Glyph (\d+) .*missing from")


def lettered(draw: Callable[_Arguments, Figure]) -> Callable[_Arguments, Figure]:
    """Make a function draw its texts as they are: `$x$` is a name, not a formula.

    Args:
        draw: draws a figure.
    """

    @wraps(draw)
    def drawn(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> Figure:
        with mpl.rc_context({"text.parse_math": False}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", _LACKING.pattern)  # `png` says it once
            figure = draw(*arguments, **named)
        for text in figure.findobj(Text):
            text.set_parse_math(False)  # also those that matplotlib has made in the meantime
        return figure

    return drawn


@contextmanager
def one_warning_for_letters() -> Iterator[None]:
    """Say once which letters the font lacks, instead of once for each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    lacking: dict[str, None] = {}
    for one in caught:
        found = _LACKING.match(str(one.message))
        if found is None:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        elif chr(int(found[1])).isprintable():
            lacking[chr(int(found[1]))] = None
    if lacking:
        some = "".join(list(lacking)[:10])
        warnings.warn(
            f"The font of the figures has no glyph for {len(lacking)} letters ({some}) and shows boxes; choose one that has "
            "them, such as `matplotlib.rcParams['font.family'] = ['DejaVu Sans', 'Noto Sans CJK JP']`.",
            stacklevel=4,
        )
