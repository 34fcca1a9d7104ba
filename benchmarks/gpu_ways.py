"""Each way of computing against a plain pass on a CUDA device, with the device's own limits."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import ours
from benchmarks.contenders import version_of
from benchmarks.gpu_page import Device, Way
from benchmarks.measure_ways import means_side, projected_side
from benchmarks.plain import plain_pass
from benchmarks.products_alone import products_alone
from benchmarks.registry import Context
from benchmarks.timing import interleaved, seconds, spread
from benchmarks.workloads import Workload
from lightning_tracin.attribution.batching import probe_chunks

#: Samples on which products are timed alone.
_LIMIT_TRAIN = 512

#: Side of a square product, and bytes of a copy: large enough that a device shows its best.
_SIDE, _COPIED = 8192, 1 << 30

_VERSIONS = ("lightning-tracin", "torch", "transformers", "dattri-llm", "kronfluence", "bergson")


def ways_of(context: Context, workload: Workload) -> list[Way]:
    """Each way of computing against a plain forward and backward over the same train samples, timed in turn.

    Args:
        context: how often.
        workload: on the device, in the data type to measure.
    """
    job, small = ours.job_of(workload), workload.smaller(_LIMIT_TRAIN, len(workload.probes))
    chunks = len(probe_chunks(ours.target_of(workload.model), job))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        whole, part = (_works(one, Path(folder) / str(len(one.train))) for one in (workload, small))
        for name, work in whole.items():
            with torch.enable_grad():
                part[name]()  # warm-up
                plain_pass(small.model, ours.job_of(small))
                alone, together = products_alone(part[name]), seconds(part[name])
                _forget_peak(workload.device)
                pairs = interleaved(work, lambda: plain_pass(workload.model, job), context.repetitions, context.patience)
            found.append(
                Way(
                    name,
                    str(next(workload.model.parameters()).dtype).removeprefix("torch."),
                    len(workload.train),
                    len(workload.probes),
                    job.batch_size,
                    spread(pairs.ours),
                    spread(pairs.theirs),
                    pairs.ours_over_theirs,
                    alone.seconds / together,
                    chunks if name.startswith("exact") else 1,
                    _peak(workload.device),
                )
            )
    return found


def _works(workload: Workload, folder: Path) -> dict[str, Callable[[], object]]:
    return {
        "exact, probes included": lambda: ours.exact(workload),
        "language means, train side": means_side(workload),
        "projected, train side": projected_side(workload, folder),
    }


def device_of(device: torch.device) -> Device:
    """The device's name and limits."""
    with torch.no_grad():
        products = {}
        for dtype in (torch.float32, torch.bfloat16):
            one = torch.rand(_SIDE, _SIDE, device=device).to(dtype)
            one @ one
            products[str(dtype).removeprefix("torch.")] = 2 * _SIDE**3 / min(seconds(lambda one=one: one @ one) for _ in range(5))  # type: ignore[misc]
        held = torch.zeros(_COPIED // 4, device=device)
        copy = min(seconds(lambda: held.clone()) for _ in range(5))
    free = torch.cuda.get_device_properties(device)
    return Device(
        datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        torch.cuda.get_device_name(device),
        free.total_memory,
        torch.version.cuda or "",
        products,
        2 * _COPIED / copy,
        {name: version_of(name) or "not installed" for name in _VERSIONS},
    )


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int:
    """Most bytes that were allocated on the device; 0 where it does not count them."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
