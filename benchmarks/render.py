"""The results as tables: on the terminal, and as the page `docs/benchmarks.md`."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

from rich.box import MARKDOWN, SIMPLE_HEAD, Box
from rich.console import Console
from rich.table import Table

from benchmarks.report import Report
from benchmarks.timing import Spread


@dataclass(frozen=True)
class Target:
    """What a figure should reach."""

    meaning: str
    bound: float
    goal: float
    at_most: bool = False

    def verdict(self, value: float) -> str:
        """How a value compares with the target."""
        sign = -1 if self.at_most else 1
        if sign * value >= sign * self.goal:
            return "goal"
        return "yes" if sign * value >= sign * self.bound else "no"


#: All figures that have a target, in the order of the table.
TARGETS = {
    "exact_vs_dattri_llm": Target("dattri-llm's TracIn, time over ours", 3.5, 6),
    "exact_vs_captum": Target("captum's exact path, time over ours", 7, 12),
    "exact_vs_kronfluence": Target("kronfluence identity, Linear layers on both sides, time over ours", 1.5, 3),
    "exact_vs_bergson": Target("bergson on a causal LM, inner Linear weights on both sides, time over ours", 1.2, 2),
    "exact_vs_plain": Target("exact pass, probes included, over a plain forward and backward", 2.5, 1.8, True),
    "spot_check_vs_pass": Target("check of what a pass has stored, over the pass", 0.01, 0.005, True),
    "watched_loss_vs_pass": Target("pass whose training step is watched batch by batch, over the pass", 1.03, 1.0, True),
    "checks_vs_pass": Target("pass with all that is checked in it and at its snapshot, over the pass without", 1.03, 1.0, True),
    "adam_vs_exact": Target("exact pass in Adam's metric over the plain one", 1.0, 1.0, True),
    "means_vs_plain": Target("train side of the language means over a plain pass", 1.3, 1.0, True),
    "projected_vs_plain": Target("train side of the projected pass over a plain pass", 0.9, 0.7, True),
    "projected_spearman": Target("rank correlation of projected with exact cosine", 0.98, 0.99),
    "projected_top100_overlap": Target("overlap of the top 100, projected with exact", 0.90, 0.95),
    "peak_memory": Target("peak memory of the pass over model + a step's activations + budget", 1.2, 1.0, True),
    "fit_overhead": Target('fit with when="never" over fit without the callback', 1.02, 1.0, True),
    "refits_vs_ideal": Target("8 refits on all cores over 8 times one on one core, by the number of cores", 1.15, 1.0, True),
    "account_vs_fit": Target("fit with all its contributions, probes included, over the fit without", 1.8, 1.6, True),
    "account_8th_vs_fit": Target("the same with one of eight steps accounted", 1.3, 1.15, True),
    "account_memory": Target("memory of an account's vectors over what is announced before the fit", 1.1, 1.0, True),
}


#: What stands for the processor of a report that did not record it.
NOT_RECORDED = "a processor that was not recorded"


def tables(report: Report, box: Box) -> Iterator[tuple[str, Table]]:
    """The report's tables with their titles."""
    yield "Targets", _targets(report, box)
    if report.comparisons:
        yield "Peers: ratios are median (lowest to highest; runs)", _comparisons(report, box)
    if report.growth:
        yield "Growth: time when one thing doubles", _growth(report, box)
    if report.elsewhere:
        yield "The same figures on other processors", _elsewhere(report, box)
    if report.limits:
        yield "Limits: each way against its own matrix products, timed alone", _limits(report, box)
    if any(one.phases for one in report.limits):
        yield "Seconds by phase, timed with a profiler", _phases(report, box)


def show(report: Report, console: Console) -> None:
    """Print the tables with the notes below them."""
    for title, table in tables(report, SIMPLE_HEAD):
        table.title, table.title_justify = title, "left"
        console.print(table)
    for note in notes(report):
        console.print(f"- {note}", highlight=False)


def page(report: Report) -> str:
    """The page of documentation, as Markdown."""
    parts = [
        "# Benchmarks",
        "Written by `make bench`; do not edit. Each ratio is of two runs that were timed one after the other.",
    ]
    if report.machine is not None:
        machine = report.machine
        versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
        parts.append(
            f"Measured on {machine.date}: {machine.processor or NOT_RECORDED}, {machine.cores} cores, {machine.threads} threads, "
            f"{machine.memory_gib:.0f} GiB of memory, {machine.device}; {versions}."
        )
    for title, table in tables(report, MARKDOWN):
        parts += [f"## {title}", markdown(table)]
    parts += ["## Notes", "\n".join(f"- {note}" for note in notes(report))]
    return "\n\n".join(parts) + "\n"


