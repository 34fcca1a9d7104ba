"""What a study found, as files: a page (HTML and Markdown), every table (CSV), every figure (PNG)."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape

from lightning_tracin.reporting.figures import png
from lightning_tracin.storage.files import as_utf8, write_bytes
from lightning_tracin.studies.runner import Outcome
from lightning_tracin.studies.section import Section

#: Tables with more lines are in their files only; Markdown, which goes into other people's pages, has none with the data's texts.
_LINES = {"html": 120, "md": 60}
_TEXTS = ("texts",)


def write_page(outcome: Outcome) -> Path:
    """Write `results/` of a study; returns the page's path."""
    folder = outcome.folder / "results"
    pictures: dict[str, bytes] = {}
    write_bytes(folder / "accuracy.csv", as_utf8(outcome.accuracy.to_csv(index=False)))
    for section in outcome.sections:
        for name, table in section.tables.items():
            write_bytes(folder / f"{section.name}-{name}.csv", as_utf8(table.to_csv(index=False)))
        for name, figure in section.figures.items():
            pictures[f"{section.name}-{name}.png"] = png(figure)
    for file, content in pictures.items():
        write_bytes(folder / file, content)
    embedded = {file: f"data:image/png;base64,{base64.b64encode(content).decode()}" for file, content in pictures.items()}
    write_bytes(folder / "report.md", as_utf8(markdown(outcome, "")))
    write_bytes(folder / "report.html", as_utf8(_rendered("html", outcome, embedded)))
    return folder / "report.html"


def markdown(outcome: Outcome, figures_at: str, level: int = 1, shown: Sequence[str] | None = None) -> str:
    """The page as Markdown.

    Args:
        outcome: of the study.
        figures_at: stands before the names of figure files.
        level: of its first heading.
        shown: figure files (without .png) that it shows; None shows all.
    """
    files = [f"{section.name}-{name}" for section in outcome.sections for name in section.figures]
    chosen = [file for file in files if shown is None or file in shown]
    return _rendered("md", outcome, {f"{file}.png": f"{figures_at}{file}.png" for file in chosen}, "#" * level)


def _rendered(kind: str, outcome: Outcome, pictures: dict[str, str], heading: str = "#") -> str:
    environment = Environment(
        loader=PackageLoader("lightning_tracin.reporting"), autoescape=select_autoescape(), trim_blocks=True
    )
    environment.filters["cell"] = _cell if kind == "html" else _markdown_cell
    return environment.get_template(f"study.{kind}").render(
        outcome=outcome,
        settings=outcome.settings,
        accuracy=_shown(outcome.accuracy),
        sections=[(section, _tables(section, kind)) for section in outcome.sections],
        pictures=pictures,
        heading=heading,
    )


def _tables(section: Section, kind: str) -> dict[str, dict[str, Any]]:
    return {
        name: _shown(table)
        for name, table in section.tables.items()
        if len(table) <= _LINES[kind] and (kind == "html" or name not in _TEXTS)
    }


def _shown(table: pd.DataFrame) -> dict[str, Any]:
    return {"columns": list(table.columns), "rows": table.to_numpy().tolist()}


def _cell(value: Any) -> str:
    """A value as tables show it."""
    if isinstance(value, float):
        return "" if value != value else f"{value:.3g}" if abs(value) < 0.01 and value else f"{value:.3f}"
    return str(value)


def _markdown_cell(value: Any) -> str:
    """A value as Markdown's tables show it; what would end a cell, or be read as HTML, is escaped."""
    return " ".join(escape(_cell(value), quote=False).split()).replace("|", "\\|")
