"""Figures, and one self-contained HTML page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from lightning_tracin.results import Results
from lightning_tracin.store import as_utf8, write_bytes
from lightning_tracin.study import Study


def curves(results: Results) -> Figure:
    """Reliance curves: one panel a probe language, one line a train language, chance dashed, intervals shaded."""
    table = pd.concat([point.table for point in results.points()])
    languages = sorted(table["probe_language"].unique())
    trains = sorted(table["train_language"].unique())
    across = min(4, len(languages))
    down = -(-len(languages) // across)
    figure = Figure(figsize=(3.1 * across + 0.9, 2.5 * down + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    single = table["snapshot"].nunique() == 1
    for panel, language in zip(axes.flat, languages, strict=False):
        mine = table[table["probe_language"] == language]
        for colour, train in enumerate(trains):
            line = mine[mine["train_language"] == train]
            own = train == language
            panel.plot(
                line["step"],
                line["share"],
                color=f"C{colour}",
                lw=2.4 if own else 1.2,
                marker="o" if single else None,
                label=train,
            )
            panel.fill_between(line["step"], line["low"], line["high"], color=f"C{colour}", alpha=0.15, lw=0)
            panel.axhline(line["chance"].iloc[0], color=f"C{colour}", lw=0.8, ls=":")
        panel.set_title(language if language in trains else f"{language} (zero-shot)", fontsize=10)
        panel.grid(alpha=0.25)
    for panel in list(axes.flat)[len(languages) :]:
        panel.set_axis_off()
    figure.supxlabel("optimizer step", fontsize=10)
    figure.supylabel(results.view.described, fontsize=10)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, title="train language", loc="outside right upper", fontsize=9, title_fontsize=9)
    figure.suptitle("Reliance by probe language (bold: own language; dotted: chance; shaded: 95 % interval)", fontsize=11)
    return figure


def heat_map(results: Results) -> Figure:
    """Share and lift of the whole run: probe languages down, train languages across; grey where lift is undefined."""
    table = results.final().table
    grid = table.pivot(index="probe_language", columns="train_language", values="lift")
    shares = table.pivot(index="probe_language", columns="train_language", values="share")
    style = ".0%" if results.view.measure == "share" else ".2g"
    figure = Figure(figsize=(1.1 * grid.shape[1] + 2.2, 0.5 * grid.shape[0] + 1.6), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.set_facecolor("lightgrey")
    highest = max(2.0, float(grid.max(axis=None)))  # NaN, where no lift is defined, compares as false and leaves 2
    norm = TwoSlopeNorm(vmin=0, vcenter=1, vmax=highest)
    image = axis.imshow(grid, cmap="RdBu_r", norm=norm, aspect="auto")
    axis.set_xticks(range(grid.shape[1]), list(grid.columns))
    axis.set_yticks(range(grid.shape[0]), list(grid.index))
    for row in range(grid.shape[0]):
        for column in range(grid.shape[1]):
            axis.text(
                column,
                row,
                f"{grid.iat[row, column]:.2f}\n({shares.iat[row, column]:{style}})",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if abs(norm(grid.iat[row, column]) - 0.5) > 0.35 else "black",
            )
    axis.set_xlabel("train language")
    axis.set_ylabel("probe language")
    axis.set_title(f"Lift ({results.view.described}), all snapshots summed", fontsize=10)
    figure.colorbar(image, ax=axis, label="lift")
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def write_results(folder: Path, results: Results, study: Study | None = None) -> None:
    """Write the tables (CSV), the figures (PNG) and the page (HTML) into a folder."""
    if study is not None:
        tables = {"compared": study.compared, "changes": study.changes, "reinforcement": study.reinforcement}
        for name, table in tables.items():
            if table is not None:
                write_bytes(folder / f"{name}.csv", as_utf8(table.to_csv(index=False)))
    write_bytes(folder / "reliance.csv", as_utf8(results.reliance.to_csv(index=False)))
    write_bytes(folder / "top.csv", as_utf8(results.top.to_csv(index=False)))
    pictures = {"curves": png(curves(results)), "heat_map": png(heat_map(results))}
    for name, content in pictures.items():
        write_bytes(folder / f"{name}.png", content)
    write_bytes(folder / "report.html", as_utf8(_page(results, study, pictures)))


def _page(results: Results, study: Study | None, pictures: dict[str, bytes]) -> str:
    environment = Environment(loader=PackageLoader("lightning_tracin"), autoescape=select_autoescape())
    table = results.final().table.round(3)
    return environment.get_template("report.html").render(
        view=results.view,
        study=study,
        pictures={name: base64.b64encode(content).decode() for name, content in pictures.items()},
        columns=list(table.columns),
        reliance=table.to_dict("records"),
        cross_lingual=[(point.epoch, point.step, point.scalars["tracin/cross_lingual/mean"]) for point in results.points()]
        if results.view.measure == "share"
        else [],
        top=results.top.to_dict("records"),
    )
