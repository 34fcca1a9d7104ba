"""What the command line says of a run: tables as text, and all of them as files."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Literal

import pandas as pd
from humanize import naturalsize

from lightning_tracin.attribution.spot_check import described as described_check
from lightning_tracin.config import Measure, Sign, Similarity, Weighting
from lightning_tracin.errors import one_line, printable
from lightning_tracin.reporting.findings import study_of
from lightning_tracin.reporting.results import analyse
from lightning_tracin.run import TracInRun
from lightning_tracin.storage.files import as_utf8, write_bytes
from lightning_tracin.storage.filesystem import place
from lightning_tracin.storage.sample_table import SampleTable
from lightning_tracin.storage.snapshots import Snapshot

Output = Literal["table", "csv", "json"]
Format = Literal["csv", "parquet"]

#: What is said where a run is read shard by shard.
_LEFT_OUT = " The run is too large for its experiments (compared, changes, reinforcement), which need all influence at once."

#: Letters of a text that a table shows.
_WIDTH = 60


def attribute(
    run: str, config: Path, accelerator: str | None = None, devices: int | None = None, mask: Path | None = None
) -> str:
    """Compute what is missing of a run whose fit a LightningCLI file describes.

    Args:
        run: the run directory.
        config: the LightningCLI's YAML file, with the class paths of model and data.
        accelerator: in place of the file's.
        devices: in place of the file's.
        mask: file of the mask, in place of the file's.
    """
    from lightning_tracin.cli.lightning_config import attribute_from_config  # reading a run needs neither Lightning nor a model

    leads = attribute_from_config(run, config, accelerator, devices, mask)
    return status(run) if leads else ""


def status(run: str) -> str:
    """What a run holds, and what is missing of it.

    Args:
        run: the run directory.
    """
    opened = TracInRun.open(run)
    record, directory = opened.record, opened.directory
    table = pd.DataFrame([_about(opened, snapshot) for snapshot in opened.snapshots])
    missing = [str(index) for index, state in zip(table["snapshot"], table["attributed"], strict=True) if state != "yes"]
    lines = [
        f"Run {record.run} in {directory.path}: {len(opened.train)} train samples ({_counted(opened.train)}) x "
        f"{len(opened.probes)} probes ({_counted(opened.probes)}), {record.options.method_name} influence by {record.loss}, "
        f"{record.elements:,} elements of {record.parameters} parameters.",
        "",
        _as_table(table) if len(table) else "There are no snapshots: the fit ended before the first one was taken.",
        "",
    ]
    if missing:
        lines.append(f"Missing: the attribution of snapshot {', '.join(missing)} (`lightning-tracin attribute` computes it).")
    elif len(table) and not (directory.results / "reliance.csv").exists():
        lines.append("Missing: the results (`lightning-tracin attribute` writes them).")
    elif len(table):
        lines.append(f"Nothing is missing; the results are in {directory.results}.")
    return printable("\n".join(lines))


def reliance(
    run: str,
    k: int | None = None,
    sign: Sign = "positive",
    cumulative: bool = False,
    measure: Measure | None = None,
    similarity: Similarity | None = None,
    weighting: Weighting | None = None,
    snapshots: list[int] | None = None,
    by: Literal["layer"] | None = None,
    output: Output = "table",
) -> str:
    """Reliance of every probe language on every train language.

    Args:
        run: the run directory.
        k: how many of the strongest train samples of a probe count; default: as the run was made.
        sign: proponents or opponents.
        cumulative: use the influence summed up to each snapshot.
        measure: share of the top k, mass (share of all influence of that sign), or mean influence of a sample.
        similarity: of the scores; default: as the run was made.
        weighting: of the scores; default: as the run was made.
        snapshots: indices of those to show; default: all.
        by: a table for each layer alone.
        output: how it is printed.
    """
    opened = TracInRun.open(run)
    options = opened.record.options
    table = opened.reliance(
        options.top_k if k is None else k,
        sign,
        cumulative,
        measure or opened.method.measure,
        similarity or options.similarity,
        weighting or options.weighting,
        snapshots,
        by=by,
    )
    return _printed(table, output)


def top(
    run: str,
    probe: int,
    k: int = 10,
    sign: Sign = "positive",
    similarity: Similarity | None = None,
    weighting: Weighting | None = None,
    snapshots: list[int] | None = None,
    output: Output = "table",
) -> str:
    """The strongest train samples of one probe, with their texts.

    Args:
        run: the run directory.
        probe: index of the probe (of its language in alphabetical order, where the run holds language means).
        k: how many.
        sign: proponents or opponents.
        similarity: of the scores; default: as the run was made.
        weighting: of the scores; default: as the run was made.
        snapshots: indices of those to sum; default: all.
        output: how it is printed.
    """
    opened = TracInRun.open(run)
    options = opened.record.options
    table = opened.top(probe, k, sign, similarity or options.similarity, weighting or options.weighting, snapshots)
    said = _printed(table, output)
    if output != "table":
        return said
    (about,) = opened.queries.take([probe]).rows()
    return printable(f"Probe {probe} ({about['language']}): {one_line(str(about['text']))}\n\n") + said


def export(run: str, folder: str, format: Format = "csv", k: int | None = None) -> str:
    """Write all tables of a run into a folder.

    Args:
        run: the run directory.
        folder: where the files go.
        format: of the files.
        k: how many of the strongest train samples of a probe count; default: as the run was made.
    """
    opened = TracInRun.open(run)
    written = []
    for name, table in _tables(opened, k):
        path = place(folder) / f"{name}.{format}"
        if format == "csv":
            content = as_utf8(table.to_csv(index=False))
        else:
            buffer = BytesIO()
            table.to_parquet(buffer, index=False)
            content = buffer.getvalue()
        write_bytes(path, content)
        written.append(path.name)
    left_out = _LEFT_OUT if opened.is_large else ""
    return printable(f"Written to {folder}: {', '.join(written)}.{left_out}")


def _tables(run: TracInRun, k: int | None) -> Iterator[tuple[str, pd.DataFrame]]:
    """All tables of a run by name."""
    view = run.record.options.view(run.method.measure).but(top_k=k)
    yield "snapshots", pd.DataFrame([_about(run, snapshot) for snapshot in run.snapshots])
    yield "train", pd.DataFrame(run.train.rows())
    yield "probes", pd.DataFrame(run.probes.rows())
    results = analyse(run, view)
    yield "reliance", results.reliance
    yield "top", results.top
    if view.measure == "share" and not run.is_large:  # the experiments need all influence at once
        study = study_of(run, view, run.representations)
        for name in ("compared", "changes", "reinforcement"):
            table = getattr(study, name)
            if table is not None:
                yield name, table


def _about(run: TracInRun, snapshot: Snapshot) -> dict[str, object]:
    """One snapshot's line."""
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


def _counted(table: SampleTable) -> str:
    return ", ".join(f"{language} {count}" for language, count in table.counts().items())


def _printed(table: pd.DataFrame, output: Output) -> str:
    """A table for a terminal or a pipe, without what would act on the terminal."""
    plain = table.map(lambda value: one_line(value) if isinstance(value, str) else value)
    if output == "csv":
        return str(plain.to_csv(index=False)).rstrip("\n")
    if output == "json":
        return str(plain.to_json(orient="records", force_ascii=False, indent=1))
    return _as_table(plain)


def _as_table(table: pd.DataFrame) -> str:
    with pd.option_context("display.max_colwidth", _WIDTH):
        return str(table.to_string(index=False, float_format="{:.4g}".format, na_rep="-"))
