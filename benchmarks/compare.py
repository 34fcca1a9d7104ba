"""One peer against us: the same scores first, then both timed in turn."""

from __future__ import annotations

from functools import partial

import psutil
import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks import ours
from benchmarks.contenders import Contender
from benchmarks.registry import Context
from benchmarks.report import Comparison
from benchmarks.timing import interleaved, seconds, spread
from benchmarks.workloads import Workload

#: Largest difference, relative to the largest score, that rounding in float32 may explain.
TOLERANCE = 1e-4

#: Part of the train samples on which a peer's batch size is chosen.
_TUNING = 8


def compare(context: Context, workload: Workload, contender: Contender) -> Comparison:
    """Time a peer at its fastest batch size and this package in turn; the note says why a peer could not be timed."""

    def untimed(note: str) -> Comparison:
        return Comparison(workload.name, contender.name, contender.version or "", contender.settings, note)

    if contender.version is None:
        return untimed("not installed here; `make bench` sets up an environment that has it")
    needed, free = contender.bytes_needed(workload, min(contender.batch_sizes)), free_memory(workload.device)
    if needed > free:
        return untimed(f"not run: it would take about {needed / 2**30:.0f} GiB for this model, and {free / 2**30:.0f} are free")
    try:
        ready = contender.prepare(workload)
        batch_size = fastest_batch_size(ready, contender, free)
        theirs = contender.scores(ready, batch_size).cpu()
    except Exception as error:  # show the peer's own message
        return untimed(f"fails with {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}")
    mine = ours.exact(workload, contender.scope)
    difference = largest_difference(theirs, mine)
    if contender.exact and not difference <= TOLERANCE:
        return untimed(f"not comparable: {_distance(theirs, mine)}")
    pairs = interleaved(
        lambda: ours.exact(workload, contender.scope),
        lambda: contender.scores(ready, batch_size),
        context.repetitions,
        context.patience,
    )
    return Comparison(
        workload.name,
        contender.name,
        contender.version,
        contender.settings,
        f"same, within {difference:.0e}" if contender.exact else _distance(theirs, mine),
        batch_size,
        spread(pairs.ours),
        spread(pairs.theirs),
        pairs.theirs_over_ours,
    )


def free_memory(device: torch.device) -> int:
    """Bytes that are free where a workload is."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def fastest_batch_size(workload: Workload, contender: Contender, free: int) -> int:
    """The fastest batch size on a part of the train samples, among those that fit into the free memory."""
    count, smallest = len(workload.train), min(contender.batch_sizes)
    useful = [size for size in contender.batch_sizes if size == smallest or size < 2 * count]
    fitting = [size for size in useful if contender.bytes_needed(workload, size) <= free]
    if len(fitting) == 1:
        return fitting[0]
    contender.scores(workload.smaller(2, 2), fitting[0])  # warm-up
    part = workload.smaller(min(count, max(max(fitting), count // _TUNING)), len(workload.probes))
    rounds = [
        {size: seconds(partial(contender.scores, part, size)) for size in fitting} for _ in range(2)
    ]  # a single run may be disturbed
    return min(fitting, key=lambda size: min(times[size] for times in rounds))


def largest_difference(found: Tensor, truth: Tensor) -> float:
    """The largest difference between two tables of scores, relative to the largest true score."""
    if found.shape != truth.shape:
        return float("inf")
    return float((found - truth).abs().max() / truth.abs().max())


def _distance(found: Tensor, truth: Tensor) -> str:
    """How far other scores are from the exact ones, in words."""
    if found.shape != truth.shape:
        return f"{list(found.shape)} scores instead of {list(truth.shape)}"
    share = float((found / truth).median())
    ranks = [float(spearmanr(found[:, i], truth[:, i]).statistic) for i in range(truth.shape[1])]
    mean = sum(ranks) / len(ranks)
    return f"{share:.2f} of exact (median), rank correlation {mean:.2f}"
