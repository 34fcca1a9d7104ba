"""The influence of languages, and their shares of the strongest k (E3, E4, E6): figures of a run's tables."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lightning_tracin.analysis.language_order import ordered
from lightning_tracin.analysis.reliance_by_snapshot import NATS
from lightning_tracin.analysis.tables import own_language
from lightning_tracin.analysis.tally import SIGNED
from lightning_tracin.config import Measure, View
from lightning_tracin.errors import TracInError
from lightning_tracin.gradients.partition import HEAD, depths_of
from lightning_tracin.reporting.figures import dots, drawing, grids
from lightning_tracin.reporting.figures.language_lines import LanguageLines
from lightning_tracin.reporting.figures.lettering import language_labels
from lightning_tracin.reporting.figures.paper_figure import PaperFigure
from lightning_tracin.reporting.figures.sheets import Sheet
from lightning_tracin.reporting.results import Point, Results
from lightning_tracin.storage.languages import own_languages

PROBES = "probe{} a language"
INTERVAL = f"{drawing.INTERVAL} over train samples and probes"
_RAILS = ("--", "-.")
_SIGNS = {"positive": "proponents", "negative": "opponents"}


def curves(
    results: Results,
    languages: Sequence[str] | None = None,
    measure: Measure = "sum",
    rails: pd.DataFrame | None = None,
    width: float | None = None,
) -> PaperFigure:
    """A panel per probe language, a line per train language, by snapshot; chance dotted, intervals shaded.

    Of more than nine train languages, the eight whose values on other probe languages are largest at the end have lines, and so
    has each probe language's own. The others are added up, except for means, where a band shows their range.

    Args:
        results: of a run.
        languages: train languages in the order that decides their colours.
        measure: `"sum"` or `"mean"` of influence, the `"share"` of the strongest k, or the `"mass"`: the share of all positive
            influence.
        rails: what the own language's share is where languages share nothing, and where all are one language, drawn as dashed
            lines: columns `probe_language`, `shared` (0 or 1), `step` and `own`.
        width: of the figure in inches, in a paper. None: a wide page.

    Raises:
        TracInError: the results have no such measure, or the width is out of range.
    """
    table = pd.concat([_table(point, measure) for point in results.points()])
    last = table[table["step"] == table["step"].max()]
    sheet, sizes = Sheet(width), _sizes(last)
    drawn = LanguageLines(table, "step", measure, ordered(table["probe_language"].unique()), sizes, languages, sheet)
    if measure in SIGNED:
        _zero(drawn)
    if rails is not None:
        for (probe, shared), rail in rails.groupby(["probe_language", "shared"]):
            panel = drawn.panels[str(probe)]
            panel.plot(rail["step"], rail["own"], color=drawing.GREY, lw=1.4 * sheet.fine, ls=_RAILS[int(str(shared))])
        drawn.handles |= {f"own, p = {shared}": Line2D([], [], color=drawing.GREY, ls=_RAILS[shared]) for shared in (0, 1)}
    next(iter(drawn.panels.values())).xaxis.set_major_locator(MaxNLocator(nbins=5 if width is None else 3, integer=True))
    sheet.name_axes(drawn.figure, "optimizer step", _name_of(results, measure))
    sheet.legend(drawn.figure, "train language", drawn.handles)
    sheet.title(
        drawn.figure,
        "What each probe language gets from each train language, snapshot by snapshot",
        drawing.facts(table, probes=PROBES),
        f"{drawn.notes}; shaded: {INTERVAL}",
        "" if rails is None else "grey: own language where languages share nothing (p = 0), and where all are one (p = 1)",
    )
    return drawn.figure


def layers(
    table: pd.DataFrame,
    view: View,
    measure: Measure = "sum",
    languages: Sequence[str] | None = None,
    width: float | None = None,
) -> PaperFigure:
    """A panel per probe language, a line per train language, by layer, from the embeddings to the head, in the whole run.

    Lines are chosen as in `curves`, by the largest value in any layer.

    Args:
        table: as from `TracInRun.reliance(by="layer")`, of one snapshot.
        view: what the table shows.
        measure: of the table.
        languages: train languages in the order that decides their colours.
        width: as in `curves`.

    Raises:
        TracInError: a column is missing, two rows are for the same cell, or the width is out of range.
    """
    columns = ["probe_language", "train_language", "layer"]
    drawing.require(table, [*columns, "value", "low", "high", "null", "probes", "unit"], columns)
    depths, sheet = depths_of(table["layer"]), Sheet(width)
    placed = table.assign(depth=table["layer"].map({layer: depth for depth, layer in enumerate(depths)})).sort_values("depth")
    sizes = _sizes(table)
    drawn = LanguageLines(placed, "depth", measure, ordered(table["probe_language"].unique()), sizes, languages, sheet)
    if measure in SIGNED:
        _zero(drawn)
    ticks = _ticks(depths, 7 if width is None else 4)
    for panel in drawn.panels.values():
        panel.set_xticks(ticks, [_short(depths[tick]) for tick in ticks], fontsize=sheet.small)
    sheet.name_axes(drawn.figure, "layer", described(view, measure, table["unit"].iloc[0]))
    sheet.legend(drawn.figure, "train language", drawn.handles)
    sheet.title(
        drawn.figure,
        "What each probe language gets from each train language, layer by layer",
        drawing.facts(table, probes=PROBES),
        f"{drawn.notes}; shaded: {INTERVAL}",
    )
    return drawn.figure


def _sizes(table: pd.DataFrame) -> pd.Series[float]:
    """Train language -> its largest value on any other probe language: the own language's is shown in any case."""
    others = table.drop(own_language(table).index)
    sizes: pd.Series[float] = others["value"].abs().groupby(others["train_language"]).max()
    return sizes


