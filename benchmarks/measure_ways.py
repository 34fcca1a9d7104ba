"""The train side of language means and of projected features against a plain forward and backward."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from tqdm.auto import tqdm

from benchmarks import ours
from benchmarks.plain import plain_pass
from benchmarks.registry import Context, measurement
from benchmarks.report import Report, ratio_result
from benchmarks.timing import interleaved
from benchmarks.workloads import Workload, reference
from lightning_tracin.attribution.batching import batches_of
from lightning_tracin.attribution.exact import block_of
from lightning_tracin.attribution.means import queries_of
from lightning_tracin.attribution.projected import features_of, prepare_sketch
from lightning_tracin.gradients import Capture
from lightning_tracin.storage.features import FeatureStore

#: Languages of the probes, and values stored for each sample.
_LANGUAGES, _DIM = 5, 8192


@measurement("means_vs_plain")
def means_vs_plain(context: Context) -> Report:
    """Products of the train samples with five languages' means, which are computed before the clock starts."""
    workload = reference().scaled(context.scale)
    return _compared("means_vs_plain", means_side(workload), workload, context)


@measurement("projected_vs_plain")
def projected_vs_plain(context: Context) -> Report:
    """Features of the train samples, with a sketch that is made before the clock starts."""
    workload = reference().scaled(context.scale)
    with tempfile.TemporaryDirectory() as folder:
        return _compared("projected_vs_plain", projected_side(workload, Path(folder)), workload, context)


def means_side(workload: Workload) -> Callable[[], None]:
    """The train side of language means; the probes' side is done here."""
    job = ours.job_of(workload)
    languages = tuple(f"l{index % _LANGUAGES}" for index in range(len(job.probes)))
    job = replace(job, probes=replace(job.probes, table=replace(job.probes.table, language=languages)))
    target = ours.checked_target(workload.model, job)
    with Capture(target.model, target.coverage) as capture:
        bank = queries_of(capture, target, job)
    shard = batches_of(job.train, job.batch_size)

    def train_side() -> None:
        with Capture(target.model, target.coverage) as capture:
            block_of(capture, bank, list(range(bank.probes)), shard, target, job, tqdm(disable=True))

    return train_side


def projected_side(workload: Workload, folder: Path) -> Callable[[], None]:
    """The train side of projected features; the sketch is made here, in a folder of its own."""
    job = ours.job_of(workload)
    target = ours.checked_target(workload.model, job)
    store = FeatureStore(folder, len(job.train), len(job.probes))
    prepare_sketch(target, job, store, _DIM)
    sketch = store.sketch().to(workload.device)
    shard = batches_of(job.train, job.batch_size)

    def train_side() -> None:
        with Capture(target.model, target.coverage) as capture:
            features_of(capture, sketch, job.train, shard, "train", target, job)

    return train_side


def _compared(name: str, train_side: Callable[[], None], workload: Workload, context: Context) -> Report:
    job = ours.job_of(workload)
    with torch.enable_grad():
        train_side()  # warm-up
        plain_pass(workload.model, job)
        pairs = interleaved(train_side, lambda: plain_pass(workload.model, job), context.repetitions, context.patience)
    return Report((ratio_result(name, pairs.ours_over_theirs),))
