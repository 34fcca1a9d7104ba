"""The ways of computing and the peers on a CUDA device: XLM-R base's shape, 10,000 train samples x 250 probes, one snapshot.

`make bench-gpu` writes `docs/benchmarks-gpu.md` and `benchmarks/gpu.json`. Without a CUDA device it says so and ends with code 2.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")  # before anything imports it: peers show bars

import torch

_HERE = Path(__file__).parent
_PAGE, _FIGURES = _HERE.parent / "docs" / "benchmarks-gpu.md", _HERE / "gpu.json"

_TRAIN, _PROBES = 10_000, 250

#: Samples on which peers and this package are compared.
_PEERS_TRAIN, _PEERS_PROBES = 1_000, 50


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the page; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3, help="pairs of runs of each comparison")
    parser.add_argument("--patience", type=float, default=300, help="seconds after which no further pair is started")
    parser.add_argument("--scale", type=float, default=1, help="fraction of the samples, for a quick look")
    settings = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(
            f"make bench-gpu measures on a CUDA device, and torch {torch.__version__} finds none here: nothing was measured or "
            f"written to docs/{_PAGE.name}.",
            file=sys.stderr,
        )
        return 2
    _measure(settings.repetitions, settings.patience, settings.scale)
    print(f"Written: docs/{_PAGE.name}, benchmarks/{_FIGURES.name}")
    return 0


def _measure(repetitions: int, patience: float, scale: float) -> None:
    # Imported late, so that a machine without a device hears of it at once.
    from benchmarks.compare import compare
    from benchmarks.gpu_page import Measured, page
    from benchmarks.gpu_ways import device_of, ways_of
    from benchmarks.peer_bergson import BERGSON
    from benchmarks.peer_dattri_llm import DATTRI_LLM
    from benchmarks.peer_kronfluence import KRONFLUENCE
    from benchmarks.registry import Context
    from benchmarks.workloads import base_causal_lm, base_shape

    context, device = Context(repetitions, patience, scale), torch.device("cuda")
    workload = base_shape(_TRAIN, _PROBES).scaled(scale).to(device)
    part = workload.smaller(min(_PEERS_TRAIN, len(workload.train)), min(_PEERS_PROBES, len(workload.probes)))
    written = base_causal_lm(len(part.train), len(part.probes)).to(device)
    peers = tuple(compare(context, *pair) for pair in ((part, DATTRI_LLM), (part, KRONFLUENCE), (written, BERGSON)))
    ways = ways_of(context, workload)
    ways += ways_of(context, replace(workload, model=workload.model.to(torch.bfloat16)))
    measured = Measured(tuple(ways), peers, device_of(device))
    _FIGURES.write_text(json.dumps(asdict(measured), indent=1) + "\n")
    _PAGE.write_text(page(measured))


if __name__ == "__main__":
    sys.exit(main())
