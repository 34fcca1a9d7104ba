"""How long a pass will take, from its first batches."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from lightning_tracin.attribution.batching import Job, Target, batches_of, run_batch
from lightning_tracin.gradients import Capture, HeldBlock, ProbeBank


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


def in_words(seconds: float) -> str:
    """A duration, readable: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