def _zero(drawn: LanguageLines) -> None:
    for panel in drawn.panels.values():
        panel.axhline(0, color=drawing.GREY, lw=0.8, zorder=1)


def _short(layer: str) -> str:
    """The name of a layer on an axis.

    Example:
        >>> _short("embeddings"), _short("layer 11"), _short("decoder layer 3"), _short("head")
        ('emb', '11', 'dec 3', 'head')
    """
    kind, _, number = layer.rpartition("layer ")
    return f"{kind[:3]} {number}".strip() if number.isdigit() else layer[:4] if layer == HEAD else layer[:3]


def _ticks(depths: Sequence[str], most: int) -> list[int]:
    """Places of at most so many layers with a name, the first and the last among them.

    Example:
        >>> _ticks(["embeddings", "layer 0", "layer 1", "layer 2", "layer 3", "head"], most=4)
        [0, 2, 5]
    """
    last = len(depths) - 1
    step = max(1, math.ceil(last / max(1, most - 1)))
    inner = [place for place in range(step, last, step) if last - place >= step]
    return sorted({0, *inner, last})


def described(view: View, measure: Measure, unit: str) -> str:
    """Axis label of a measure in a unit.

    Example:
        >>> described(View(similarity="dot"), "sum", NATS), described(View(similarity="relatif"), "mean", "score")
        ('influence of a language, nats (first order)', 'influence of a sample (relatif)')
    """
    if measure == "share":
        return view.described
    if measure == "mass":
        return f"share of all positive influence ({view.similarity})"
    what = "influence of a language" if measure == "sum" else "influence of a sample"
    return f"{what}, {unit}" if unit == NATS else f"{what} ({view.similarity})"


def _name_of(results: Results, measure: Measure) -> str:
    return described(results.view, measure, _table(results.final(), measure)["unit"].iloc[0])


def _table(point: Point, measure: Measure) -> pd.DataFrame:
    """The table of a measure.

    Raises:
        TracInError: the results have no such measure.
    """
    if measure not in point.tables:
        raise TracInError(f"The results have no measure {measure!r}; they have {', '.join(point.tables)}.")
    return point.tables[measure]


def heat_map(results: Results, measure: Measure = "sum", width: float | None = None) -> PaperFigure:
    """The whole run: the values of a signed measure, and their contrasts; probe languages are rows, train languages columns.

    In a column of a paper, values are written where they fit; where they do not, a dot is in place of the star.

    Args:
        results: of a run.
        measure: `"sum"` or `"mean"`.
        width: as in `curves`.

    Raises:
        TracInError: the results have no such measure, it has no sign, or the width is out of range.
    """
    table, sheet = _table(results.final(), measure), Sheet(width)
    if measure not in SIGNED:
        others = "`lift` or `curves`" if measure == "share" else "`curves`"
        raise TracInError(f"measure={measure!r} has no sign; draw it with {others}, or choose 'sum' or 'mean'.")
    parts = {_name_of(results, measure): ("value", "low", "high")}
    if table["contrast"].notna().any():
        parts["contrast: without row and column effects"] = ("contrast", "contrast_low", "contrast_high")
    figure, panels = grids.canvas(sheet, _grid(table, "value"), len(parts))
    for panel, (label, columns) in zip(panels, parts.items(), strict=True):
        value, low, high = (_grid(table, name) for name in columns)
        clear = (low > 0) | (high < 0)
        style = f"+.{_digits(value)}f"
        texts = value.map(lambda one, style=style: grids.written(one, style)) + clear.map(lambda one: "*" if one else "")
        grids.coloured(figure, panel, value, [texts], grids.symmetric(value), label, sheet, clear)
    sheet.title(
        figure,
        f"Influence of {'whole languages' if measure == 'sum' else 'a sample of each language'}, all snapshots summed",
        drawing.facts(table, probes=PROBES),
        f"outlined: own language; *{'' if width is None else ' or dot'}: {INTERVAL} without 0",
    )
    return figure


