"""The commands on one run (compute what is missing, print its tables, export them to files), and its dashboard in W&B."""

from __future__ import annotations

import json
import shlex
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pandas as pd
from humanize import naturalsize

from lightning_tracin.analysis.contributions import whole_fit
from lightning_tracin.analysis.influence_reader import Ranking
from lightning_tracin.analysis.need_table import Curvature
from lightning_tracin.analysis.resampling import NO_INTERVAL
from lightning_tracin.analysis.tables import as_csv
from lightning_tracin.attribution.spot_check import described as described_check
from lightning_tracin.config import DAMPING, Blocks, Damping, Measure, Preconditioning, Sign, Similarity, Weighting
from lightning_tracin.errors import TracInError, one_line, printable
from lightning_tracin.reporting.attempts import Attempts, listed
from lightning_tracin.reporting.contribution_results import every_window, write_contributions
from lightning_tracin.reporting.contribution_summary import described_account, wide
from lightning_tracin.reporting.dashboard import dashboard as built_dashboard
from lightning_tracin.reporting.dashboard_upload import save_dashboard
from lightning_tracin.reporting.every_result import write_every_result
from lightning_tracin.reporting.findings import study_of
from lightning_tracin.reporting.results import analyse
from lightning_tracin.reporting.run_summary import about_samples
from lightning_tracin.run import TracInRun
from lightning_tracin.storage.account import AccountStore
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.files import as_utf8, write_bytes
from lightning_tracin.storage.filesystem import is_local, place
from lightning_tracin.storage.lock import RunLock
from lightning_tracin.storage.snapshots import Snapshot

Output = Literal["table", "csv", "json"]
Format = Literal["csv", "parquet"]

#: Added to the message for a run that is read shard by shard.
_LEFT_OUT = " The run is too large for its experiments (compared, changes, reinforcement), which need all influence at once."

#: Characters of a text shown in a table.
_WIDTH = 60


def attribute(
    run: str, config: Path, accelerator: str | None = None, devices: int | None = None, mask: Path | None = None
) -> str:
    """Compute the missing influence of a run, using the fit's LightningCLI configuration file.

    Args:
        run: the run directory.
        config: the YAML file of the fit's LightningCLI; it must name the classes of model and data.
        accelerator: overrides the accelerator in the file.
        devices: overrides the number of devices in the file.
        mask: overrides the mask file in the configuration.
    """
    from lightning_tracin.cli.lightning_config import attribute_from_config  # slow to import: loads Lightning

    return status(run) if attribute_from_config(run, config, accelerator, devices, mask) else ""


def status(run: str) -> str:
    """Show what a run contains and what is still missing.

    Args:
        run: the run directory.
    """
    opened = TracInRun.open(run)
    lines = _status_of_influence(opened) if opened.has_influence else []
    if opened.account.is_there:
        lines = [described_account(opened), *(["", *lines] if lines else [])]
    return printable("\n".join(lines))


def _status_of_influence(opened: TracInRun) -> list[str]:
    record, directory = opened.record, opened.directory
    table = pd.DataFrame([_about(opened, snapshot) for snapshot in opened.snapshots])
    missing = [str(index) for index, state in zip(table["snapshot"], table["attributed"], strict=True) if state != "yes"]
    lines = [
        f"Run {record.run} in {directory.path}: {about_samples(opened)}, {record.elements:,} elements of {record.parameters} "
        "parameters.",
        "",
        _as_table(table) if len(table) else "There are no snapshots: the fit ended before the first one was taken.",
        "",
    ]
    lines += [line for caution in record.cautions for line in (caution, "")]
    if missing:
        lines.append(f"Missing: the influence at snapshot {', '.join(missing)} (`lightning-tracin attribute` computes it).")
    elif len(table) and not (directory.results / "reliance.csv").exists():
        lines.append("Missing: the results (`lightning-tracin results` writes them).")
    elif len(table):
        lines.append(f"Nothing is missing; the results are in {directory.results}.")
    return lines


