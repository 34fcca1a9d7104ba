"""Writes all results of a run, each on its own, and says what completes those that failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import pandas as pd

from lightning_tracin.analysis.need_table import NeedUnknownError
from lightning_tracin.analysis.reliance import Floats
from lightning_tracin.attribution.progress import Progress
from lightning_tracin.config import View
from lightning_tracin.errors import printable
from lightning_tracin.reporting.attempts import Attempts, listed, results_command
from lightning_tracin.reporting.contribution_results import write_contributions
from lightning_tracin.reporting.explorer import explorer_of
from lightning_tracin.reporting.findings import study_of
from lightning_tracin.reporting.html import write_results
from lightning_tracin.reporting.results import Results, analyse
from lightning_tracin.run import TracInRun


@dataclass(frozen=True)
class WrittenResults:
    """What came of writing a run's results.

    Attributes:
        results: the tables; None if they could not be computed.
        remedy: names what failed, why, and the command that completes it; None if nothing failed.
    """

    results: Results | None
    remedy: str | None


def write_every_result(
    run: TracInRun,
    view: View,
    representations: Callable[[], tuple[Floats, Floats]],
    progress: Progress = False,
    failed: Mapping[str, str] | None = None,
    otherwise: str = "",
    tokens: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
) -> WrittenResults:
    """Compute the tables of a run and write its results, those of its contributions included.

    Args:
        run: a run whose snapshots all have influence.
        view: what the results show.
        representations: returns the model's representations of the train samples and of the probes.
        progress: the bar that is shown.
        failed: result -> reason, for what the caller could not write; read at the end, so `representations` may add to it.
        otherwise: the line of Python that completes what `failed` names.
        tokens: returns the per-token scores of the pairs in a table. None: they are not shown.
    """
    attempts, of_model, results, study = Attempts(), Attempts(), None, None
    with attempts.at("all tables, figures and the page"):
        results = analyse(run, view, progress)
    if results is not None:
        if not run.is_large and view.measure == "share":
            with attempts.at("compared.csv", "changes.csv", "reinforcement.csv"):
                study = study_of(run, view, representations)
        if not run.is_large:
            with attempts.at("need.csv"), suppress(NeedUnknownError):  # what most runs do not hold
                results = replace(results, need=run.predicted_need())
        if tokens is not None:
            with of_model.at("tokens.csv"):
                results = replace(results, tokens=tokens(results.top))
        with attempts.at("the explorer of report.html"):
            results = replace(results, explorer=explorer_of(run, view))
        attempts.failed.update(write_results(run.directory.results, results, study))
    if run.account.is_there:
        attempts.failed.update(write_contributions(run))
    elsewhere = {**(failed or {}), **of_model.failed}
    command = f"`{results_command(run.path, view, run.record.options)}`"
    if elsewhere:
        command = f"`{otherwise}`, with the fit's module and loaders,"
    return WrittenResults(results, remedy_of(run, {**attempts.failed, **elsewhere}, command))


def remedy_of(run: TracInRun, failed: Mapping[str, str], command: str) -> str | None:
    """Say which results of a run failed, why, and what completes them; None if nothing failed.

    Args:
        run: the run.
        failed: result -> reason.
        command: what completes them.
    """
    if not failed:
        return None
    return printable(
        f"TracIn: the influence is in {run.path}, but of its results these are not written: {listed(failed)}. Once the cause is "
        f"gone, {command} writes them."
    )
