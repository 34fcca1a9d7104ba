"""The projected pass: features of every train sample and probe, from which products follow without another pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lightning_tracin.attribution.batching import Job, Target, batches_of, require_finite, run_batch, shards_of, shards_of_rank
from lightning_tracin.attribution.samples import SampleSet
from lightning_tracin.gradients import Capture, Sketch, energy_shares
from lightning_tracin.gradients.forms import Form
from lightning_tracin.gradients.products import squared_norms
from lightning_tracin.storage.features import FeatureStore, Side, packed

#: Train samples by which features are shared out among the parameters.
_CALIBRATION = 128


def prepare_sketch(target: Target, job: Job, store: FeatureStore, dim: int, seed: int = 0) -> None:
    """Draw the sketch of one snapshot, if it is not there: by the energy of some train samples' gradients.

    Args:
        target: the snapshot.
        job: samples, loss and settings.
        store: where the sketch goes.
        dim: numbers of a sample in all.
        seed: of the sketch.

    Raises:
        TracInError: `dim` is too small, or a loss or gradient is not finite.
    """
    if store.has_sketch:
        return
    batches = batches_of(job.train, job.batch_size)
    every = max(1, sum(map(len, batches)) // _CALIBRATION)
    squared: dict[str, list[Tensor]] = {name: [] for name in target.coverage.elements}
    with Capture(target.model, target.coverage) as capture:
        for batch in (batch[::every] for batch in batches[:: max(1, every // job.batch_size)]):
            here: dict[str, Tensor] = {}
            run_batch(
                capture,
                job,
                job.train,
                batch,
                lambda name, forms, here=here: here.__setitem__(name, squared_norms(forms)),
                "train sample",
                target.name,
            )
            for name, found in squared.items():
                found.append(here.get(name, torch.zeros(len(batch))).cpu().float())
    shares = energy_shares({name: torch.cat(found) for name, found in squared.items()})
    store.write_sketch(Sketch.plan(target.coverage, shares, dim, seed))


def project_snapshot(target: Target, job: Job, store: FeatureStore, sides: Sequence[Side] = ("probes", "train")) -> None:
    """Compute what is missing of one snapshot's features.

    Args:
        target: the snapshot.
        job: samples, loss and settings.
        store: where the shards go; it has the sketch.
        sides: what to compute.

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
        tqdm(total=total, desc=f"features at {target.name}", unit=" samples", disable=not job.progress) as bar,
    ):
        for side, shard in todo:
            index, features = features_of(capture, sketch, samples[side], shards[side][shard], side, target, job, bar)
            store.write(side, _name(shard), packed(index, features))


def features_of(
    capture: Capture,
    sketch: Sketch,
    samples: SampleSet,
    batches: Sequence[list[int]],
    side: Side,
    target: Target,
    job: Job,
    bar: tqdm[Any] | None = None,
) -> tuple[list[int], Tensor]:
    """The features of some batches: the samples' indices, and [samples, features]."""
    kind = "train sample" if side == "train" else "probe"
    index = [one for batch in batches for one in batch]
    layout, done = sketch.layout, 0
    features = torch.zeros(len(index), sketch.dim, device=next(target.model.parameters()).device)
    for batch in batches:
        here = features[done : done + len(batch)]

        def consume(name: str, forms: tuple[Form, ...], here: Tensor = here) -> None:
            here[:, layout[name]] = sketch.features(name, forms)

        run_batch(capture, job, samples, batch, consume, kind, target.name)
        done += len(batch)
        if bar is not None:
            bar.update(len(batch))
    require_finite(features.T, index, samples, kind, target.name)
    return index, features


def _name(shard: int) -> str:
    return f"{shard:05d}"