def _grid(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """A column as [probe languages, train languages], related languages side by side; the same order for both."""
    wide = table.pivot(index="probe_language", columns="train_language", values=value)
    order = ordered([*wide.index, *wide.columns])
    grid: pd.DataFrame = wide.loc[[one for one in order if one in wide.index], [one for one in order if one in wide.columns]]
    return grid


def _digits(values: pd.DataFrame) -> int:
    """Decimals that show two digits of the largest value."""
    most = float(values.abs().max(axis=None))
    return max(0, 1 - math.floor(math.log10(most))) if most > 0 else 1


def lift(results: Results, width: float | None = None) -> PaperFigure:
    """Share of the strongest k and its lift in the whole run; grey if the lift is undefined.

    Args:
        results: of a run.
        width: as in `curves`; where there is no room for the shares, cells have the lift alone, or their colour.

    Raises:
        TracInError: the run has language means only, or the width is out of range.
    """
    table, sheet = _table(results.final(), "share"), Sheet(width)
    lifts, values, nulls = (_grid(table, name) for name in ("lift", "value", "null"))
    alone = lifts.map(lambda one: grids.written(one, ".2f"))
    shares = values.map(lambda one: grids.written(one, ".0%")) + nulls.map(lambda one: f" ({grids.written(one, '.0%')})")
    highest = max(2.0, float(np.nan_to_num(lifts.to_numpy(dtype=np.float64)).max()))
    figure, (panel,) = grids.canvas(sheet, lifts, 1)
    norm = TwoSlopeNorm(vmin=0, vcenter=1, vmax=highest)
    grids.coloured(figure, panel, lifts, [alone + "\n" + shares, alone], norm, "lift", sheet)
    sheet.title(
        figure,
        f"Lift, {results.view.described} and (chance), all snapshots summed",
        drawing.facts(table, probes=PROBES),
        "outlined: own language",
    )
    return figure


def shares(table: pd.DataFrame, languages: Sequence[str] | None = None) -> Figure:
    """E3, E4: the share of each train language in the strongest k, with its interval and chance.

    Args:
        table: as from `reliance.reliance_table`; optional columns `score` and `sign` give one panel for each value.
        languages: train languages in the order that decides their colours.

    Raises:
        TracInError: a column is missing, or two rows are for the same cell.
    """
    split = [name for name in ("score", "sign") if name in table]
    columns = ("probe_language", "train_language", "value")
    drawing.require(table, [*columns, "null", "low", "high", "probes"], [*split, *columns[:2]])
    probes, trains = sorted(table["probe_language"].unique()), sorted(table["train_language"].unique())
    style = {name: look for name, look in drawing.looks(trains, languages).items() if name in trains}
    own_of = own_languages(probes, trains)
    shown = language_labels([*probes, *trains])
    names = {name: _group(name, shown[name], own_of, table) for name in probes}
    parts = [part for _, part in table.groupby(split, sort=False)] if split else [table]
    figure, axes = drawing.panels(
        len(parts),
        5 if "sign" not in table else 4,
        (2.4, dots.height(len(probes), len(trains)) + 0.35),
        1.2 + drawing.letters(names.values()) + drawing.letters(shown[train] for train in trains),
    )
    for panel, part in zip(axes, parts, strict=True):
        dots.grouped(
            panel, part.rename(columns={"null": "chance"}), columns, names, style, lambda probe, train: own_of.get(probe) == train
        )
        panel.set_title(
            ", ".join(_SIGNS.get(str(part[name].iloc[0]), str(part[name].iloc[0])) for name in split), fontsize=drawing.SMALL
        )
    sides = {_SIGNS.get(sign, sign) for sign in table["sign"]} if "sign" in table else {"proponents"}
    figure.supxlabel(f"share of the {drawing.top(table)}{f' {sides.pop()}' if len(sides) == 1 else ''}", fontsize=10)
    figure.supylabel("probe language", fontsize=10)
    drawing.legend(figure, "train language", {shown[name]: drawing.key(look) for name, look in style.items()})
    drawing.title(
        figure,
        "Reliance by probe language and train language",
        drawing.facts(table),
        f"filled: own language; {drawing.CHANCE}; bars: {INTERVAL}",
    )
    return figure


def _group(name: str, label: str, trained: Collection[str], table: pd.DataFrame) -> str:
    """Label of a probe language: its number of probes, and whether it is zero-shot."""
    count = f"{label}\nn = {drawing.span(table.loc[table['probe_language'] == name, 'probes'])}"
    return count if name in trained else f"{count}\nzero-shot"
