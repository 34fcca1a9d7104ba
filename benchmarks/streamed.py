"""Speed and memory of scoring a stored index, in a process of its own: `python -m benchmarks.streamed RUN ROUNDS` prints JSON.

Each round reads the files, hashes them, and scores them. Before each of the three, the system is asked to drop the files from its
cache (`posix_fadvise`), so that all three read the same bytes from the same disk.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import safetensors
import torch
import xxhash
from torch import Tensor

from benchmarks.memory import resident
from lightning_tracin import TracInRun
from lightning_tracin.analysis.scorer import Scorer
from lightning_tracin.analysis.top_k import Strongest
from lightning_tracin.config import Scoring
from lightning_tracin.storage import features

#: Bytes of one plain read.
_PIECE = 1 << 20

_K = 100


def main() -> None:
    path, rounds = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(2)
    files = sorted((path / "features").rglob("train-*.safetensors"))
    torch.ones(256, 256) @ torch.ones(256, 256)  # starts the threads and allocates their buffers
    before = resident("VmRSS")
    start = time.perf_counter()
    run = TracInRun.open(path)
    opened = {"seconds": time.perf_counter() - start, "held": resident("VmRSS") - before, "peak": resident("VmHWM") - before}
    assert run.is_large

    def scored() -> None:
        strongest = Strongest(_K, "positive")
        for train, (scores,) in Scorer(run.directory, run.method).blocks([0], Scoring()):
            strongest.add(train, scores[""])
        strongest.found()

    def unchecked() -> None:
        with mock.patch.object(features, "read_tensors", _unchecked):
            scored()

    contenders: dict[str, Callable[[], None]] = {
        "read": lambda: _read(files, len),
        "hashed": lambda: _hashed(files),
        "scored": scored,
        "unchecked": unchecked,
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    peak = 0
    for _ in range(rounds):
        for name, work in contenders.items():
            _forget(files)
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
            held = resident("VmRSS")
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
            if name == "scored":
                peak = max(peak, resident("VmHWM") - held)
    size = sum(file.stat().st_size for file in files)
    print(json.dumps({"bytes": size, "files": len(files), "opened": opened, "peak": peak, "k": _K, "seconds": seconds}))


def _unchecked(path: Path, remedy: str = "", owner: str = "") -> dict[str, Tensor]:
    """A file's tensors, in memory, with no checksum test."""
    del remedy, owner
    with safetensors.safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - it is no mapping


def _forget(files: list[Path]) -> None:
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _read(files: list[Path], take: Callable[[bytes], object]) -> None:
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while piece := opened.read(_PIECE):
                take(piece)


def _hashed(files: list[Path]) -> None:
    digest = xxhash.xxh3_128()
    _read(files, digest.update)


if __name__ == "__main__":
    main()
