"""Peak memory of the exact pass, each time in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.registry import Context, measurement
from benchmarks.report import Report, ratio_result
from benchmarks.timing import spread

#: Less than half of what the reference workload's probes need, so that the pass has to split them into chunks.
_BUDGET = 512 * 2**20

_RUNS = 3


@measurement("peak_memory")
def peak_memory(context: Context) -> Report:
    """The process's growth over the sum of model, one training step's activations and budget."""
    if not sys.platform.startswith("linux"):
        return Report(notes=("peak_memory: measured on Linux only.",))
    runs = [_run(context.scale) for _ in range(min(_RUNS, context.repetitions))]
    last = runs[-1]
    mib = {name: round(size / 2**20) for name, size in last.items()}
    note = (
        f"peak_memory: the process grew by {mib['grown']} MiB; model {mib['model']}, one training step's activations "
        f"{mib['activations']} (counted), budget {mib['budget']}."
    )
    ratios = [run["grown"] / (run["model"] + run["activations"] + run["budget"]) for run in runs]
    return Report((ratio_result("peak_memory", spread(ratios)),), notes=(note,))


def _run(scale: float) -> dict[str, int]:
    command = [sys.executable, "-m", "benchmarks.memory", str(_BUDGET), str(scale)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"`python -m benchmarks.memory` failed:\n{done.stderr}")
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found
