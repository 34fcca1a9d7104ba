"""Pages: how tables, pictures and templates become HTML or Markdown, and the folder of results that a run writes.

A page embeds its pictures, so that its file can be moved or sent alone. jinja2 and matplotlib are optional: without them a run's
folder has its tables only.
"""

from __future__ import annotations

import base64
import warnings
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from lightning_tracin.errors import MissingPackageError, needs
from lightning_tracin.reporting import figures
from lightning_tracin.reporting.findings import Study
from lightning_tracin.reporting.results import Results
from lightning_tracin.storage.files import as_utf8, write_bytes


def render(template: str, **values: Any) -> str:
    """A template of `reporting/templates`, filled in; in HTML, every value is escaped.

    Args:
        template: name of its file; the filter `cell` writes Markdown in a file that ends with `.md`, else HTML.
        **values: what the template names.

    Raises:
        MissingPackageError: jinja2 is not installed.
    """
    jinja2 = needs("jinja2", "report", "Pages")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lightning_tracin.reporting"), autoescape=jinja2.select_autoescape(), trim_blocks=True
    )
    environment.filters["cell"] = _markdown_cell if template.endswith(".md") else _cell
    return str(environment.get_template(template).render(**values))


def columns_and_rows(table: pd.DataFrame) -> dict[str, Any]:
    """A table as the templates' macro `table` takes it."""
    return {"columns": list(table.columns), "rows": table.to_numpy().tolist()}


def embedded(picture: bytes) -> str:
    """A PNG file as an address that holds the whole picture."""
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def _cell(value: Any) -> str:
    """A value as tables show it: three decimals, or three digits if it is small."""
    if isinstance(value, float):
        return "" if value != value else f"{value:.3g}" if abs(value) < 0.01 and value else f"{value:.3f}"
    return str(value)


def _markdown_cell(value: Any) -> str:
    """A value as tables in Markdown show it; what would end a cell, or be read as HTML, is escaped."""
    return " ".join(escape(_cell(value), quote=False).split()).replace("|", "\\|")


def write_results(folder: Path, results: Results, study: Study | None = None) -> None:
    """Write the tables (CSV), the figures (PNG) and the page (HTML) of a run into a folder.

    Where matplotlib or jinja2 is not installed, figures or page are left out, and one warning says how to get them.
    """
    tables: dict[str, pd.DataFrame | None] = {"reliance": results.reliance, "top": results.top}
    if study is not None:
        tables |= {"compared": study.compared, "changes": study.changes, "reinforcement": study.reinforcement}
    for name, table in tables.items():
        if table is not None:
            write_bytes(folder / f"{name}.csv", as_utf8(table.to_csv(index=False)))
    missing: list[str] = []
    pictures: dict[str, bytes] = {}
    try:
        pictures = {"curves": figures.png(figures.curves(results)), "heat_map": figures.png(figures.heat_map(results))}
    except MissingPackageError as error:
        missing.append(str(error))
    for name, content in pictures.items():
        write_bytes(folder / f"{name}.png", content)
    try:
        write_bytes(folder / "report.html", as_utf8(_page(results, study, pictures)))
    except MissingPackageError as error:
        missing.append(str(error))
    if missing:
        warnings.warn(f"TracIn: the results in {folder} are incomplete, the tables are not. {' '.join(missing)}", stacklevel=2)


def _page(results: Results, study: Study | None, pictures: dict[str, bytes]) -> str:
    return render(
        "report.html",
        view=results.view,
        study=study,
        pictures={name: embedded(content) for name, content in pictures.items()},
        reliance=columns_and_rows(results.final().table),
        cross_lingual=[(point.epoch, point.step, point.scalars["tracin/cross_lingual/mean"]) for point in results.points()]
        if results.view.measure == "share"
        else [],
        top=results.top.to_dict("records"),
    )
