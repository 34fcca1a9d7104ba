"""HTML and Markdown pages, and the folder of results that a run writes.

A page embeds its pictures, so that the file can be sent on its own. jinja2 and matplotlib are optional: without them, a run's
folder holds the tables only.
"""

from __future__ import annotations

import base64
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from lightning_tracin.analysis.reliance import mean_cross_lingual
from lightning_tracin.analysis.tables import as_csv
from lightning_tracin.analysis.tally import SIGNED
from lightning_tracin.errors import needs
from lightning_tracin.reporting import figures
from lightning_tracin.reporting.attempts import Attempts
from lightning_tracin.reporting.findings import Study
from lightning_tracin.reporting.influence_findings import findings_of_influence
from lightning_tracin.reporting.markdown import markdown_cell, markdown_line, plain_cell
from lightning_tracin.reporting.results import Results
from lightning_tracin.reporting.token_colours import coloured_pairs
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
    environment.filters["cell"] = markdown_cell if template.endswith(".md") else plain_cell
    environment.filters["line"] = markdown_line
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


def write_results(folder: Path, results: Results, study: Study | None = None) -> dict[str, str]:
    """Write the tables (CSV), figures (PNG) and page (HTML) of a run to a folder, each on its own.

    If matplotlib or jinja2 is missing, the figures or the page are skipped, and one warning says what to install.

    Returns:
        File -> reason, for each that could not be written.
    """
    tables: dict[str, pd.DataFrame | None] = {"reliance": results.reliance, "top": results.top}
    if study is not None:
        tables |= {"compared": study.compared, "changes": study.changes, "reinforcement": study.reinforcement}
    tables["tokens"] = results.tokens
    keys = results.final().keys
    if any(name != key for name, key in keys.items()):  # loggers show the keys
        tables["language_keys"] = pd.DataFrame({"key": keys.values(), "language": keys.keys()})
    attempts = Attempts()
    for name, table in tables.items():
        if table is not None:
            with attempts.at(f"{name}.csv"):
                write_bytes(folder / f"{name}.csv", as_utf8(as_csv(table)))
    pictures: dict[str, bytes] = {}
    for name in ("heat_map", "curves", *(("lift",) if "share" in results.final().tables else ())):
        with attempts.at(f"{name}.png"):
            pictures[name] = figures.png(getattr(figures, name)(results))
            write_bytes(folder / f"{name}.png", pictures[name])
    with attempts.at("report.html"):
        write_bytes(folder / "report.html", as_utf8(_page(results, study, pictures)))
    if attempts.missing:
        said = " ".join(attempts.missing)
        warnings.warn(f"TracIn: the results in {folder} are incomplete, except the tables. {said}", stacklevel=2)
    return attempts.failed


def _page(results: Results, study: Study | None, pictures: dict[str, bytes]) -> str:
    return render(
        "report.html",
        view=results.view,
        cautions=results.cautions,
        study=study,
        pictures={name: embedded(content) for name, content in pictures.items()},
        headline=list(findings_of_influence(*(results.final().tables[measure] for measure in SIGNED))),
        unit=results.final().tables["sum"]["unit"].iloc[0],
        influence=columns_and_rows(results.final().tables["sum"]),
        means=columns_and_rows(results.final().tables["mean"]),
        shares=columns_and_rows(results.final().tables["share"]) if "share" in results.final().tables else None,
        cross_lingual=[
            (point.epoch, point.step, *(mean_cross_lingual(point.tables["share"], column) for column in ("value", "null")))
            for point in results.points()
            if "share" in point.tables
        ],
        top=results.top.to_dict("records"),
        pairs=[] if results.tokens is None else coloured_pairs(results.top, results.tokens),
    )
