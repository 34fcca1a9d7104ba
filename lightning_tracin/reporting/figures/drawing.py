"""What all figures share: a canvas without a window, how a language looks, what a title states, PNG."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lightning_tracin.errors import TracInError

#: Okabe and Ito's colours, which colour-blind readers tell apart, without the two that a white page or black text hides.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#882255")
_MARKERS = ("o", "s", "^", "v", "P", "X", "<", ">", "p", "h", "*")

INTERVAL = "95 % interval"
CHANCE = "dotted: chance"
GREY = "0.45"
SMALL = 9


@dataclass(frozen=True)
class Look:
    """How everything of one language (or score) is drawn."""

    colour: str
    marker: str


def looks(names: Iterable[str], languages: Sequence[str] | None = None) -> dict[str, Look]:
    """Name -> its look: by its place among `languages`, or, where they are not given, among the names.

    No two names look the same before there are more than colours times markers; neighbours differ in both.
    """
    order = list(dict.fromkeys([*(languages or ()), *names]))
    return {name: Look(_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]) for i, name in enumerate(order)}


def canvas(width: float, height: float) -> Figure:
    """An empty figure, in inches, that keeps its texts apart and needs no display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def panels(count: int, across: int, size: tuple[float, float], beside: float = 0.9) -> tuple[Figure, list[Axes]]:
    """A figure of equal panels on the same axes.

    Args:
        count: of panels.
        across: how many stand in a row, at most.
        size: width and height of a panel.
        beside: width left for names and legend.
    """
    across = min(across, count)
    down = -(-count // across)
    figure = canvas(max(size[0] * across + beside, 4.5), max(size[1] * down, 1.4) + 1.0)
    axes = list(figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat)
    for panel in axes[count:]:
        panel.set_axis_off()
    for panel in axes[max(0, count - across) : count]:
        panel.tick_params(labelbottom=True)  # also where the row below is not full
    return figure, axes[:count]


def letters(names: Iterable[str], size: float = SMALL) -> float:
    """About the width of the longest name, in inches."""
    return max((max(map(len, name.split("\n"))) for name in names), default=0) * size * 0.6 / 72


def title(figure: Figure, heading: str, *notes: str) -> None:
    """A heading, and under it what a reader needs to know, broken to the width that the legend leaves."""
    beside = sum(one.get_window_extent().width for one in figure.legends) / figure.dpi
    room = figure.get_figwidth() - beside
    width = int(room * 72 / (SMALL * 0.58))
    lines = [*textwrap.wrap(heading, width), *textwrap.wrap("; ".join(note for note in notes if note), width)]
    figure.suptitle("\n".join(lines), x=room / figure.get_figwidth() / 2, fontsize=SMALL)


def legend(figure: Figure, heading: str, handles: Mapping[str, Line2D]) -> None:
    """Names at the right of all panels."""
    figure.legend(
        list(handles.values()), list(handles), title=heading, loc="outside right upper", fontsize=SMALL, title_fontsize=SMALL
    )


def key(look: Look, filled: bool = True, line: str = "none") -> Line2D:
    """A legend's sample of a look."""
    return Line2D([], [], color=look.colour, marker=look.marker, ls=line, mfc=look.colour if filled else "white")


def span(numbers: pd.Series[float]) -> str:
    """A count, or the least and the most where it differs."""
    known = numbers.dropna()
    if known.empty:
        return "0"
    least, most = int(known.min()), int(known.max())
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def facts(table: pd.DataFrame, **words: str) -> str:
    """What the table's columns state, in words: column -> the word for what it counts.

    k, seeds and draws are stated of every table that has them.
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
    """The top k, in words."""
    return f"top {span(table['k'])}" if "k" in table else "top k"


def require(table: pd.DataFrame, columns: Sequence[str], one_line_for: Sequence[str] = ()) -> None:
    """Check what a figure is drawn of.

    Raises:
        TracInError: a column is missing, there are no lines, or two lines are for the same thing.
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
            f"that there is one for each {' and '.join(keys)}."
        )


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
