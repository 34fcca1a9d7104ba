"""Memory of a fit, in a process of its own: `python -m benchmarks.account_memory [with | without] SCALE` prints it as JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import torch

from benchmarks.account_fit import accounted_fit, fit
from benchmarks.memory import resident
from benchmarks.workloads import reference


def main() -> None:
    """Fit for an epoch, and print the figures."""
    way, scale = sys.argv[1], float(sys.argv[2])
    torch.ones(256, 256) @ torch.ones(256, 256)  # starts the threads and allocates their buffers
    workload = reference(1024, 64).scaled(scale)
    before = resident("VmRSS")
    known = {}
    if way == "with":
        _, account = accounted_fit(workload, 1)
        known = {name: value for name, value in asdict(account).items() if isinstance(value, int)}
    else:
        fit(workload, 1)
    print(json.dumps({"grown": resident("VmHWM") - before, **known}))


if __name__ == "__main__":
    main()
