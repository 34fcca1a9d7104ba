"""The `results/` folder of a study: a page (HTML and Markdown), every table (CSV) and every figure (PNG)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_tracin.analysis.tables import as_csv
from lightning_tracin.reporting import figures
from lightning_tracin.reporting.html import columns_and_rows, embedded, render
from lightning_tracin.storage.files import as_utf8, write_bytes
from lightning_tracin.studies.runner import Outcome
from lightning_tracin.studies.section import Section
from lightning_tracin.studies.shared_folder import SharedFolder

#: Longer tables are in their own files only. Markdown, which other pages include, never shows texts of the data.
_LINES = {"html": 120, "md": 60}
_TEXTS = ("texts",)


def write_page(outcome: Outcome) -> Path:
    """Write the `results/` folder of a study, and return the path of the HTML page; other processes of the study wait.

    Raises:
        MissingPackageError: jinja2 or matplotlib is not installed.
    """
    with SharedFolder(outcome.folder, print):
        return _written(outcome)


def _written(outcome: Outcome) -> Path:
    folder = outcome.folder / "results"
    pictures: dict[str, bytes] = {}
    write_bytes(folder / "accuracy.csv", as_utf8(as_csv(outcome.accuracy)))
    for section in outcome.sections:
        for name, table in section.tables.items():
            write_bytes(folder / f"{section.name}-{name}.csv", as_utf8(as_csv(table)))
        for name, figure in section.figures.items():
            pictures[f"{section.name}-{name}.png"] = figures.png(figure)
    for file, content in pictures.items():
        write_bytes(folder / file, content)
    write_bytes(folder / "report.md", as_utf8(markdown(outcome, "")))
    page = _rendered("html", outcome, {file: embedded(content) for file, content in pictures.items()})
    write_bytes(folder / "report.html", as_utf8(page))
    return folder / "report.html"


def markdown(outcome: Outcome, figures_at: str, level: int = 1, shown: Sequence[str] | None = None) -> str:
    """Render the page as Markdown.

    Args:
        outcome: results of the study.
        figures_at: prefix of the paths of figure files.
        level: level of the first heading.
        shown: names of the figure files to show, without `.png`; None shows all.

    Raises:
        MissingPackageError: jinja2 is not installed.
    """
    files = [f"{section.name}-{name}" for section in outcome.sections for name in section.figures]
    chosen = [file for file in files if shown is None or file in shown]
    return _rendered("md", outcome, {f"{file}.png": f"{figures_at}{file}.png" for file in chosen}, "#" * level)


def _rendered(kind: str, outcome: Outcome, pictures: dict[str, str], heading: str = "#") -> str:
    return render(
        f"study.{kind}",
        outcome=outcome,
        settings=outcome.settings,
        accuracy=columns_and_rows(outcome.accuracy),
        sections=[(section, _tables(section, kind)) for section in outcome.sections],
        pictures=pictures,
        heading=heading,
    )


def _tables(section: Section, kind: str) -> dict[str, dict[str, Any]]:
    return {
        name: columns_and_rows(table)
        for name, table in section.tables.items()
        if len(table) <= _LINES[kind] and (kind == "html" or name not in _TEXTS)
    }
