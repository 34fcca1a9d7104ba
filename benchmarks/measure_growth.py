"""How the time of the exact pass grows when the train samples, the probes or the snapshots double."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import ours
from benchmarks.registry import Context, measurement
from benchmarks.report import Growth, Report
from benchmarks.timing import interleaved
from benchmarks.workloads import reference
from lightning_tracin.storage.snapshots import trainable_names, weights_of

#: From so many train samples on, what a pass takes once (the probes, the files) is a small part of it.
_TRAIN, _PROBES = 512, 32


@measurement("growth")
def growth(context: Context) -> Report:
    """Each is doubled alone, starting from half of the reference workload and one snapshot."""
    doubled = reference(2 * _TRAIN, 2 * _PROBES).scaled(context.scale)
    train, probes = len(doubled.train) // 2, len(doubled.probes) // 2
    weights = weights_of(doubled.model, trainable_names(doubled.model))

    def run(train: int, probes: int, snapshots: int) -> Callable[[], None]:
        workload = doubled.smaller(train, probes)
        return lambda: ours.exact_over_snapshots(workload, [weights] * snapshots)

    before = run(train, probes, 1)
    before()  # warm-up
    cases = {
        f"train samples, {train} to {2 * train}": run(2 * train, probes, 1),
        f"probes, {probes} to {2 * probes}": run(train, 2 * probes, 1),
        "snapshots, 1 to 2": run(train, probes, 2),
    }
    return Report(growth=tuple(_grown(context, what, before, after) for what, after in cases.items()))


def _grown(context: Context, what: str, before: Callable[[], None], after: Callable[[], None]) -> Growth:
    after()  # warm-up
    pairs = interleaved(before, after, context.repetitions, context.patience / 2)
    ratio = pairs.theirs_over_ours
    return Growth(what, sorted(pairs.ours)[len(pairs.ours) // 2], sorted(pairs.theirs)[len(pairs.theirs) // 2], ratio)
