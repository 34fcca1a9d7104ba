"""The projected pass: stores random projections (features) of every gradient; products are computed from them later.

Gradients are multiplied with the target's scales, if it has some, before they are projected.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lightning_tracin.attribution.batching import Job, Target, batches_of, require_finite, run_batch, shards_of, shards_of_rank
from lightning_tracin.attribution.cost import Cost, measured_pace
from lightning_tracin.attribution.late_writes import LateWrites
from lightning_tracin.attribution.method import Method, method
from lightning_tracin.attribution.processes import Processes
from lightning_tracin.attribution.progress import tracked
from lightning_tracin.attribution.samples import SampleSet
from lightning_tracin.attribution.spot_check import check_features
from lightning_tracin.config import SCALED, Options
from lightning_tracin.gradients import Capture, Sketch, energy_shares
from lightning_tracin.gradients.forms import Form
from lightning_tracin.gradients.holding import squared_norms_of
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.features import FeatureBlock, FeatureStore, Side, packed
from lightning_tracin.storage.records import SpotCheck
from lightning_tracin.storage.sample_table import SampleTable
from lightning_tracin.storage.snapshots import Snapshot

#: Number of train samples from which the number of features per parameter is chosen.
_CALIBRATION = 128


@method("projected")
class Projected(Method):
    """Seeded random projections of every sample's gradient."""

    adds_probes = whitens = layer_cosine = takes_scales = True

    def __init__(self, options: Options) -> None:
        assert options.projection_dim is not None
        self._dim, self._scales = options.projection_dim, options.preconditioner in SCALED

    def store(self, directory: RunDirectory, snapshot: Snapshot) -> FeatureStore:
        """The store of the snapshot's features."""
        return directory.features(snapshot)

    def columns(self, directory: RunDirectory) -> int:
        """One per probe, including added ones."""
        return len(directory.samples("probes"))

    def compute(self, target: Target, job: Job, directory: RunDirectory, snapshot: Snapshot, processes: Processes) -> None:
        """Compute and store the snapshot's missing features; rank 0 first creates the sketch."""
        store = self.store(directory, snapshot)
        if processes.rank == 0:
            prepare_sketch(target, job, store, self._dim)
        processes.barrier("tracin_sketch")
        project_snapshot(target, job, store)

    def add(self, target: Target, job: Job, directory: RunDirectory, snapshot: Snapshot, first: int) -> SpotCheck:
        """Compute, store and check the features of added probes."""
        add_features(target, job, self.store(directory, snapshot), first)
        return check_features(target, job, directory.features(snapshot, len(job.probes)), job.probes, first=first)

    def compute_candidates(
        self, target: Target, job: Job, directory: RunDirectory, snapshot: Snapshot, processes: Processes
    ) -> SpotCheck:
        """Compute, store and check the candidates' features; the sketch and the probes' features are the fit's."""
        del processes  # one process computes all
        store = self.store(directory, snapshot)
        assert store.fit is not None
        store.copy_probes(store.fit)
        project_snapshot(target, job, store, sides=("train",))
        return check_features(target, job, store, job.train, side="train")

    def check(self, target: Target, job: Job, directory: RunDirectory, snapshot: Snapshot) -> SpotCheck:
        """Compare some stored features with projections of single-sample gradients."""
        return check_features(target, job, self.store(directory, snapshot))

    def cost(self, target: Target, job: Job) -> Cost:
        """No gradients are held; every sample goes through the model once, and scaled gradients are written out."""
        pace, samples = measured_pace(target, job), len(job.train) / job.ranks + len(job.probes)
        projecting = _pace_of_scaled(target, job, self._dim) * samples if self._scales else 0.0
        return Cost(0, pace.seconds(job, 1, 0) + projecting, pace.alone, pace.captured)

    def stored_bytes(self, parts: int, train: int, probes: SampleTable) -> int:
        """Features in half precision, one norm and one index per sample."""
        del parts
        return (2 * self._dim + 12) * (train + len(probes))