def results(run: str, k: int | None = None, similarity: Similarity | None = None, weighting: Weighting | None = None) -> str:
    """Write the results of a run (tables, figures, page) again, from what is stored.

    Args:
        run: the run directory.
        k: how many of each probe's strongest train samples to count. Default: as in the fit.
        similarity: which score to show. Default: as in the fit.
        weighting: how to weight snapshots. Default: as in the fit.
    """
    directory = RunDirectory(place(run))
    if not directory.holds_run and AccountStore(directory.path).is_there:
        return _results_of_account(directory)
    directory.record()  # raises an error before a folder without a run is locked
    with RunLock(directory.path):
        directory.reload()
        opened = TracInRun(directory)
        if opened.record.snapshots is None:  # the disk refused it when the fit ended
            directory.end()
        view = opened.record.options.view(opened.method.measure).but(top_k=k, similarity=similarity, weighting=weighting)
        remedy = write_every_result(opened, view, opened.representations).remedy
        if remedy is not None:
            raise TracInError(remedy)
    return printable(f"The results are in {directory.results}.")


def _results_of_account(directory: RunDirectory) -> str:
    """Write the results of a directory that holds contributions only."""
    with RunLock(directory.path):
        failed = write_contributions(TracInRun(directory))
    if failed:
        raise TracInError(
            f"Not written to {directory.results}: {listed(failed)}. Once the cause is gone, give the same command again."
        )
    return printable(f"The results are in {directory.results}.")


def report(run: str, open: bool = False) -> str:
    """Say where the page of a run is, and open it in the browser.

    Args:
        run: the run directory.
        open: whether to open it.
    """
    page = RunDirectory(place(run)).results / "report.html"
    if not page.exists():
        raise TracInError(f"There is no {page}; `lightning-tracin results --run {shlex.quote(run)}` writes it.")
    if open and not is_local(page):
        raise TracInError(f"{page} is not on this machine, and browsers open files of it; copy the page first.")
    if open and not webbrowser.open(page.resolve().as_uri()):
        raise TracInError(f"No browser could be started; open {page.resolve()} yourself, or name a browser in $BROWSER.")
    return printable(str(page))


def reliance(
    run: str,
    k: int | None = None,
    sign: Sign = "positive",
    cumulative: bool = False,
    measure: Measure = "sum",
    similarity: Similarity | None = None,
    weighting: Weighting | None = None,
    snapshots: list[int] | None = None,
    by: Literal["layer"] | None = None,
    preconditioner: Preconditioning | None = None,
    damping: Damping = DAMPING,
    blocks: Blocks = "whole",
    output: Output = "table",
) -> str:
    """Print what each probe language gets from each train language.

    Args:
        run: the run directory.
        k: how many of each probe's strongest train samples to count. Default: as in the fit.
        sign: "positive" for proponents, "negative" for opponents.
        cumulative: sum influence up to each snapshot, instead of taking each snapshot alone.
        measure: "sum" or "mean" of the influence of a language's samples, with its sign; "share" of the strongest k, or "mass"
            (share of all influence of that sign).
        similarity: which score to rank by. Default: as in the fit.
        weighting: how to weight snapshots. Default: as in the fit.
        snapshots: indices of the snapshots to show. Default: all.
        by: "layer" for a table of each layer alone.
        preconditioner: "adam", "adam-factored", "fisher" or "adam-fisher" if the run has it, or "none". Default: as in the fit.
        damping: for "fisher" and "adam-fisher": the ridge, as a fraction of the trace, or "steps": from the fit's own steps.
        blocks: for these two: whiten all features together ("whole") or each "layer" separately.
        output: format of the printed table.
    """
    opened = TracInRun.open(run)
    table = opened.reliance(
        opened.record.options.top_k if k is None else k,
        sign,
        cumulative,
        measure,
        similarity,
        weighting,
        snapshots,
        by=by,
        preconditioner=preconditioner,
        damping=damping,
        blocks=blocks,
    )
    return _printed(table, output)


