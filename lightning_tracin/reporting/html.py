"""HTML and Markdown pages, and the folder of results that a run writes.

A page embeds its pictures, so that the file can be sent on its own. jinja2 and matplotlib are optional: without them, a run's
folder holds the tables only.
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
    """Fill in a template from `reporting/templates`; in HTML, every value is escaped.

    Args:
        template: file name; the filter `cell` writes Markdown in a file that ends in `.md`, otherwise HTML.
        **values: the template's variables.

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
    """Convert a table for the templates' macro `table`.

    Example:
        >>> columns_and_rows(pd.DataFrame({"language": ["de"], "share": [0.5]}))
        {'columns': ['language', 'share'], 'rows': [['de', 0.5]]}
    """
    return {"columns": list(table.columns), "rows": table.to_numpy().tolist()}


def embedded(picture: bytes) -> str:
    """A data URL that contains a PNG file.

    Example:
        >>> embedded(b"picture")
        'data:image/png;base64,cGljdHVyZQ=='
    """
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def _cell(value: Any) -> str:
    """Format a value for a table: three decimals, or three significant digits if it is small."""
    if isinstance(value, float):
        return "" if value != value else f"{value:.3g}" if abs(value) < 0.01 and value else f"{value:.3f}"
    return str(value)


def _markdown_cell(value: Any) -> str:
    """Format a value for a Markdown table; escapes what would end the cell or be read as HTML."""
    return " ".join(escape(_cell(value), quote=False).split()).replace("|", "\\|")


def write_results(folder: Path, results: Results, study: Study | None = None) -> None:
    """Write the tables (CSV), figures (PNG) and page (HTML) of a run to a folder.

    If matplotlib or jinja2 is missing, the figures or the page are skipped, and one warning says what to install.
    """
    tables: dict[str, pd.DataFrame | None] = {"reliance": results.reliance, "top": results.top}
    if study is not None:
        tables |= {"compared": study.compared, "changes": study.changes, "reinforcement": study.reinforcement}
    keys = results.final().keys
    if any(name != key for name, key in keys.items()):  # loggers show the keys
        tables["language_keys"] = pd.DataFrame({"key": keys.values(), "language": keys.keys()})
    for name, table in tables.items():
        if table is not None:
            write_bytes(folder / f"{name}.csv", as_utf8(table.to_csv(index=False)))
    missing: list[str] = []
    pictures: dict[str, bytes] = {}
    try:
        pictures = {"curves": figures.png(figures.curves(results)), "heat_map": figures.png(figures.heat_map(results))}
        for name, content in pictures.items():
            write_bytes(folder / f"{name}.png", content)
    except MissingPackageError as error:
        missing.append(str(error))
    try:
        write_bytes(folder / "report.html", as_utf8(_page(results, study, pictures)))
    except MissingPackageError as error:
        missing.append(str(error))
    if missing:
        warnings.warn(f"TracIn: the results in {folder} are incomplete, except the tables. {' '.join(missing)}", stacklevel=2)


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
