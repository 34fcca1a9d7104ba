"""A panel for each probe language with a line for each train language: the strongest, and the others together."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lightning_tracin.config import Measure
from lightning_tracin.reporting.figures import drawing
from lightning_tracin.reporting.figures.lettering import language_labels
from lightning_tracin.reporting.figures.sheets import Sheet
from lightning_tracin.reporting.line_choice import strongest
from lightning_tracin.storage.languages import own_languages

#: Most train languages with a line of their own.
LINES = 8

OTHERS, RANGE, OWN = "sum of the others", "the others (lowest to highest)", "own language"
_OTHERS_GREY = "0.35"


class LanguageLines:
    """The panels, drawn.

    Args:
        table: a row for each probe language, train language and place, with `value`, `low`, `high` and `null`.
        at: the column of places on the horizontal axis, numbers.
        measure: what the values are. The others are added up where that means something, and are a band where it does not.
        probes: the probe languages, a panel each.
        sizes: train language -> the size that decides whether it has a line.
        languages: train languages in the order that decides their colours.
        sheet: where the figure goes.

    Attributes:
        figure: the figure.
        panels: probe language -> its axes.
        handles: entry of the legend -> its sign.
        notes: what the lines mean, for the caption.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        at: str,
        measure: Measure,
        probes: Sequence[str],
        sizes: pd.Series[float],
        languages: Sequence[str] | None,
        sheet: Sheet,
    ) -> None:
        self._at, self._measure, self._sheet = at, measure, sheet
        trains = sorted(table["train_language"].unique())
        chosen, others = strongest(sizes.reindex(trains), LINES)
        kept = [name for name in trains if name in chosen]
        own_of = own_languages(probes, trains)
        style = drawing.looks(kept if others and languages is None else trains, languages)
        shown = language_labels([*probes, *trains])
        self.handles: dict[str, Artist] = {
            shown[train]: drawing.key(style[train], line="-", size=6 * sheet.fine) for train in kept
        }
        if any(own_of.get(probe) in others for probe in probes):
            self.handles[OWN] = Line2D([], [], color="black", lw=2.4 * sheet.fine)
        if others:
            summed = Line2D([], [], color=_OTHERS_GREY, ls="--", lw=1.4 * sheet.fine)
            self.handles |= {RANGE: Patch(color="0.85")} if measure == "mean" else {OTHERS: summed}
        margin = 1.3 + drawing.letters(self.handles)
        self.figure, axes = sheet.panels(len(probes), 4, (3.1, 2.5), margin, len(self.handles))
        self.panels = dict(zip(probes, axes, strict=True))
        for probe, panel in self.panels.items():
            mine = table[table["probe_language"] == probe]
            own = own_of.get(probe)
            self._others(panel, mine, [name for name in others if name != own])
            looks = {name: style[name] for name in kept}
            if own in others:
                looks[str(own)] = drawing.Look("black", "None")
            for train, look in looks.items():
                self._line(panel, mine[mine["train_language"] == train], look, train, train == own)
            self._name(panel, shown[probe], probe in own_of)
            panel.grid(alpha=0.25, lw=0.8 * sheet.fine)
        self.notes = f"bold: own language; {drawing.CHANCE if sheet.width is None else 'dotted: its chance'}"
        if sheet.width is not None and len(own_of) < len(probes):
            self.notes += "; italic: zero-shot"

    def _name(self, panel: Axes, name: str, is_trained: bool) -> None:
        if self._sheet.width is None:
            panel.set_title(name if is_trained else f"{name} (zero-shot)", fontsize=self._sheet.text)
        else:
            panel.set_title(name, fontsize=self._sheet.text, pad=2, style="normal" if is_trained else "italic")

    def _line(self, panel: Axes, rows: pd.DataFrame, look: drawing.Look, train: str, is_own: bool) -> None:
        fine, places = self._sheet.fine, len(rows)
        panel.plot(
            rows[self._at],
            rows["value"],
            color=look.colour,
            marker=look.marker,
            markevery=max(1, places // 8),
            ms=(5 if is_own else 3.5) * fine,
            lw=(2.4 if is_own else 1.2) * fine,
            label=train,
        )
        panel.fill_between(rows[self._at], rows["low"], rows["high"], color=look.colour, alpha=0.15, lw=0)
        if self._sheet.width is None or is_own:
            panel.plot(rows[self._at], rows["null"], color=look.colour, lw=0.8, ls=":")

    def _others(self, panel: Axes, mine: pd.DataFrame, others: Sequence[str]) -> None:
        if not others:
            return
        values = mine[mine["train_language"].isin(others)].groupby(self._at)["value"]
        if self._measure == "mean":
            least, most = values.min(), values.max()
            panel.fill_between(least.index, least, most, color="0.85", lw=0, label=RANGE)
        else:
            summed = values.sum(min_count=1)
            panel.plot(summed.index, summed, color=_OTHERS_GREY, ls="--", lw=1.4 * self._sheet.fine, label=OTHERS)
