"""What a run is, in a paragraph, and the influence of its languages as a small table: how `TracInRun` shows itself."""

from __future__ import annotations

from html import escape

from lightning_tracin.analysis.resampling import NO_INTERVAL
from lightning_tracin.attribution.cost import counted
from lightning_tracin.errors import TracInError, printable
from lightning_tracin.reporting.contribution_summary import described_account
from lightning_tracin.run import TracInRun

#: Most languages that the table is shown for.
_MOST = 30


def described(run: TracInRun) -> str:
    """What a run contains, in a few sentences; reads no influence. If a file is missing or damaged, where the run is."""
    try:
        said = [] if not run.has_influence else [_influence(run)]
        if run.account.is_there:
            said.append(described_account(run))
    except TracInError:
        said = [f"TracInRun in {run.path}"]
    return printable(" ".join(said))


def about_samples(run: TracInRun) -> str:
    """How many train samples and probes a run has of each language, and what its influence is.

    Example:
        Skipped: needs a run directory.

        >>> about_samples(run)  # doctest: +SKIP
        '30 train samples (de 10, en 20) x 12 probes (de 12), exact influence by training_step (mean)'
    """
    return (
        f"{len(run.train)} train samples ({counted(run.train)}) x {len(run.probes)} probes ({counted(run.probes)}), "
        f"{run.record.options.method_name} influence by {run.record.loss or 'a loss that is not checked yet'}"
    )


def as_html(run: TracInRun) -> str:
    """`described`, and the influence of each train language on each probe language, summed over all snapshots."""
    paragraph = f"<p>{escape(described(run))}</p>"
    names = max(len(set(table.language)) for table in (run.train, run.queries)) if run.has_influence else 0
    if not run.has_influence or run.is_large or not _complete(run) or names > _MOST:
        return paragraph
    table = run.reliance(cumulative=True, measure="sum", interval=NO_INTERVAL, snapshots=[len(run.snapshots) - 1])
    wide = table.pivot(index="probe_language", columns="train_language", values="value")
    said = f"Influence of the train samples of each language (columns) on each probe language (rows), {table['unit'].iloc[0]}:"
    return f"{paragraph}<p>{escape(said)}</p>{wide.to_html(float_format='{:.3g}'.format, escape=True)}"


def _influence(run: TracInRun) -> str:
    ready = sum(run.method.store(run.directory, snapshot).is_complete() for snapshot in run.snapshots)
    metric = run.record.options.preconditioner
    scaled = f", gradients preconditioned by {metric!r}" if metric not in (None, "auto") else ""
    return f"TracInRun in {run.path}: {about_samples(run)}{scaled}, at {ready} of {len(run.snapshots)} snapshots."


def _complete(run: TracInRun) -> bool:
    stores = [run.method.store(run.directory, snapshot) for snapshot in run.snapshots]
    return bool(stores) and all(store.is_complete() for store in stores)
