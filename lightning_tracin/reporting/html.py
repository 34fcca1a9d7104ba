"""HTML and Markdown pages, and the folder of results that a run writes.

A page embeds its pictures, so that the file can be sent on its own. jinja2 and matplotlib are optional: without them, a run's
folder holds the tables only.
"""

from __future__ import annotations

import base64
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
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
from lightning_tracin.reporting.influence_findings import note_of_influence, ranked_findings
from lightning_tracin.reporting.markdown import markdown_cell, markdown_line, plain_cell
from lightning_tracin.reporting.need_findings import findings_of_need
from lightning_tracin.reporting.page_data import chart_data, cut, packed, packed_explorer
from lightning_tracin.reporting.page_languages import html_language
from lightning_tracin.reporting.page_scripts import FOR_EXPLORING, FOR_TABLES, asset, page_scripts
from lightning_tracin.reporting.results import Results
from lightning_tracin.reporting.token_colours import coloured_pairs
from lightning_tracin.storage.display_names import display_names
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
    environment.filters |= {"line": markdown_line, "lang": html_language, "short": _short}
    if not template.endswith(".md"):
        values = {"style": asset("page.css"), "scripts": page_scripts(FOR_TABLES), **values}
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
    tables |= {"tokens": results.tokens, "need": results.need}
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
        write_bytes(folder / "report.html", as_utf8(page_of(results, study, pictures)))
    if attempts.missing:
        said = " ".join(attempts.missing)
        warnings.warn(f"TracIn: the results in {folder} are incomplete, except the tables. {said}", stacklevel=2)
    return attempts.failed


@dataclass(frozen=True)
class Headline:
    """The findings of a page, and what readers have to know of their order and their numbers."""

    sentences: list[str]
    order: str
    note: str


def _headline(results: Results) -> Headline:
    sums, means = (_named(results.final().tables[measure]) for measure in SIGNED)
    order = (
        "The order is by how far a value is from what it would be if languages were shuffled (a contrast: from 0), in halves of "
        "its interval."
    )
    return Headline(ranked_findings(sums, means), order if sums["low"].notna().any() else "", note_of_influence(sums))


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """A table with languages as people write them."""
    columns = ["probe_language", "train_language"]
    names = display_names(sorted({*table["probe_language"], *table["train_language"]}))
    named: pd.DataFrame = table.assign(**{column: table[column].map(names) for column in columns})
    return named


def page_of(results: Results, study: Study | None, pictures: Mapping[str, bytes]) -> str:
    """The page of a run.

    Args:
        results: the tables, and what the explorer shows.
        study: the experiments that the run allows.
        pictures: name -> PNG file. Those that the page has no room for (`MOST_OF_PICTURES`) are named: it draws the same.

    Raises:
        MissingPackageError: jinja2 is not installed.
    """
    final = results.final().tables
    inside = _with_room(pictures)
    shown, explored = ("", "") if results.explorer is None else packed_explorer(results.explorer)
    return render(
        "report.html",
        scripts=page_scripts((*FOR_TABLES, *FOR_EXPLORING)),
        view=results.view,
        cautions=results.cautions,
        study=study,
        pictures={name: embedded(content) for name, content in inside.items()},
        beside=pictures.keys() - inside.keys(),
        headline=_headline(results),
        unit=final["sum"]["unit"].iloc[0],
        influence=_shown(final["sum"]),
        means=_shown(final["mean"]),
        shares=_shown(final["share"]) if "share" in final else None,
        cross_lingual=[
            (point.epoch, point.step, *(mean_cross_lingual(point.tables["share"], column) for column in ("value", "null")))
            for point in results.points()
            if "share" in point.tables
        ],
        need=None if results.need is None else _need(results.need),
        top=results.top.to_dict("records"),
        longest=_LONGEST,
        pairs=[] if results.tokens is None else coloured_pairs(results.top, results.tokens),
        charts=packed(chart_data(results)),
        shown=shown,
        explored=explored,
    )


def _need(table: pd.DataFrame) -> dict[str, Any]:
    named = _named(table)
    return {"findings": [*findings_of_need(named)], "table": columns_and_rows(named)}


def _shown(table: pd.DataFrame) -> dict[str, Any]:
    """A table without the columns that are the same in all of its rows or empty."""
    return columns_and_rows(table[[name for name in _COLUMNS if name in table and table[name].notna().any()]])


#: Columns of the tables of languages.
_COLUMNS = (
    "probe_language",
    "train_language",
    "value",
    "low",
    "high",
    "contrast",
    "contrast_low",
    "contrast_high",
    "null",
    "lift",
    "probes",
)

#: Bytes of the pictures that a page shows.
MOST_OF_PICTURES = 500_000


def _with_room(pictures: Mapping[str, bytes]) -> dict[str, bytes]:
    """The pictures that a page shows: in their order, those for which there is room."""
    kept, room = {}, MOST_OF_PICTURES
    for name, content in pictures.items():
        if len(content) <= room:
            kept[name] = content
            room -= len(content)
    return kept


#: Characters of a text in a table.
_LONGEST = 240


def _short(text: str) -> str:
    return cut(text, _LONGEST)
