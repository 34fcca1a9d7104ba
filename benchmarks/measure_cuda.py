"""The tables on a CUDA device, if there is one: XLM-R base's shape in bfloat16, one snapshot."""

from __future__ import annotations

import torch

from benchmarks import ours
from benchmarks.compare import compare
from benchmarks.peer_dattri_llm import DATTRI_LLM
from benchmarks.peer_kronfluence import KRONFLUENCE
from benchmarks.plain import plain_pass
from benchmarks.registry import Context, measurement
from benchmarks.report import Comparison, Report
from benchmarks.timing import interleaved, spread
from benchmarks.workloads import Workload, base_shape

_TRAIN, _PROBES = 10_000, 250

#: Samples on which peers and this package are compared.
_PEERS_TRAIN, _PEERS_PROBES = 1_000, 50


@measurement("cuda")
def cuda(context: Context) -> Report:
    """The exact pass over a plain one at full size, and peers on fewer samples."""
    if not torch.cuda.is_available():
        return Report(notes=("No CUDA device: the tables on a GPU (XLM-R base, 10,000 x 250) were not made.",))
    workload = base_shape(_TRAIN, _PROBES).scaled(context.scale).to(torch.device("cuda"))
    part = workload.smaller(min(_PEERS_TRAIN, len(workload.train)), min(_PEERS_PROBES, len(workload.probes)))
    peers = tuple(compare(context, part, peer) for peer in (DATTRI_LLM, KRONFLUENCE))
    workload.model.to(torch.bfloat16)  # products of bfloat16 that are summed in float32
    return Report(comparisons=(*peers, over_plain(context, workload)))


def over_plain(context: Context, workload: Workload) -> Comparison:
    """The exact pass and a plain forward and backward."""
    job = ours.job_of(workload)
    plain_pass(workload.model, job)
    ours.exact(workload.smaller(ours.BATCH_SIZE, min(8, len(workload.probes))))  # warm-up
    pairs = interleaved(
        lambda: ours.exact(workload), lambda: plain_pass(workload.model, job), context.repetitions, context.patience
    )
    return Comparison(
        f"{workload.name}, {len(workload.train)} x {len(workload.probes)} on {workload.device.type}",
        "plain forward and backward",
        torch.__version__,
        "bfloat16 weights" if next(workload.model.parameters()).dtype == torch.bfloat16 else "float32 weights",
        f"the exact pass takes {pairs.ours_over_theirs.value:.2f} times as long",
        job.batch_size,
        spread(pairs.ours),
        spread(pairs.theirs),
        pairs.theirs_over_ours,
    )
