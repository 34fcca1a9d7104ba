"""The exact pass, probes included, against a plain forward and backward over the same train samples, and with Adam's metric."""

from __future__ import annotations

import torch

from benchmarks import ours
from benchmarks.plain import plain_pass
from benchmarks.registry import Context, measurement
from benchmarks.report import Report, ratio_result
from benchmarks.timing import interleaved
from benchmarks.workloads import reference


@measurement("exact_vs_plain")
def exact_vs_plain(context: Context) -> Report:
    """Both in the callback's batches, on the reference workload."""
    workload = reference().scaled(context.scale)
    job = ours.job_of(workload)
    ours.exact(workload)  # warm-up
    plain_pass(workload.model, job)
    pairs = interleaved(
        lambda: ours.exact(workload), lambda: plain_pass(workload.model, job), context.repetitions, context.patience
    )
    return Report((ratio_result("exact_vs_plain", pairs.ours_over_theirs),))


@measurement("adam_vs_exact")
def adam_vs_exact(context: Context) -> Report:
    """The same pass with and without Adam's factored second moments, the default in a fit with Adam; any cost the same."""
    workload = reference().scaled(context.scale)
    generator = torch.Generator().manual_seed(0)
    scales = {name: _factored(one.shape, generator) for name, one in workload.model.named_parameters()}
    ours.exact(workload, scales=scales)  # warm-up
    pairs = interleaved(
        lambda: ours.exact(workload, scales=scales), lambda: ours.exact(workload), context.repetitions, context.patience
    )
    return Report((ratio_result("adam_vs_exact", pairs.ours_over_theirs),))


def _factored(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """A random scale that is an outer product, if the parameter has more than one dimension."""
    if len(shape) < 2:
        return torch.rand(shape, generator=generator)
    rows, columns = (torch.rand(size, generator=generator) for size in (shape[0], shape[1:].numel()))
    return torch.outer(rows, columns).view(shape)