def notes(report: Report) -> Iterator[str]:
    """The report's notes, and the figures that are missing."""
    for failure in report.failures:
        yield f"Failed: {failure}"
    yield from report.notes
    found = {result.name for result in report.results}
    missing = [name for name in TARGETS if name not in found]
    if missing:
        yield f"Not measured in this run: {', '.join(missing)}."
    settings = {comparison.peer: comparison.settings for comparison in report.comparisons}
    for peer, setting in settings.items():
        yield f"{peer}: {setting}."


def _targets(report: Report, box: Box) -> Table:
    table = Table("figure", "what", "value", "low to high", "runs", "at least", "goal", "reached", box=box)
    for name, target in TARGETS.items():
        for result in (result for result in report.results if result.name == name):
            word = "at most" if target.at_most else "at least"
            table.add_row(
                name,
                target.meaning,
                f"{result.value:.2f}",
                f"{result.low:.2f} to {result.high:.2f}",
                str(result.runs),
                f"{word} {target.bound:g}",
                f"{target.goal:g}",
                target.verdict(result.value),
            )
    return table


def _comparisons(report: Report, box: Box) -> Table:
    table = Table("workload", "peer", "its batch", "ours, s", "peer, s", "peer / ours", "its scores", box=box)
    for one in report.comparisons:
        table.add_row(
            one.workload,
            f"{one.peer} ({one.version or '-'})",
            "-" if one.batch_size is None else str(one.batch_size),
            seconds_cell(one.ours),
            seconds_cell(one.theirs),
            ratio_cell(one.ratio),
            one.note,
        )
    return table


def _growth(report: Report, box: Box) -> Table:
    table = Table("doubled", "before, s", "after, s", "after / before", box=box)
    for one in report.growth:
        table.add_row(one.what, f"{one.before:.2f}", f"{one.after:.2f}", ratio_cell(one.ratio))
    return table


def _limits(report: Report, box: Box) -> Table:
    columns = ("way", "billion multiplications", "of plain", "GB moved", "products alone, s", "whole, s", "of the limit")
    table = Table(*columns, box=box)
    for one in report.limits:
        table.add_row(
            one.what,
            f"{one.multiplications / 1e9:.0f}",
            f"{one.of_plain:.2f}",
            f"{one.moved / 1e9:.1f}",
            f"{one.alone:.2f}",
            f"{one.whole:.2f}",
            f"{one.alone / one.whole:.0%}",
        )
    return table


def _phases(report: Report, box: Box) -> Table:
    names = list(dict.fromkeys(name for one in report.limits for name in one.phases))
    table = Table("way", *names, box=box)
    for one in report.limits:
        table.add_row(one.what, *(f"{one.phases.get(name, 0):.2f}" for name in names))
    return table


def _elsewhere(report: Report, box: Box) -> Table:
    here = "" if report.machine is None else report.machine.processor
    others = [(one.processor, one.date, {result.name: result for result in one.results}) for one in report.elsewhere]
    now = {result.name: result for result in report.results}
    heads = [f"{processor or NOT_RECORDED} ({date})" for processor, date, _ in others]
    table = Table("figure", here or NOT_RECORDED, *heads, box=box)
    for name in TARGETS:
        row = [found.get(name) for found in (now, *(found for _, _, found in others))]
        if any(row):
            table.add_row(name, *("-" if result is None else f"{result.value:.2f}" for result in row))
    return table


def seconds_cell(spread: Spread | None) -> str:
    """Seconds as a cell of a table."""
    return "-" if spread is None else f"{spread.value:.2f}"


def ratio_cell(spread: Spread | None) -> str:
    """A ratio with its spread and number of runs as a cell of a table."""
    return "-" if spread is None else f"{spread.value:.2f} ({spread.low:.2f} to {spread.high:.2f}; {spread.runs})"


def markdown(table: Table) -> str:
    """A table as Markdown."""
    console = Console(file=io.StringIO(), width=10_000, highlight=False, markup=False, emoji=False)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.strip() for line in console.file.getvalue().strip().splitlines())
