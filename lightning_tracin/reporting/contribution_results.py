"""Writes what an account of contributions shows to the `results` folder of its run: tables, figure, and a section of the page.

The section is written into the page that is there, between two marks, because a page also shows what only the fit's model could
compute again. Without a page, the section is all there is of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from lightning_tracin.analysis.contributions import grouping_of, whole_fit
from lightning_tracin.analysis.tables import as_csv, stacked
from lightning_tracin.errors import TracInError
from lightning_tracin.reporting import figures
from lightning_tracin.reporting.attempts import Attempts
from lightning_tracin.reporting.contribution_findings import cautions_of_contributions, findings_of_contributions
from lightning_tracin.reporting.html import columns_and_rows, embedded, render
from lightning_tracin.run import TracInRun
from lightning_tracin.storage.account import AccountRecord
from lightning_tracin.storage.files import as_utf8, write_bytes
from lightning_tracin.storage.filesystem import read_whole

#: What a page has around its section of contributions. No text of a data set can hold it, because `<` is escaped there.
_BEGIN, _END = "<!-- contributions -->", "<!-- end of contributions -->"

#: Bytes of the picture that the page shows; a larger one is named.
_MOST_OF_PICTURE = 150_000

#: Columns of the page's table.
_SHOWN = ("nats", "low", "high", "fall", "probes", "samples")


def every_window(run: TracInRun) -> pd.DataFrame:
    """All contributions of a run: each window alone, and summed up to each, told apart by the first column, `cumulative`.

    Raises:
        TracInError: see `TracInRun.contributions`.
    """
    return stacked({cumulative: run.contributions(cumulative=cumulative) for cumulative in (False, True)}, "cumulative")


def write_contributions(run: TracInRun) -> Mapping[str, str]:
    """Write `contributions.csv`, `contributions.png` and the page's section of a run with an account, each on its own.

    The table is `every_window`. If matplotlib or jinja2 is missing, figure or page are skipped, and one warning says what to
    install. Without any window, nothing is written.

    Args:
        run: the run.

    Returns:
        File -> reason, for each that could not be written.

    Example:
        Skipped: needs a run directory.

        >>> write_contributions(TracInRun.open("runs/xnli"))  # doctest: +SKIP
        {}
    """
    attempts, folder = Attempts(), run.directory.results
    tables: list[pd.DataFrame] = []
    with attempts.at("contributions.csv", "contributions.png", "the page's contributions"):
        tables.append(every_window(run))
    if not tables or tables[0].empty:
        return attempts.failed
    (table,) = tables
    summed = table[table["cumulative"]].drop(columns="cumulative")
    picture: bytes | None = None
    with attempts.at("contributions.csv"):
        write_bytes(folder / "contributions.csv", as_utf8(as_csv(table)))
    with attempts.at("contributions.png"):
        picture = figures.png(figures.contributions(summed))
        write_bytes(folder / "contributions.png", picture)
    with attempts.at("report.html"):
        _write_section(folder / "report.html", _section(run.account.record(), whole_fit(summed), picture))
    if attempts.missing:
        said = " ".join(attempts.missing)
        warnings.warn(f"TracIn: the contributions in {folder} are incomplete, except the table. {said}", stacklevel=2)
    return attempts.failed


def _section(record: AccountRecord, whole: pd.DataFrame, picture: bytes | None) -> str:
    return render(
        "contributions.html",
        cautions=list(cautions_of_contributions(whole, record)),
        findings=list(findings_of_contributions(whole)),
        picture=None if picture is None or len(picture) > _MOST_OF_PICTURE else embedded(picture),
        beside=picture is not None and len(picture) > _MOST_OF_PICTURE,
        whole=columns_and_rows(whole[[*grouping_of(whole), *_SHOWN]]),
    )


def _write_section(path: Path, section: str) -> None:
    """Write the section into the page, or a page of it alone.

    Raises:
        TracInError: the page has no place for it.
    """
    try:
        page = read_whole(path).decode("utf-8", "replace")
    except FileNotFoundError:
        page = render("account.html")
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise TracInError(f"{path} was written by another version and has no place for contributions; delete it first.")
    write_bytes(path, as_utf8(f"{before}{_BEGIN}{section}{_END}{after}"))