def need(run: str, curvature: Curvature = "gauss-newton", output: Output = "table") -> str:
    """Print by how many nats each probe language's loss would be higher after a fit without each train language, as predicted.

    Args:
        run: the run directory; it has features in the metric of the fit's steps.
        curvature: "gauss-newton" for the cross-entropy of one label a sample; "fisher" for any loss, less exact.
        output: format of the printed table.
    """
    return _printed(TracInRun.open(run).predicted_need(curvature), output)


def contributions(
    run: str,
    by: str | None = None,
    windows: bool = False,
    cumulative: bool = False,
    share: bool = False,
    output: Output = "table",
) -> str:
    """Print by how many nats each train language lowered each probe language's loss in the fit.

    Args:
        run: the run directory.
        by: what the account is by, as a check. Default: whatever it is.
        windows: the long table, with intervals, each window alone. Default: the whole fit, a row for each probe language.
        cumulative: the long table, summed up to each window.
        share: contributions as parts of the measured fall.
        output: format of the printed table.
    """
    opened = TracInRun.open(run)
    if windows or cumulative:
        return _printed(opened.contributions(by, cumulative, share), output)
    whole = whole_fit(opened.contributions(by, True, share, NO_INTERVAL))
    return printable(described_account(opened)) if whole.empty else _printed(wide(whole), output)


def top(
    run: str,
    probe: int | None = None,
    k: int = 10,
    sign: Sign = "positive",
    similarity: Similarity | None = None,
    weighting: Weighting | None = None,
    snapshots: list[int] | None = None,
    preconditioner: Preconditioning | None = None,
    damping: Damping = DAMPING,
    blocks: Blocks = "whole",
    by: Ranking = "influence",
    group: str | None = None,
    output: Output = "table",
) -> str:
    """Print the strongest train samples of one probe, or those that contributed most to a probe language, with their texts.

    Args:
        run: the run directory.
        probe: index of the probe. For a run with language means: index of the language, in alphabetical order.
        k: number of train samples to print.
        sign: "positive" for proponents, "negative" for opponents.
        similarity: which score to rank by. Default: as in the fit.
        weighting: how to weight snapshots. Default: as in the fit.
        snapshots: indices of the snapshots to sum. Default: all.
        preconditioner: "adam", "adam-factored", "fisher" or "adam-fisher" if the run has it, or "none". Default: as in the fit.
        damping: for "fisher" and "adam-fisher": the ridge, as a fraction of the trace, or "steps": from the fit's own steps.
        blocks: for these two: whiten all features together ("whole") or each "layer" separately.
        by: "influence" on a probe, or own "contribution" to a group.
        group: the probe language (or other group of the account), for "contribution".
        output: format of the printed table.
    """
    opened = TracInRun.open(run)
    if by == "contribution" or probe is None:
        return _printed(opened.top(probe, k, sign, by=by, group=group), output)
    options = opened.record.options.but(similarity=similarity, weighting=weighting)
    found = opened.top(
        probe, k, sign, options.similarity, options.weighting, snapshots, preconditioner, damping, blocks, by, group
    )
    printed = _printed(found, output)
    if output != "table":
        return printed
    (about,) = opened.queries.take([probe]).rows()
    return printable(f"Probe {probe} ({about['language']}): {one_line(str(about['text']))}\n\n") + printed


def export(run: str, folder: str, format: Format = "csv", k: int | None = None) -> str:
    """Write all tables of a run to files in a folder.

    Args:
        run: the run directory.
        folder: the folder to write to.
        format: file format of the tables.
        k: how many of each probe's strongest train samples to count. Default: as in the fit.
    """
    opened = TracInRun.open(run)
    attempts, written = Attempts(), []
    for name, table in _tables(opened, k):
        path = place(folder) / f"{name}.{format}"
        with attempts.at(path.name):
            # to_parquet without a path returns the file's bytes
            write_bytes(path, as_utf8(as_csv(table)) if format == "csv" else table.to_parquet(index=False))
            written.append(path.name)
    left_out = _LEFT_OUT if opened.has_influence and opened.is_large else ""
    told = f"Written to {folder}: {', '.join(written) or 'nothing'}.{left_out}"
    if attempts.failed:
        raise TracInError(f"{told} Not written: {listed(attempts.failed)}. Once the cause is gone, give the same command again.")
    return printable(told)


