"""What the callback adds to a short fit of XLM-R base's real shape: 278 million parameters, random weights."""

from __future__ import annotations

import json
import subprocess
import sys

from humanize import naturalsize

from benchmarks.base_fit import WAYS
from benchmarks.registry import Context, measurement
from benchmarks.report import Report

_BUDGET = 2_000_000_000


@measurement("base_fit")
def base_fit(context: Context) -> Report:
    """Seconds before, in and after five steps of eight samples, and peak memory, for each way to compute; once each."""
    del context
    notes = []
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.base_fit", way, str(_BUDGET)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"`python -m benchmarks.base_fit` failed:\n{done.stderr}")
        run = json.loads(done.stdout.splitlines()[-1])
        ratio = run["peak"] / (2 * run["model"] + run["budget"])
        notes.append(
            f"base_fit ({way}): checks before the fit {run['checks']:.1f} s, five steps of the fit {run['steps']:.1f} s, "
            f"everything after it {run['end']:.1f} s (results {run['results']:.1f} s, the model's representations in them "
            f"{run.get('representations', 0.0):.1f} s); peak memory {naturalsize(run['peak'])}, {ratio:.2f} of twice the model "
            f"({naturalsize(run['model'])}) and the budget ({naturalsize(run['budget'])})."
        )
    return Report((), notes=tuple(notes))
