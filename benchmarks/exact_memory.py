"""Memory of the exact pass over many samples, in a process of its own: `python -m benchmarks.exact_memory TRAIN PROBES BUDGET`.

What it may take is known before it starts: the model, the activations of a training step, and `memory_budget`, of which the
probes' gradients take what the fit announces. It also holds the products of one shard, as computed and as the bytes of its file,
and products work with a few blocks of memory, which the fit announces as well.
Prints JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks import ours
from benchmarks.memory import activation_bytes, resident
from benchmarks.workloads import xlm_r
from lightning_tracin.attribution.batching import SHARD_SAMPLES, probe_chunks
from lightning_tracin.attribution.exact import attribute_snapshot
from lightning_tracin.attribution.method import method_of
from lightning_tracin.config import Options
from lightning_tracin.storage.ingredients import IngredientStore

BATCH = 256

#: A shard's products: as they are computed, as the bytes of each tensor, and as those of the file.
_COPIES = 3


def measured(train: int, probes: int, budget: int, folder: Path) -> dict[str, float]:
    """Bytes by which this process grows at most during a pass of a tiny model, and what was known of them before it.

    Args:
        train: number of train samples.
        probes: number of probes.
        budget: `memory_budget` in bytes.
        folder: for the products, 4 bytes for each part and pair.
    """
    workload = xlm_r("tiny", train, probes, layers=1, width=16, heads=2, inner=32, vocabulary=500)
    job, target = ours.job_of(workload, BATCH, budget), ours.target_of(workload.model)
    announced = method_of(Options()).cost(target, job)
    parts, chunks = len(target.parts), len(probe_chunks(target, job))
    size = sum(one.nbytes for one in workload.model.parameters())
    known = {
        "model": size,
        "activations": activation_bytes(workload, BATCH),
        "budget": budget,
        "shard": _COPIES * 4 * parts * (SHARD_SAMPLES + BATCH) * min(probes, -(-probes // chunks) + BATCH),
        "working": announced.working_bytes,
    }
    with TemporaryDirectory() as other:  # a pass over few samples loads what is loaded once
        few = ours.job_of(workload.smaller(BATCH, 10), BATCH, budget)
        attribute_snapshot(target, few, IngredientStore(Path(other) / "0000-step0", BATCH, 10))
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, start = resident("VmRSS"), time.perf_counter()
    attribute_snapshot(target, job, IngredientStore(folder, train, probes))
    seconds = time.perf_counter() - start
    stored = sum(path.stat().st_size for path in folder.iterdir())
    grown = resident("VmHWM") - before
    found = {"grown": grown, "held": announced.held_bytes, **known, "stored": stored, "seconds": seconds}
    return {"train": train, "probes": probes, **found}


def main() -> None:
    train, probes, budget = map(int, sys.argv[1:4])
    torch.ones(256, 256) @ torch.ones(256, 256)  # starts the threads and allocates their buffers
    with TemporaryDirectory(dir=sys.argv[4] if len(sys.argv) > 4 else None) as folder:
        print(json.dumps(measured(train, probes, budget, Path(folder) / "0000-step0")))


if __name__ == "__main__":
    main()
