"""A run directory of any size with made-up projected features, on which reading is measured.

Everything is written through the package's own stores, as in a fit; only the features are random.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_tracin.attribution.batching import SHARD_SAMPLES
from lightning_tracin.config import Options
from lightning_tracin.gradients import Sketch, plan_coverage
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.features import packed
from lightning_tracin.storage.records import RunRecord, known_samples
from lightning_tracin.storage.sample_table import SampleTable
from lightning_tracin.storage.snapshots import SnapshotRecord

LANGUAGES = ("de", "en", "es", "fr", "ru")


def write_index(path: Path, train: int, probes: int, features: int) -> None:
    """Write a run of one snapshot.

    Args:
        path: of the run directory.
        train: number of train samples.
        probes: number of probes.
        features: values of each sample.
    """
    model = nn.Linear(features - 1, 1)
    names = [name for name, _ in model.named_parameters()]
    sketch = Sketch.plan(plan_coverage(model, frozenset(names)), {}, features)
    generator = torch.Generator().manual_seed(0)
    directory = RunDirectory(path)
    tables = table_of(train), table_of(probes)
    directory.start(_record_of(*tables, sketch.dim, len(names)), *tables)
    record = SnapshotRecord(
        index=0,
        epoch=1,
        step=1,
        steps=1,
        visits=1.0,
        learning_rates=(0.1,),
        last_learning_rates=(0.1,),
        groups=dict.fromkeys(names, 0),
        elements=sketch.dim,
    )
    store = directory.features(directory.ledger.append(record, dict(model.named_parameters())))
    store.write_sketch(sketch)
    store.write("probes", "00000", packed(range(probes), _drawn(probes, sketch.dim, generator)))
    order = torch.randperm(train, generator=generator)  # like the order that batches of similar length have
    for number, rows in enumerate(torch.split(order, SHARD_SAMPLES)):
        store.write("train", f"{number:05d}", packed(rows.tolist(), _drawn(len(rows), sketch.dim, generator)))
    directory.end()


def table_of(count: int) -> SampleTable:
    """Samples whose languages take turns."""
    languages = tuple(LANGUAGES[index % len(LANGUAGES)] for index in range(count))
    return SampleTable(languages, (None,) * count, tuple(f"sample {index}" for index in range(count)), (None,) * count)


def _drawn(count: int, features: int, generator: torch.Generator) -> Tensor:
    """Features with different norms: [count, features]."""
    different = torch.randn(count, features, generator=generator)
    return different * (1 + torch.rand(count, 1, generator=generator))


def _record_of(train: SampleTable, probes: SampleTable, elements: int, parameters: int) -> RunRecord:
    """The record of the run."""
    return RunRecord(
        run="drawn",
        options=Options(projection_dim=elements),
        loss="per_sample_loss",
        train=known_samples(train),
        probes=known_samples(probes),
        parameters=parameters,
        elements=elements,
        coverage={"Linear": (parameters, elements)},
        versions={},
    )
