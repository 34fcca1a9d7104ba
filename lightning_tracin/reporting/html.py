"""A folder of tables and figures, and one self-contained HTML page."""

from __future__ import annotations

import base64
from pathlib import Path

from jinja2 import Environment, PackageLoader, select_autoescape

from lightning_tracin.reporting.figures import curves, heat_map, png
from lightning_tracin.reporting.findings import Study
from lightning_tracin.reporting.results import Results
from lightning_tracin.storage.files import as_utf8, write_bytes


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
    environment = Environment(loader=PackageLoader("lightning_tracin.reporting"), autoescape=select_autoescape())
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
