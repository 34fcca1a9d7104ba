"""What a run costs, told before it starts: disk, memory, and the time of a pass, timed on its first batches."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from humanize import naturalsize, precisedelta

from lightning_tracin.attribution.batching import Job, Target, batches_of, run_batch
from lightning_tracin.errors import TracInError, printable
from lightning_tracin.gradients import Capture, HeldBlock, ProbeBank
from lightning_tracin.storage.filesystem import free_bytes
from lightning_tracin.storage.sample_table import SampleTable


@dataclass(frozen=True)
class Cost:
    """Estimate for one snapshot's pass."""

    held_bytes: int  # of the probes' gradients in memory, at most
    seconds: float


@dataclass(frozen=True)
class Plan:
    """Sizes of a run, known before its fit starts."""

    train: SampleTable
    probes: SampleTable
    parameters: int  # number of scored parameters
    elements: int  # number of their elements
    coverage: Mapping[str, tuple[int, int]]  # rule -> parameters and elements that it covers
    kept: int | None  # how many of these the mask leaves; None: there is no mask
    weights_bytes: int  # of one snapshot on disk
    ingredients_bytes: int  # of one snapshot's ingredients (or features) on disk
    cost: Cost | None  # of one snapshot's pass; None where none is planned
    snapshots: int | None  # expected number; None where the fit's length is not known

    @property
    def bytes_needed(self) -> int:
        """On disk, for all snapshots (for one, where their number is not known)."""
        return (self.weights_bytes + self.ingredients_bytes) * (1 if self.snapshots is None else self.snapshots)

    def described(self, folder: Path) -> str:
        """The plan in one paragraph, for the terminal."""
        number = "an unknown number of" if self.snapshots is None else str(self.snapshots)
        by_rule = ", ".join(f"{rule} {elements:,}" for rule, (_, elements) in self.coverage.items())
        free = free_bytes(folder)
        total = "each" if self.snapshots is None else "in all" if free is None else f"in all, {naturalsize(free)} free"
        return printable(
            f"TracIn: {len(self.train)} train samples ({counted(self.train)}) x {len(self.probes)} probes "
            f"({counted(self.probes)}), scored over {self.elements:,} elements of {self.parameters} parameters (all that were "
            f"chosen: {by_rule}){self._described_mask()}; {number} snapshots in {folder}, weights "
            f"{naturalsize(self.weights_bytes)} and ingredients {naturalsize(self.ingredients_bytes)} each "
            f"({naturalsize(self.bytes_needed)} {total}){self._described_time()}."
        )

    def _described_mask(self) -> str:
        return "" if self.kept is None else f", of which the mask leaves {self.kept:,}"

    def _described_time(self) -> str:
        if self.cost is None:
            return ""
        seconds = self.cost.seconds
        times = "" if self.snapshots in (None, 1) else f", {_rounded(seconds * (self.snapshots or 1))} in all"
        held = f"holds {naturalsize(self.cost.held_bytes)} in memory and " if self.cost.held_bytes else ""
        return f"; influence {held}takes about {_rounded(seconds)} for a snapshot{times} (by the first batches)"

    def require_disk(self, folder: Path) -> None:
        """Refuse a disk that cannot hold the run.

        Raises:
            TracInError: it cannot.
        """
        free = free_bytes(folder)
        if free is not None and self.bytes_needed > free:
            raise TracInError(
                f"The disk of {folder} has {naturalsize(free)} free, but {self.snapshots or 1} snapshots need "
                f"{naturalsize(self.bytes_needed)}; take fewer of them (`every_n_epochs=...`), drop their weights "
                "(`when='snapshot', keep_snapshots=False`), or choose another `dirpath`."
            )


def counted(table: SampleTable) -> str:
    """The number of samples of each language, in words.

    Example:
        >>> counted(SampleTable(("de", "sw", "de"), (None,) * 3, ("",) * 3, (None,) * 3))
        'de 2, sw 1'
    """
    return ", ".join(f"{language} {count}" for language, count in table.counts().items())


def _rounded(seconds: float) -> str:
    """A duration in words; an estimate of minutes needs no seconds."""
    return precisedelta(max(1, seconds), minimum_unit="seconds" if seconds < 90 else "minutes", format="%.0f")


@dataclass(frozen=True)
class Pace:
    """Seconds that parts of the work take for one sample."""

    captured: float  # forward, backward and what the rules do
    written_out: float  # of a probe: its gradient held
    multiplied: float  # of a train sample, for each probe: their product

    def seconds(self, job: Job, passes: int, probes: int, probe_passes: int = 1) -> float:
        """Of one snapshot's pass on this rank.

        Args:
            job: samples and ranks.
            passes: how often the train samples go through the model.
            probes: how many probes (or sums of probes) they are multiplied with each time.
            probe_passes: how often the probes go through the model.
        """
        of_probes = len(job.probes) * (self.captured * probe_passes + self.written_out)
        return of_probes + passes * len(job.train) / job.ranks * (self.captured + self.multiplied * probes)


def measured_pace(target: Target, job: Job) -> Pace:
    """The pace of some batches of middle length, after one that is not timed."""
    probes, train = (batches_of(samples, job.batch_size) for samples in (job.probes, job.train))
    some_probes, some_train = probes[len(probes) // 2], train[len(train) // 2]
    bank = ProbeBank(len(some_probes), target.parts.of, len(target.parts), target.scales)
    with Capture(target.model, target.coverage) as capture:
        for _ in range(2):  # the first one warms up
            held = HeldBlock(job.held_bytes)
            start = time.perf_counter()
            run_batch(capture, job, job.train, some_train, held.add, "train sample", target.name)
            captured = (time.perf_counter() - start) / len(some_train)
        start = time.perf_counter()
        run_batch(capture, job, job.probes, some_probes, lambda name, forms: bank.collect(name, forms, 0), "probe", target.name)
        bank.seal()
        collected = (time.perf_counter() - start) / len(some_probes)
        dot = torch.zeros(len(target.parts), len(some_train), bank.probes, device=bank.squared_norms.device)
        start = time.perf_counter()
        held.contract(bank, dot.to(bank.squared_norms), dot[:, :, 0].to(bank.squared_norms))
        products = (time.perf_counter() - start) / len(some_train) / bank.probes
    return Pace(captured, max(0.0, collected - captured), products)
