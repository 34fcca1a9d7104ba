"""Run directories that no fit made, for tests of what is read from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lightning_tracin.config import Options
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.ingredients import Block
from lightning_tracin.storage.records import RunRecord, known_samples
from lightning_tracin.storage.sample_table import SampleTable
from lightning_tracin.storage.snapshots import SnapshotRecord

PARAMETERS = ("body.weight", "body.bias", "head.weight")


def run_directory(path: Path, train: SampleTable, probes: SampleTable, snapshots: int = 2) -> RunDirectory:
    """A run with random products: two parameter groups, and one shard for each half of the train samples."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    directory = RunDirectory(path)
    directory.start(record_of(train, probes, 14, 3, per_layer=False), train, probes)
    columns, half = list(range(len(probes))), len(train) // 2
    for index in range(snapshots):
        record = SnapshotRecord(
            index=index,
            epoch=index + 1,
            step=3 * (index + 1),
            steps=3,
            visits=1.0,
            learning_rates=(0.1, 0.01),
            last_learning_rates=(0.05, 0.01),
            groups=dict(zip(PARAMETERS, (0, 1, 0), strict=True)),
            elements=14,
        )
        weights = {"body.weight": drawn(3, 2), "body.bias": drawn(2), "head.weight": drawn(2, 3)}
        snapshot = directory.ledger.append(record, weights)
        store, norms = directory.ingredients(snapshot, len(probes)), drawn(2, len(probes)).abs() + 1
        for shard, rows in enumerate((range(half), range(half, len(train)))):
            dot, train_norm = drawn(2, len(rows), len(probes)), drawn(2, len(rows)).abs() + 1
            store.write(str(shard), Block(list(rows), columns, dot, train_norm, norms))
    directory.end()
    return directory


def record_of(train: SampleTable, probes: SampleTable, elements: int, parameters: int, **options: Any) -> RunRecord:
    """The record of a run of these samples, with these options."""
    return RunRecord(
        run="drawn",
        options=Options(**options),
        loss="per_sample_loss",
        train=known_samples(train),
        probes=known_samples(probes),
        parameters=parameters,
        elements=elements,
        coverage={"Linear": (parameters, elements)},
        versions={},
    )
