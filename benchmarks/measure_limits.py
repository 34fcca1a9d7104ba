"""How near each way of computing is to what this machine can do: its matrix products alone, over the whole of it."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import ours
from benchmarks.measure_ways import means_side, projected_side
from benchmarks.plain import plain_pass
from benchmarks.products_alone import products_alone
from benchmarks.registry import Context, measurement
from benchmarks.report import Limit, Report
from benchmarks.timing import seconds
from benchmarks.workloads import reference

#: Side of a square product, and bytes of a copy: large enough that a machine shows its best.
_SIDE, _COPIED = 2048, 1 << 28


@measurement("limits")
def limits(context: Context) -> Report:
    """Multiplications and seconds of each way on the reference workload, with this machine's own limits."""
    workload = reference().scaled(context.scale)
    job = ours.job_of(workload)
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, Callable[[], object]] = {
            "plain forward and backward": lambda: plain_pass(workload.model, job),
            "exact, probes included": lambda: ours.exact(workload),
            "language means, train side": means_side(workload),
            "projected, train side": projected_side(workload, Path(folder)),
        }
        found = []
        for name, work in ways.items():
            with torch.enable_grad():
                work()  # warm-up
                alone = products_alone(work)
                whole = statistics.median(seconds(work) for _ in range(context.repetitions))
            found.append(Limit(name, alone.multiplications, alone.seconds, whole, 0.0))
    plain = found[0].multiplications
    return Report(limits=tuple(replace(one, of_plain=one.multiplications / plain) for one in found), notes=(_machine(context),))


def _machine(context: Context) -> str:
    one, other = torch.rand(_SIDE, _SIDE), torch.rand(_SIDE, _SIDE)
    held = torch.zeros(_COPIED // 4)
    product = statistics.median(seconds(lambda: one @ other) for _ in range(context.repetitions))
    copy = statistics.median(seconds(lambda: held.clone()) for _ in range(context.repetitions))
    return (
        f"This machine multiplies {_SIDE**3 / product / 1e9:.0f} billion numbers a second ({_SIDE} x {_SIDE} in single "
        f"precision) and copies {_COPIED / copy / 1e9:.1f} GB a second."
    )
