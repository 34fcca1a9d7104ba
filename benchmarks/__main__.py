"""Measure, print the tables, and write `results.json`, `report.json` and the page of documentation.

`make bench` runs everything in an environment that has the peers. `python -m benchmarks --only exact_vs_plain --repetitions 3`
runs one measurement and writes nothing unless `--output` is given.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")  # before anything imports it: peers show bars

import psutil
import torch
from rich.console import Console

from benchmarks import render
from benchmarks.contenders import version_of
from benchmarks.processor import processor_name
from benchmarks.registry import Context, Measurement, chosen, names
from benchmarks.report import REPORT, Machine, Report, joined, kept, read, write

_HERE = Path(__file__).parent
_PAGE = _HERE.parent / "docs" / "benchmarks.md"
_VERSIONS = ("lightning-tracin", "torch", "transformers", "pytorch-lightning", "captum", "dattri-llm", "kronfluence", "bergson")


@contextmanager
def _without_information() -> Iterator[None]:
    """Silence the libraries' progress messages: peers set their own loggers' levels."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


@_without_information()
def main() -> None:
    settings = _settings()
    console = Console() if sys.stdout.isatty() else Console(width=160)
    if settings.list:
        console.print("\n".join(names()))
        return
    if settings.render:
        _PAGE.write_text(render.page(read(_HERE)))
        return
    torch.set_num_threads(settings.threads)
    context = Context(settings.repetitions, settings.patience, settings.scale)
    folder = settings.output or (None if settings.only else _HERE)
    here = machine(settings.threads)
    others = kept(read(folder), here.processor) if folder is not None and (folder / REPORT).exists() else ()
    reports: list[Report] = []
    try:
        measurements = chosen(settings.only)
    except ValueError as error:
        sys.exit(str(error))
    for measure in measurements:
        start = time.perf_counter()
        console.print(f"{measure.__name__} ...", end=" ")
        reports.append(_measured(measure, context))
        console.print(f"{time.perf_counter() - start:.0f} s", highlight=False)
        if folder is not None:  # so that these results are kept if a later measurement crashes the process
            write(joined(reports, here, others), folder)
    report = joined(reports, here, others)
    render.show(report, console)
    if folder == _HERE:
        _PAGE.write_text(render.page(report))
    if any(report.failures for report in reports):
        sys.exit(1)


def _measured(measure: Measurement, context: Context) -> Report:
    """The results of a measurement; a failure becomes a line of the report, and the next measurement still runs."""
    try:
        return measure(context)
    except Exception as error:
        traceback.print_exc()
        return Report(failures=(f"{measure.__name__}: {type(error).__name__}: {error}",))


def machine(threads: int) -> Machine:
    """What the figures are measured on."""
    return Machine(
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        cores=psutil.cpu_count() or 0,
        threads=threads,
        memory_gib=psutil.virtual_memory().total / 2**30,
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device",
        versions={name: version_of(name) or "not installed" for name in _VERSIONS},
        processor=processor_name(),
    )


def _settings() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="measure only these")
    parser.add_argument("--list", action="store_true", help="list the measurements")
    parser.add_argument("--render", action="store_true", help="write the page again from the last report")
    parser.add_argument("--repetitions", type=int, default=5, help="pairs of runs of each comparison")
    parser.add_argument("--patience", type=float, default=60, help="seconds of one comparison after which three pairs are enough")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--scale", type=float, default=1, help="fraction of the samples, for a quick look")
    parser.add_argument("--output", type=Path, help="folder for results.json and report.json; the page is not written")
    return parser.parse_args()


if __name__ == "__main__":
    main()
