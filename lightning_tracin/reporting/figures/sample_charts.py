"""The strongest train samples of one probe, with their texts."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.transforms import blended_transform_factory

from lightning_tracin.errors import one_line
from lightning_tracin.reporting.figures import drawing
from lightning_tracin.reporting.figures.lettering import clipped, language_labels
from lightning_tracin.reporting.figures.paper_figure import PaperFigure
from lightning_tracin.reporting.figures.sheets import Sheet

#: Height of a sample and of the probe's text, and width of a letter, as parts of the size of the text.
_ROW, _LINE, _LETTER = 3.6, 1.3, 0.56

#: Lines that the probe's text may take.
_PROBE_LINES = 3

_SIDES = {"positive": "proponents", "negative": "opponents"}


def top_samples(table: pd.DataFrame, label: str = "influence", width: float | None = None) -> PaperFigure:
    """The strongest proponents and opponents of a probe: above each bar the start of the text, beside it the language.

    Args:
        table: a row for each train sample, as in `top.csv`: `probe`, `probe_language`, `probe_label`, `probe_text`, `sign`,
            `rank`, `language`, `score` and `text`. Where `item` and `probe_item` are equal, the sample is a translation and has
            a star.
        label: name of the score.
        width: of the figure in inches, in a paper. None: a wide page.

    Raises:
        TracInError: a column is missing, there are several probes or no rows, or the width is out of range.
    """
    about = ["probe", "probe_language", "probe_label", "probe_text"]
    drawing.require(table, [*about, "sign", "rank", "language", "score", "text"], ["sign", "rank"])
    sheet, probe = Sheet(width), table.iloc[0]
    inches = 7.0 if width is None else width
    rows = table.sort_values(["sign", "rank"], ascending=[False, True], ignore_index=True)  # proponents first
    shown = language_labels([*rows["language"], probe["probe_language"]])
    names = [f"{shown[row['language']]}{_translated(row)}" for _, row in rows.iterrows()]
    told = textwrap.wrap(one_line(_text(probe["probe_text"])), int(72 * inches / (_LETTER * sheet.text)))
    told = (
        [*told[: _PROBE_LINES - 1], clipped(" ".join(told[_PROBE_LINES - 1 :]), len(told[0]))]
        if len(told) > _PROBE_LINES
        else told
    )
    line = _LINE * sheet.text / 72
    gap = 0.8 if len(set(rows["sign"])) == 2 else 0.0
    height = (len(rows) + gap) * _ROW * sheet.small / 72 + line * (len(told) + 1) + 0.45
    figure = sheet.canvas(inches, height)
    panel = figure.subplots()
    at = np.arange(len(rows)) + gap * (rows["sign"] == "negative")
    _bars(panel, rows, at, sheet)
    beside, room = blended_transform_factory(figure.transFigure, panel.transData), int(72 * inches / (_LETTER * sheet.small))
    for place, text in zip(at, rows["text"], strict=True):
        said = clipped(one_line(_text(text)), room)
        one = panel.text(0.01, place - 0.1, said, transform=beside, fontsize=sheet.small, va="bottom", zorder=4)
        one.set_in_layout(False)
        one.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    panel.set_yticks(at + 0.18, names, fontsize=sheet.small)
    panel.tick_params(axis="y", length=0, pad=2)
    panel.tick_params(axis="x", labelsize=sheet.small, length=2, width=0.5, pad=1.5)
    panel.set_ylim(float(at.max()) + 0.5, -0.75)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.axvline(0, color="black", lw=0.6)
    note = "; *: translation of the probe" if any(name.endswith("*") for name in names) else ""
    panel.set_xlabel(f"{label}{note}", fontsize=sheet.text)
    kind = f", {one_line(str(probe['probe_label']))}" if probe["probe_label"] not in (None, "") else ""
    heading = f"Probe {probe['probe']} ({shown[probe['probe_language']]}{clipped(kind, 30)})"
    figure.suptitle("\n".join([heading, *told]), fontsize=sheet.text, x=0.01, ha="left")
    sides = " and ".join(
        f"{(rows['sign'] == sign).sum()} {name}" for sign, name in _SIDES.items() if (rows["sign"] == sign).any()
    )
    figure.caption = f"The strongest {sides} of a probe; above each bar, the train sample's text."
    return figure


def _bars(panel: Axes, rows: pd.DataFrame, at: pd.Series[float], sheet: Sheet) -> None:
    """A bar for each sample, in the colour of its language, with the score at its end."""
    fills = _fills(rows["language"])
    for place, (_, row) in zip(at, rows.iterrows(), strict=True):
        panel.barh(place + 0.18, row["score"], height=0.34, label=row["language"], lw=0, **fills[row["language"]])
        panel.annotate(
            f" {row['score']:+.3g} ",
            (row["score"], place + 0.18),
            ha="left" if row["score"] >= 0 else "right",
            va="center",
            fontsize=sheet.small,
        )
    low, high = min(rows["score"].min(), 0.0), max(rows["score"].max(), 0.0)
    span = (high - low) or 1.0
    panel.set_xlim(low - 0.16 * span * (low < 0), high + 0.16 * span * (high > 0))
    if rows["sign"].nunique() == 2:
        border = float(at[rows["sign"] == "negative"].min()) - 0.9
        panel.axhline(border, color=drawing.GREY, lw=0.5, ls=":")


def _fills(languages: pd.Series[str]) -> Mapping[str, dict[str, Any]]:
    """Language -> colour and pattern of its bars."""
    names = sorted(set(languages))
    used: list[str] = []
    fills: dict[str, dict[str, Any]] = {}
    for name, look in drawing.looks(names).items():
        fills[name] = {
            "facecolor": look.colour,
            "hatch": drawing.PATTERNS[used.count(look.colour) % len(drawing.PATTERNS)],
            "edgecolor": "white",
        }
        used.append(look.colour)
    return fills


def _translated(row: pd.Series[str]) -> str:
    item = row.get("item")
    return "*" if item is not None and item == item and item == row.get("probe_item") else ""


def _text(text: object) -> str:
    return str(text) if isinstance(text, str) and text.strip() else "(no text)"
