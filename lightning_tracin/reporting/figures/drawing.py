"""Helpers of all figures: the look of a language, panels, titles and legends, on a page or in a column of a paper."""

from __future__ import annotations

import io
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lightning_tracin.errors import TracInError
from lightning_tracin.reporting.figures.lettering import width
from lightning_tracin.reporting.figures.paper_figure import PaperFigure
from lightning_tracin.storage.languages import own_languages

#: Okabe and Ito's palette for colour-blind readers, without the yellow and black that are hard to see next to white or black.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#882255")
_MARKERS = ("o", "s", "^", "v", "P", "X", "<", ">", "p", "h", "*")

#: Patterns of areas and bars, for those that share a colour with an earlier one.
PATTERNS = ("", "///", "...", "xxx", "\\\\\\", "+++")

#: What lowers a loss and what raises it, as the page's charts have it; colour-blind readers can tell them apart.
LOWERS, RAISES = "#0058a8", "#c65a00"
#: From what raises a loss over what does nothing to what lowers it.
DIVERGING = LinearSegmentedColormap.from_list("raises, lowers", [RAISES, "#f4f4f2", LOWERS])

INTERVAL = "95 % interval"
CHANCE = "dotted: chance"
GREY = "0.45"
SMALL = 9


@dataclass(frozen=True)
class Look:
    """Colour and marker of one language (or score)."""

    colour: str
    marker: str


def looks(names: Iterable[str], languages: Sequence[str] | None = None) -> dict[str, Look]:
    """Name -> look, by its position in `languages`, or among the names if no languages are given.

    All looks differ for up to 77 names; neighbours differ in both colour and marker. A name that is not in `languages` has the
    look of the language that it means (`languages.own_languages`), unless another name has this look.

    Example:
        >>> looks(["de", "en"])["en"] == looks(["en"], languages=["de", "en"])["en"]
        True
    """
    asked, known = list(dict.fromkeys(names)), list(dict.fromkeys(languages or ()))
    own = own_languages([name for name in asked if name not in known], known)
    taken = Counter([*own.values(), *(name for name in asked if name in known)])
    same = {name: other for name, other in own.items() if taken[other] == 1}
    order = [*known, *(name for name in asked if name not in known and name not in same)]
    found = {name: Look(_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]) for i, name in enumerate(order)}
    return found | {name: found[other] for name, other in same.items()}


def canvas(width: float, height: float) -> PaperFigure:
    """An empty figure with this size in inches; its texts do not overlap, and it needs no display."""
    return PaperFigure(figsize=(width, height), layout="constrained")


def panels(count: int, across: int, size: tuple[float, float], margin: float = 0.9) -> tuple[PaperFigure, list[Axes]]:
    """A figure of equal panels with shared axes; sizes in inches.

    Args:
        count: number of panels.
        across: largest number of panels in a row.
        size: width and height of a panel.
        margin: width left for labels and the legend.
    """
    across = min(across, count)
    down = -(-count // across)
    figure = canvas(max(size[0] * across + margin, 4.5), max(size[1] * down, 1.4) + 1.0)
    axes = list(figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat)
    for panel in axes[count:]:
        panel.set_axis_off()
    for panel in axes[max(0, count - across) : count]:
        panel.tick_params(labelbottom=True)  # also above an empty place in the last row
    return figure, axes[:count]


def letters(names: Iterable[str], size: float = SMALL) -> float:
    """Approximate width of the longest line of the names, in inches.

    Example:
        >>> round(letters(["de", "en"]), 2)
        0.15
    """
    return max((max(map(width, name.split("\n"))) for name in names), default=0) * size * 0.6 / 72


def title(figure: Figure, heading: str, *notes: str) -> None:
    """Set the title and notes below it, wrapped to the width left of the legend."""
    legends = sum(one.get_window_extent().width for one in figure.legends) / figure.dpi
    room = figure.get_figwidth() - legends
    longest = int(room * 72 / (SMALL * 0.58))
    lines = [*textwrap.wrap(heading, longest), *textwrap.wrap("; ".join(note for note in notes if note), longest)]
    figure.suptitle("\n".join(lines), x=room / figure.get_figwidth() / 2, fontsize=SMALL)


def legend(figure: Figure, heading: str, handles: Mapping[str, Artist]) -> None:
    """Draw a legend to the right of all panels."""
    figure.legend(
        list(handles.values()), list(handles), title=heading, loc="outside right upper", fontsize=SMALL, title_fontsize=SMALL
    )


def key(look: Look, filled: bool = True, line: str = "none", size: float = 6) -> Line2D:
    """A legend handle with this look; its marker has this size in points."""
    return Line2D([], [], color=look.colour, marker=look.marker, ms=size, ls=line, mfc=look.colour if filled else "white")


def span(numbers: pd.Series[float]) -> str:
    """A count as text, or the smallest and the largest if counts differ.

    Example:
        >>> span(pd.Series([20, 20])), span(pd.Series([18, 20]))
        ('20', '18 to 20')
    """
    known = numbers.dropna()
    if known.empty:
        return "0"
    least, most = int(known.min()), int(known.max())
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def facts(table: pd.DataFrame, **words: str) -> str:
    """Numbers from the table's columns in words; `seeds`, `draws` and `k` are stated if the table has them.

    Args:
        table: any table.
        **words: column -> the word for what it counts, with `{}` in place of the plural's s.

    Example:
        >>> facts(pd.DataFrame({"probes": [20, 20], "seeds": 1, "k": 100}), probes="probe{} a language")
        '20 probes a language, 1 seed, k = 100'
    """
    stated = []
    for column, word in {**words, "seeds": "seed{}", "draws": "random draw{}"}.items():
        if column in table:
            number = span(table[column])
            stated.append(f"{number} {word.format('' if number == '1' else 's')}")
    if "k" in table:
        stated.append(f"k = {span(table['k'])}")
    return ", ".join(stated)


def top(table: pd.DataFrame) -> str:
    """The top k as text.

    Example:
        >>> top(pd.DataFrame({"k": [100]})), top(pd.DataFrame())
        ('top 100', 'top k')
    """
    return f"top {span(table['k'])}" if "k" in table else "top k"


def require(table: pd.DataFrame, columns: Sequence[str], one_line_for: Sequence[str] = ()) -> None:
    """Check the table that a figure is drawn from.

    Raises:
        TracInError: a column is missing, there are no rows, or the columns `one_line_for` do not identify a row.
    """
    missing = [name for name in columns if name not in table]
    if missing:
        raise TracInError(
            f"The figure needs the columns {', '.join(missing)}, but the table has "
            f"{', '.join(map(str, table.columns)) or 'none'}."
        )
    if table.empty:
        raise TracInError("The table has no lines, so there is nothing to draw.")
    keys = list(one_line_for)
    if keys and table.duplicated(keys).any():
        twice = table.loc[table.duplicated(keys), keys].iloc[0]
        raise TracInError(
            f"The table has several lines for {', '.join(map(str, twice))}; choose those of one snapshot, score and sign, so "
            f"that there is only one for each {' and '.join(keys)}."
        )


def png(figure: Figure) -> bytes:
    """Render the figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