def dashboard(
    entity: str, project: str, run: str | None = None, languages: list[str] | None = None, spec: str | None = None
) -> str:
    """Make a W&B workspace and a W&B report of what the fits of a project logged.

    Args:
        entity: the user or team in W&B.
        project: its project.
        run: id of a run, to which the report is restricted and which the workspace compares others with. Default: all runs.
        languages: probe languages that get panels of their own. Default: those of the run, if one is given.
        spec: a folder to write what W&B would be sent to, in place of sending it; needs no login.
    """
    if spec is None:
        workspace, report = save_dashboard(entity, project, run, languages or ())
        return printable(f"Workspace: {workspace}\nReport: {report}")
    for name, content in built_dashboard(entity, project, run, languages or ()).specs().items():
        write_bytes(place(spec) / f"{name}.json", as_utf8(json.dumps(content, indent=1, ensure_ascii=False) + "\n"))
    return printable(f"Written to {spec}: workspace.json, report.json. Nothing was sent to W&B.")


def _tables(run: TracInRun, k: int | None) -> Iterator[tuple[str, pd.DataFrame]]:
    """All tables of a run, with their names."""
    if run.account.is_there:
        yield "contributions", every_window(run)
    if run.has_influence:
        yield from _tables_of_influence(run, k)


def _tables_of_influence(run: TracInRun, k: int | None) -> Iterator[tuple[str, pd.DataFrame]]:
    view = run.record.options.view(run.method.measure).but(top_k=k)
    yield "snapshots", pd.DataFrame([_about(run, snapshot) for snapshot in run.snapshots])
    yield "train", pd.DataFrame(run.train.rows())
    yield "probes", pd.DataFrame(run.probes.rows())
    results = analyse(run, view)
    yield "reliance", results.reliance
    yield "top", results.top
    if view.measure == "share" and not run.is_large:
        study = study_of(run, view, run.representations)
        tables = {name: getattr(study, name) for name in ("compared", "changes", "reinforcement")}
        yield from ((name, table) for name, table in tables.items() if table is not None)


def _about(run: TracInRun, snapshot: Snapshot) -> dict[str, object]:
    """One snapshot's row."""
    store = run.method.store(run.directory, snapshot)
    sizes = [path.stat().st_size for path in store.folder.glob("*.safetensors")]
    weights = [path.stat().st_size for path in snapshot.path.glob("*.safetensors")]
    check = run.record.spot_checks.get(snapshot.name)
    complete = bool(sizes) and store.is_complete()
    return {
        "snapshot": snapshot.index,
        "epoch": snapshot.epoch,
        "step": snapshot.step,
        "steps": snapshot.steps,
        "visits": snapshot.visits,
        "learning_rates": " ".join(f"{rate:.3g}" for rate in snapshot.learning_rates),
        "weights": naturalsize(sum(weights)) if snapshot.kept else "not kept",
        "computed": naturalsize(sum(sizes)),
        "spot_check": "-" if check is None or not complete else described_check(check),
        "attributed": "yes" if complete else "partly" if sizes else "no",
    }


def _printed(table: pd.DataFrame, output: Output) -> str:
    """Format a table, without characters that act on a terminal."""
    plain = table.map(lambda value: one_line(value) if isinstance(value, str) else value)
    if output == "csv":
        return str(plain.to_csv(index=False)).rstrip("\n")
    if output == "json":
        return str(plain.to_json(orient="records", force_ascii=False, indent=1))
    return _as_table(plain)


def _as_table(table: pd.DataFrame) -> str:
    with pd.option_context("display.max_colwidth", _WIDTH):
        return str(table.to_string(index=False, float_format="{:.4g}".format, na_rep="-"))