def prepare_sketch(target: Target, job: Job, store: FeatureStore, dim: int, seed: int = 0) -> None:
    """Create the sketch of one snapshot if it does not exist, from the gradient norms of some train samples.

    Args:
        target: the snapshot's model.
        job: samples, loss and settings.
        store: the store of the sketch.
        dim: number of features per sample.
        seed: of the sketch.

    Raises:
        TracInError: `dim` is too small, or a loss or gradient is not finite.
    """
    if store.has_sketch:
        return
    batches = batches_of(job.train, job.batch_size)
    every = max(1, sum(map(len, batches)) // _CALIBRATION)
    squared: dict[str, list[Tensor]] = {name: [] for name in target.coverage.elements}
    device = next(target.model.parameters()).device
    with Capture(target.model, target.coverage) as capture:
        for batch in (batch[::every] for batch in batches[:: max(1, every // job.batch_size)]):
            here: dict[str, Tensor] = {}

            def keep(name: str, forms: tuple[Form, ...], here: dict[str, Tensor] = here) -> None:
                here[name] = squared_norms_of(forms, target.scale(name))

            run_batch(capture, job, job.train, batch, keep, job.train_kind, target.name)
            for name, found in squared.items():
                found.append(here.get(name, torch.zeros(len(batch), device=device)).float())
    of_all = torch.stack([torch.cat(found) for found in squared.values()]).cpu()  # together: each copy waits for the device
    shares = energy_shares(dict(zip(squared, of_all, strict=True)))
    store.write_sketch(Sketch.plan(target.coverage, shares, dim, seed))


def _pace_of_scaled(target: Target, job: Job, dim: int) -> float:
    """Seconds to project one scaled gradient, measured on a batch of medium length; before a fit there are no scales yet."""
    batches = batches_of(job.train, job.batch_size)
    batch = batches[len(batches) // 2]
    sketch = Sketch.plan(target.coverage, {}, dim).to(next(target.model.parameters()).device)
    seconds = 0.0

    def project(name: str, forms: tuple[Form, ...]) -> None:
        nonlocal seconds
        part = sketch.parts[name]
        start = time.perf_counter()
        sketch.features(name, forms, part.right_sign.new_ones(part.rows, part.columns))
        seconds += time.perf_counter() - start

    with Capture(target.model, target.coverage) as capture:
        run_batch(capture, job, job.train, batch, project, job.train_kind, target.name)
    return seconds / len(batch)


def project_snapshot(target: Target, job: Job, store: FeatureStore, sides: Sequence[Side] = ("probes", "train")) -> None:
    """Compute the missing features of one snapshot.

    Args:
        target: the snapshot's model.
        job: samples, loss and settings.
        store: the store of the features, which already has the sketch.
        sides: which samples to project.

    Raises:
        TracInError: a loss or gradient is not finite; the message names the sample and the snapshot.
    """
    samples: dict[Side, SampleSet] = {"train": job.train, "probes": job.probes}
    shards = {side: shards_of(batches_of(samples[side], job.batch_size)) for side in sides}
    for side in sides:
        store.keep_only(side, [_name(shard) for shard in range(len(shards[side]))])
    todo = [
        (side, shard) for side in sides for shard in shards_of_rank(len(shards[side]), job) if not store.has(side, _name(shard))
    ]
    if not todo:
        return
    device = next(target.model.parameters()).device
    sketch = store.sketch().to(device)
    total = sum(len(batch) for side, shard in todo for batch in shards[side][shard])
    with (
        Capture(target.model, target.coverage) as capture,
        tracked(job.progress, total=total, desc=f"features at {target.name}", unit=" samples") as bar,
        LateWrites.of(device) as writes,
    ):
        for side, shard in todo:
            index, features, labels = features_of(capture, sketch, samples[side], shards[side][shard], side, target, job, bar)
            block = packed(index, features)
            tensors = [block.features, block.norm.float(), *([labels] if side == "train" and labels is not None else [])]
            _write_late(writes, store, side, _name(shard), index, tensors)


def _write_late(
    writes: LateWrites, store: FeatureStore, side: Side, shard: str, index: Sequence[int], tensors: list[Tensor]
) -> None:
    def write(copied: list[Tensor]) -> None:
        store.write(side, shard, FeatureBlock(index, *copied))

    writes.put(tensors, write)


def add_features(target: Target, job: Job, store: FeatureStore, first: int) -> None:
    """Compute and store the features of added probes at one snapshot.

    Args:
        target: the snapshot's model.
        job: a job whose probes are the new ones.
        store: the store of the features, which already has the sketch.
        first: index of the first new probe in the run.

    Raises:
        TracInError: a loss or gradient is not finite.
    """
    store.start_addition()
    sketch = store.sketch().to(next(target.model.parameters()).device)
    with Capture(target.model, target.coverage) as capture:
        for shard, batches in enumerate(shards_of(batches_of(job.probes, job.batch_size))):
            index, features, _ = features_of(capture, sketch, job.probes, batches, "probes", target, job)
            store.write_addition(shard, packed([first + one for one in index], features))


def features_of(
    capture: Capture,
    sketch: Sketch,
    samples: SampleSet,
    batches: Sequence[list[int]],
    side: Side,
    target: Target,
    job: Job,
    bar: tqdm[Any] | None = None,
) -> tuple[list[int], Tensor, Tensor | None]:
    """Compute the features of some batches: the samples' indices, [samples, features], and their labels' losses if known."""
    kind = job.train_kind if side == "train" else "probe"
    index = [one for batch in batches for one in batch]
    layout, done = sketch.layout, 0
    features = torch.zeros(len(index), sketch.dim, device=next(target.model.parameters()).device)
    label_losses: list[Tensor | None] = []
    for batch in batches:
        here = features[done : done + len(batch)]

        def consume(name: str, forms: tuple[Form, ...], here: Tensor = here) -> None:
            here[:, layout[name]] = sketch.features(name, forms, target.scale(name))

        label_losses.append(run_batch(capture, job, samples, batch, consume, kind, target.name).label_losses())
        done += len(batch)
        if bar is not None:
            bar.update(len(batch))
    require_finite(features.T, index, samples, kind, target.name)
    known = [one for one in label_losses if one is not None]
    return index, features, torch.cat(known) if len(known) == len(batches) else None


def _name(shard: int) -> str:
    return f"{shard:05d}"
