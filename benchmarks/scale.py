"""How attribution scales with the number of train samples, and how fast stored results are read: `docs/scale.md`.

`python -m benchmarks.scale` measures everything on this machine (or parts, with `--only passes exact-memory reading ranks`),
stores the figures in `scale.json` and writes the page. It needs two cores, 3 GB of free disk and about fifteen minutes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")

import psutil
import torch

from benchmarks import ours, scale_page
from benchmarks.projected_index import LANGUAGES, write_index
from benchmarks.timing import seconds
from benchmarks.workloads import xlm_r
from lightning_tracin.attribution.batching import Job, Target
from lightning_tracin.attribution.exact import attribute_snapshot
from lightning_tracin.attribution.means import attribute_means
from lightning_tracin.attribution.projected import prepare_sketch, project_snapshot
from lightning_tracin.storage.features import FeatureStore
from lightning_tracin.storage.ingredients import IngredientStore

HERE = Path(__file__).parent
FIGURES, PAGE = HERE / "scale.json", HERE.parent / "docs" / "scale.md"

#: Number of train samples -> how often it is measured.
SIZES = {1_000: 5, 10_000: 3, 100_000: 1}

PROBES, DIM, BATCH = 50, 512, 256

#: The pass whose memory is measured: train samples, probes, and its `memory_budget`.
MEMORY = (100_000, 1_000, 64 * 2**20)

#: The index that is read: train samples, probes, values of each sample.
INDEX = (1_000_000, 250, 512)

_PARTS = ("passes", "exact-memory", "reading", "ranks")

#: Rounds of the reading, and pairs of runs of one rank and two.
_ROUNDS, _PAIRS = 3, 5


def main() -> None:
    settings = _settings()
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    parts: dict[str, Callable[[Path], Any]] = {
        "passes": _passes,
        "exact-memory": _exact_memory,
        "reading": _reading,
        "ranks": _ranks,
    }
    torch.set_num_threads(2)
    for name in settings.only or ([] if settings.render else parts):
        with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
            print(f"{name} ...", flush=True)
            figures[name] = {"machine": machine(), "figures": parts[name](Path(folder))}
        FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    PAGE.write_text(scale_page.page(figures))


def machine() -> dict[str, Any]:
    """The machine of the measurement."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "cores": psutil.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "torch": torch.__version__,
    }


def _passes(folder: Path) -> dict[str, Any]:
    """Each method's pass over a growing number of train samples, with a tiny model."""
    found: dict[str, Any] = {}
    for count, runs in SIZES.items():
        workload = xlm_r("tiny", count, PROBES, layers=1, width=16, heads=2, inner=32, vocabulary=500)
        job = ours.job_of(workload, BATCH)
        languages = tuple(LANGUAGES[index % len(LANGUAGES)] for index in range(PROBES))
        job = replace(job, probes=replace(job.probes, table=replace(job.probes.table, language=languages)))
        target = ours.target_of(workload.model)
        found["parts"], found["elements"] = len(target.parts), sum(target.coverage.elements.values())
        for method in _METHODS:
            taken = []
            for run in range(runs):
                here = folder / f"{method}-{count}-{run}"
                taken.append(seconds(partial(_METHODS[method], target, job, here)))
                size = sum(path.stat().st_size for path in here.iterdir())
            print(f"  {method} {count}: {statistics.median(taken):.2f} s, {size / count:.0f} bytes a sample", flush=True)
            found.setdefault(method, {})[str(count)] = {"seconds": taken, "bytes": size}
    return found


def _exact(target: Target, job: Job, folder: Path) -> None:
    attribute_snapshot(target, job, IngredientStore(folder, len(job.train), len(job.probes)))


def _means(target: Target, job: Job, folder: Path) -> None:
    attribute_means(target, job, IngredientStore(folder, len(job.train), 2 * len(LANGUAGES)))


def _projected(target: Target, job: Job, folder: Path) -> None:
    store = FeatureStore(folder, len(job.train), len(job.probes))
    prepare_sketch(target, job, store, DIM)
    project_snapshot(target, job, store)


_METHODS: dict[str, Callable[[Target, Job, Path], None]] = {"exact": _exact, "means": _means, "projected": _projected}


def _reading(folder: Path) -> dict[str, Any]:
    """A stored index of many samples, read in a new process with a cold file cache."""
    train, probes, features = INDEX
    start = time.perf_counter()
    write_index(folder / "run", train, probes, features)
    print(f"  written in {time.perf_counter() - start:.0f} s", flush=True)
    found = _in_new_process("benchmarks.streamed", str(folder / "run"), str(_ROUNDS))
    return {"train": train, "probes": probes, "features": features, **found}


def _exact_memory(folder: Path) -> dict[str, Any]:
    """The exact pass of many train samples with many probes, in a process of its own."""
    return _in_new_process("benchmarks.exact_memory", *map(str, MEMORY), str(folder))


def _in_new_process(module: str, *arguments: str) -> dict[str, Any]:
    """What a module prints as JSON, as its last line."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"`python -m {module}` failed:\n{done.stderr}")
    print(done.stdout, flush=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _ranks(folder: Path) -> dict[str, Any]:
    """One rank and two ranks, of one thread each, in turn."""
    from benchmarks.ranked import timed_run  # fits a model

    found: dict[str, Any] = {"1": [], "2": []}
    for _ in range(_PAIRS):
        for ranks in (1, 2):
            found[str(ranks)].append(timed_run(folder, ranks))
            print(f"  {ranks}: {found[str(ranks)][-1]:.2f} s", flush=True)
    return found


def _settings() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=_PARTS, help="measure only these and keep the rest")
    parser.add_argument("--render", action="store_true", help="write the page again from the last figures")
    parser.add_argument("--folder", type=Path, help="folder for the index and the files of the passes; default: the system's")
    return parser.parse_args()


if __name__ == "__main__":
    main()
