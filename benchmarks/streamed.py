"""Speed and memory of scoring a stored index, in a process of its own: `python -m benchmarks.streamed RUN ROUNDS` prints JSON.

Each round reads the files, hashes them, computes products of their size alone, and scores them. Before each, the system
is asked to drop the files from its cache (`posix_fadvise`), so that all read the same bytes from the same disk. Apart from these
rounds, the phases of scoring are timed one after the other in one thread, on some of the files.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar
from unittest import mock

import numpy as np
import safetensors
import torch
import xxhash
from torch import Tensor

from benchmarks.memory import resident
from lightning_tracin import TracInRun
from lightning_tracin.analysis.near_border import near_or_beyond
from lightning_tracin.analysis.scorer import Scorer
from lightning_tracin.analysis.scores import factored_scores
from lightning_tracin.analysis.top_k import Strongest
from lightning_tracin.attribution.batching import SHARD_SAMPLES
from lightning_tracin.config import Scoring
from lightning_tracin.storage import features
from lightning_tracin.storage.features import FeatureStore
from lightning_tracin.storage.files import read_tensor, read_tensors
from lightning_tracin.storage.prefetch import Ahead
from lightning_tracin.storage.shards import Ingredients, are_indices

_Found = TypeVar("_Found")

#: Bytes of one plain read.
_PIECE = 1 << 20

_K = 100

#: Files whose phases are timed.
_PHASED = 100


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
        Scorer(run.directory, run.method).rank(strongest, [0], Scoring(), range(len(run.probes)))
        strongest.found()

    def unchecked() -> None:
        with mock.patch.object(features, "read_tensors", _unchecked):
            scored()

    store = run.method.store(run.directory, run.snapshots[0])
    assert isinstance(store, FeatureStore)
    right = torch.cat([values for _, values in store.blocks("probes")])
    contenders: dict[str, Callable[[], None]] = {
        "read": lambda: _read(files, len),
        "hashed": lambda: _hashed(files),
        "products": lambda: _products(len(run.train), right),
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
    found = {"bytes": size, "files": len(files), "opened": opened, "peak": peak, "k": _K, "seconds": seconds}
    print(json.dumps({**found, "phases": phases(store, right)}))


def _products(train: int, right: Tensor) -> None:
    """Products of as many train samples as there are, in single precision, with as many threads as scoring uses."""
    shards = [min(SHARD_SAMPLES, train - start) for start in range(0, train, SHARD_SAMPLES)]
    left = torch.randn(SHARD_SAMPLES, right.shape[1])
    multiplied = Ahead(lambda size: left[:size] @ right.T, shards)
    for shard in range(len(shards)):
        multiplied[shard]


def phases(store: FeatureStore, right: Tensor) -> dict[str, float]:
    """Processor seconds of each phase of scoring all files, from the first of them, in this thread, read before.

    Args:
        store: the index.
        right: features of the probes, [probes, features].
    """
    paths = sorted(store.folder.glob("train-*.safetensors"))
    some, before = paths[:_PHASED], torch.get_num_threads()
    seconds: dict[str, list[float]] = {}

    def timed(phase: str, work: Callable[[], _Found]) -> _Found:
        start = time.thread_time()
        found = work()
        seconds.setdefault(phase, []).append(time.thread_time() - start)
        return found

    torch.set_num_threads(1)
    try:
        border = np.full(len(right), 0.16)  # about the hundredth of a million random cosines of 512 values
        for path in some:
            path.read_bytes()
            index = timed("completeness: a file's indices", partial(read_tensor, path, "index"))
            assert index is not None
            timed("completeness: a file's indices", partial(are_indices, index.numpy(), store.count("train")))
            tensors = timed("reading from memory, checksum", partial(read_tensors, path))
            single = timed("half to single precision", tensors["features"].float)
            norm = timed("norms", partial(torch.linalg.vector_norm, single, dim=1))
            dot = timed("products", partial(torch.mm, single, right.T))
            of_probes = torch.linalg.vector_norm(right, dim=1).numpy()
            whole = Ingredients(dot[None].numpy(), norm[None].numpy(), of_probes[None])
            factored = timed("candidates for the ranking", partial(factored_scores, whole, "cosine", np.ones(1)))
            timed("candidates for the ranking", partial(near_or_beyond, [factored], border, is_positive=True))
    finally:
        torch.set_num_threads(before)
    return {phase: sum(taken) * len(paths) / len(some) for phase, taken in seconds.items()}


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
