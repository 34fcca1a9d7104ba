"""How near each way of computing is to what this machine can do: its matrix products alone, over the whole of it."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import ours
from benchmarks.measure_ways import means_side, projected_side
from benchmarks.phases import seconds_by_phase
from benchmarks.plain import plain_pass
from benchmarks.products_alone import products_alone
from benchmarks.registry import Context, measurement
from benchmarks.report import Limit, Report
from benchmarks.timing import seconds
from benchmarks.workloads import Workload, reference
from lightning_tracin.attribution.batching import Job

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
                phases = seconds_by_phase(work)
            found.append(Limit(name, alone.multiplications, alone.seconds, whole, 0.0, alone.moved, phases))
    plain = found[0].multiplications
    notes = (_by_hand(workload, job, plain), _machine(context))
    return Report(limits=tuple(replace(one, of_plain=one.multiplications / plain) for one in found), notes=notes)


def _by_hand(workload: Workload, job: Job, counted: float) -> str:
    """Multiplications of a plain pass by formula, beside what torch's counter found."""
    formula = linear_multiplications(workload, job)
    return (
        f"By formula, the Linear layers of a plain pass take {formula / 1e9:.0f} billion multiplications: lines x inputs x "
        "outputs, three times (forward, gradient of the input, gradient of the weight). torch's counter finds "
        f"{counted / 1e9:.0f} with attention."
    )


def linear_multiplications(workload: Workload, job: Job) -> float:
    """Those of all Linear layers in one plain pass: lines x inputs x outputs, forward and twice backward."""
    lines: list[float] = []

    def count(module: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> None:
        lines.append(3.0 * args[0].shape[:-1].numel() * module.get_parameter("weight").numel())

    layers = [module for module in workload.model.modules() if isinstance(module, nn.Linear)]
    hooks = [module.register_forward_hook(count) for module in layers]
    try:
        plain_pass(workload.model, job)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(lines)


def _machine(context: Context) -> str:
    one, other = torch.rand(_SIDE, _SIDE), torch.rand(_SIDE, _SIDE)
    held = torch.zeros(_COPIED // 4)
    product = statistics.median(seconds(lambda: one @ other) for _ in range(context.repetitions))
    copy = statistics.median(seconds(lambda: held.clone()) for _ in range(context.repetitions))
    return (
        f"This machine multiplies {_SIDE**3 / product / 1e9:.0f} billion numbers a second ({_SIDE} x {_SIDE} in single "
        f"precision) and copies {_COPIED / copy / 1e9:.1f} GB a second."
    )
