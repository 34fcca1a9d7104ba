"""The results of a run of the benchmarks, and their two files: `results.json` for checks, `report.json` for readers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from benchmarks.timing import Spread

RESULTS, REPORT = "results.json", "report.json"


@dataclass(frozen=True)
class Result:
    """One figure that has a target."""

    name: str
    value: float
    low: float
    high: float
    runs: int
    unit: str


@dataclass(frozen=True)
class Comparison:
    """A peer on a workload: its times, or why there are none."""

    workload: str
    peer: str
    version: str
    settings: str
    note: str  # how its scores compare with ours, or why there are none
    batch_size: int | None = None
    ours: Spread | None = None  # seconds
    theirs: Spread | None = None  # seconds
    ratio: Spread | None = None  # theirs over ours


@dataclass(frozen=True)
class Growth:
    """Time before and after something doubled."""

    what: str
    before: float  # seconds
    after: float  # seconds
    ratio: Spread


@dataclass(frozen=True)
class Limit:
    """How near a way of computing is to its matrix products alone."""

    what: str
    multiplications: float
    alone: float  # seconds of its products alone
    whole: float  # seconds
    of_plain: float  # multiplications over those of a plain forward and backward
    moved: float = 0.0  # bytes of its products' factors and results
    phases: dict[str, float] = field(default_factory=dict)  # seconds of each phase


@dataclass(frozen=True)
class Machine:
    """The machine that the figures were measured on."""

    date: str
    cores: int
    threads: int
    memory_gib: float
    device: str
    versions: dict[str, str]
    processor: str = ""  # empty in reports that did not record it


@dataclass(frozen=True)
class Elsewhere:
    """What was measured on another processor."""

    processor: str
    date: str
    results: tuple[Result, ...]


@dataclass(frozen=True)
class Report:
    """The results of all measurements."""

    results: tuple[Result, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    growth: tuple[Growth, ...] = ()
    limits: tuple[Limit, ...] = ()
    notes: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()  # measurements that failed
    machine: Machine | None = None
    elsewhere: tuple[Elsewhere, ...] = ()  # one for each other processor


def ratio_result(name: str, ratio: Spread) -> Result:
    """A ratio as a figure that has a target."""
    return Result(name, ratio.value, ratio.low, ratio.high, ratio.runs, "ratio")


def joined(reports: Iterable[Report], machine: Machine, elsewhere: tuple[Elsewhere, ...] = ()) -> Report:
    """All results of one run, beside what was measured elsewhere."""
    every = tuple(reports)
    return Report(
        tuple(result for one in every for result in one.results),
        tuple(comparison for one in every for comparison in one.comparisons),
        tuple(growth for one in every for growth in one.growth),
        tuple(limit for one in every for limit in one.limits),
        tuple(note for one in every for note in one.notes),
        tuple(failure for one in every for failure in one.failures),
        machine,
        elsewhere,
    )


def kept(before: Report, processor: str) -> tuple[Elsewhere, ...]:
    """What a new run on this processor keeps of the report that it replaces: the results of every other processor."""
    found = [one for one in before.elsewhere if one.processor != processor]
    if before.machine is not None and before.machine.processor != processor:
        found = [one for one in found if one.processor != before.machine.processor]
        found.append(Elsewhere(before.machine.processor, before.machine.date, before.results))
    return tuple(found)


def write(report: Report, folder: Path) -> None:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    results = [asdict(result) for result in report.results]
    (folder / RESULTS).write_text(json.dumps(results, indent=1) + "\n")
    (folder / REPORT).write_text(json.dumps(asdict(report), indent=1) + "\n")


def read(folder: Path) -> Report:
    """The report that `write` wrote.

    Raises:
        pydantic.ValidationError: the file is not such a report.
    """
    return TypeAdapter(Report).validate_json((folder / REPORT).read_bytes())
