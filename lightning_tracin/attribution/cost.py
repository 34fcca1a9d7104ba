"""Cost of a run, estimated before it starts: disk, memory, and the time of a pass, measured on a few batches."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from humanize import naturalsize, precisedelta

from lightning_tracin.attribution.batching import Job, Target, batches_of, run_batch
from lightning_tracin.config import LossUnit
from lightning_tracin.errors import TracInError, printable
from lightning_tracin.gradients import Capture, Coverage, HeldBlock, ProbeBank
from lightning_tracin.storage.filesystem import free_bytes
from lightning_tracin.storage.sample_table import SampleTable

#: What the loss of one sample is, in words.
_UNITS = {"sample": "as each sample has it alone", "token": "summed over what each token of a sample weighs"}


@dataclass(frozen=True)
class Cost:
    """Estimated cost of one pass."""

    held_bytes: int  # most memory that the probes' gradients take
    seconds: float
    alone: float = 0.0  # part of the time in the model that goes to parameters whose samples no batch separates
    captured: float = 0.0  # seconds of a sample in the model, forward and backward
    working_bytes: int = 0  # most memory that products take for a moment, if it is known


@dataclass(frozen=True)
class Plan:
    """Size and cost of a run, estimated before its fit."""

    train: SampleTable
    probes: SampleTable
    coverage: Coverage  # of the scored parameters
    loss: str  # name of the loss
    unit: LossUnit  # what the loss of one sample is
    deviation: float | None  # see `Setup`
    kept: int | None  # number of their elements that the mask keeps; None: no mask
    weights_bytes: int  # one snapshot's weights on disk
    ingredients_bytes: int  # one snapshot's ingredients (or features) on disk
    cost: Cost | None  # of one pass; None if none is planned
    snapshots: int | None  # expected number; None if the fit's length is unknown

    @property
    def bytes_needed(self) -> int:
        """Disk space for all snapshots (for one, if their number is unknown)."""
        return self.bytes_of_one * (1 if self.snapshots is None else self.snapshots)

    def described(self, folder: Path) -> str:
        """The plan as one paragraph, for the terminal."""
        coverage, cost = self.coverage, self.cost
        number = "an unknown number of" if self.snapshots is None else str(self.snapshots)
        by_rule = ", ".join(f"{rule} {elements:,}" for rule, (_, elements) in coverage.by_rule.items())
        free = free_bytes(folder)
        total = "each" if self.snapshots is None else "in all" if free is None else f"in all, {naturalsize(free)} free"
        mask = "" if self.kept is None else f", of which the mask leaves {self.kept:,}"
        checked = "" if self.deviation is None else f", whose batches differ from their samples alone by {self.deviation:.0e}"
        time_needed = ""
        if cost is not None:
            times = "" if self.snapshots in (None, 1) else f", {_rounded(cost.seconds * (self.snapshots or 1))} in all"
            working = f" (products work with {naturalsize(cost.working_bytes)} at most)" if cost.working_bytes else ""
            held = f"holds {naturalsize(cost.held_bytes)} in memory{working} and " if cost.held_bytes else ""
            time_needed = f"; influence {held}takes about {_rounded(cost.seconds)} for a snapshot{times} (by the first batches)"
        return printable(
            f"TracIn: {len(self.train)} train samples ({counted(self.train)}) x {len(self.probes)} probes "
            f"({counted(self.probes)}), scored over {coverage.total:,} elements of {len(coverage.elements)} parameters (all that "
            f"were chosen: {by_rule}){mask}; the loss is {self.loss}, "
            f"{_UNITS[self.unit]} (loss_unit={self.unit!r}){checked}; "
            f"{number} snapshots in {folder}, weights {naturalsize(self.weights_bytes)} and "
            f"ingredients {naturalsize(self.ingredients_bytes)} each ({naturalsize(self.bytes_needed)} {total}){time_needed}."
            f"{self._alone}"
        )

    @property
    def _alone(self) -> str:
        names = sorted(self.coverage.decisions.one_by_one)
        if not names:
            return ""
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        share = "" if self.cost is None else f" and take {self.cost.alone:.0%} of the time in the model"
        return (
            f" {', '.join(names[:3])}{more} are computed one sample at a time{share}: they are used in a way (without calling "
            "their module, for example) in which no batch tells its samples apart."
        )

    @property
    def bytes_of_one(self) -> int:
        """On disk, for one snapshot and what is computed from it."""
        return self.weights_bytes + self.ingredients_bytes

    def require_disk(self, folder: Path) -> str | None:
        """Check that snapshots fit on the disk.

        Returns:
            A warning if only some of them fit: a fit may end before it reaches its last epoch.

        Raises:
            TracInError: not even one fits.
        """
        free = free_bytes(folder)
        if free is None or self.bytes_needed <= free:
            return None
        each = naturalsize(self.bytes_of_one)
        remedy = (
            "take fewer snapshots (`every_n_epochs=...`), drop their weights (`when='snapshot', keep_snapshots=False`), or "
            "choose another `dirpath`"
        )
        if self.bytes_of_one > free:
            raise TracInError(f"The disk of {folder} has {naturalsize(free)} free, but one snapshot needs {each}; {remedy}.")
        return (
            f"The disk of {folder} has {naturalsize(free)} free, which is enough for {free // self.bytes_of_one} of "
            f"{self.snapshots} snapshots ({each} each). A fit that goes on for longer is not covered to its end; to cover it, "
            f"{remedy}."
        )


def counted(table: SampleTable) -> str:
    """The number of samples of each language, in words.

    Example:
        >>> counted(SampleTable(("de", "sw", "de"), (None,) * 3, ("",) * 3, (None,) * 3))
        'de 2, sw 1'
    """
    return ", ".join(f"{language} {count}" for language, count in table.counts().items())


def _rounded(seconds: float) -> str:
    """A duration in words, without seconds from 90 seconds on."""
    return precisedelta(max(1, seconds), minimum_unit="seconds" if seconds < 90 else "minutes", format="%.0f")


@dataclass(frozen=True)
class Pace:
    """Seconds per sample of the parts of a pass.

    Example:
        >>> import types
        >>> job = types.SimpleNamespace(train=range(1000), probes=range(10), ranks=2)
        >>> Pace(captured=0.01, alone=0.0, collected=0.02, multiplied=0.001).seconds(job, passes=1, probes=10)
        10.3
    """

    captured: float  # forward, backward and the layer rules
    alone: float  # the part of this for parameters that are computed one sample at a time, between 0 and 1
    collected: float  # of a probe: storing its gradient in the bank
    multiplied: float  # of a train sample and a probe: their product

    def seconds(self, job: Job, passes: int, probes: int, probe_passes: int = 1) -> float:
        """Duration of one snapshot on this rank.

        Args:
            job: samples and ranks.
            passes: how often the train samples go through the model.
            probes: number of probes (or sums of probes) in each of these passes.
            probe_passes: how often the probes go through the model.
        """
        of_probes = len(job.probes) * (self.captured * probe_passes + self.collected)
        return of_probes + passes * len(job.train) / job.ranks * (self.captured + self.multiplied * probes)


def measured_pace(target: Target, job: Job) -> Pace:
    """Measure the pace on batches of medium length, after a warm-up."""
    probes, train = (batches_of(samples, job.batch_size) for samples in (job.probes, job.train))
    some_probes, some_train = probes[len(probes) // 2], train[len(train) // 2]
    bank = ProbeBank(len(some_probes), target.parts.of, len(target.parts), target.scales)
    with Capture(target.model, target.coverage) as capture:
        for _ in range(2):  # the first one warms up
            held = HeldBlock(job.held_bytes)
            start, alone = time.perf_counter(), capture.seconds_alone
            run_batch(capture, job, job.train, some_train, held.add, job.train_kind, target.name)
            captured = (time.perf_counter() - start) / len(some_train)
            alone = (capture.seconds_alone - alone) / len(some_train)
        start = time.perf_counter()
        run_batch(capture, job, job.probes, some_probes, lambda name, forms: bank.collect(name, forms, 0), "probe", target.name)
        bank.seal()
        collected = (time.perf_counter() - start) / len(some_probes)
        dot = torch.zeros(len(target.parts), len(some_train), bank.probes, device=bank.squared_norms.device)
        start = time.perf_counter()
        held.contract(bank, dot.to(bank.squared_norms), dot[:, :, 0].to(bank.squared_norms))
        products = (time.perf_counter() - start) / len(some_train) / bank.probes
    return Pace(captured, alone / captured, max(0.0, collected - captured), products)
