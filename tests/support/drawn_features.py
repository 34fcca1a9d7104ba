"""Run directories with projected features that no fit made, in any number, for tests of what is read from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_tracin.gradients import Sketch, plan_coverage
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.features import packed
from lightning_tracin.storage.sample_table import SampleTable
from lightning_tracin.storage.snapshots import SnapshotRecord
from tests.support.hand_made import record_of

LANGUAGES = ("de", "en", "es", "fr", "ru")


def write_features(
    path: Path,
    train: int,
    probes: int,
    features: int,
    *,
    shards: Sequence[int] = (1024,),
    layers: int = 1,
    groups: int = 1,
    repeats: int = 1,
) -> None:
    """Write a run as a fit would, through the package's own stores; only the features are drawn at random.

    Args:
        path: of the run directory.
        train: number of train samples.
        probes: number of probes.
        features: values of each sample.
        shards: train samples of a shard, at each snapshot.
        layers: layers that the features belong to, in equal parts.
        groups: 1, or 2 with the last feature of each layer (its bias) in a group of its own.
        repeats: number of consecutive samples with the same features, and so the same influence.
    """
    model = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(features // layers - 1, 1) for _ in range(layers))})
    names = [name for name, _ in model.named_parameters()]
    sketch = Sketch.plan(plan_coverage(model, frozenset(names)), {}, features)
    generator = torch.Generator().manual_seed(0)
    directory = RunDirectory(path)
    tables = table_of(train), table_of(probes)
    directory.start(record_of(*tables, sketch.dim, 2, projection_dim=sketch.dim), *tables)
    for index, size in enumerate(shards):
        record = SnapshotRecord(
            index=index,
            epoch=index + 1,
            step=index + 1,
            steps=1,
            visits=1.0,
            learning_rates=(0.1, 0.03)[:groups],
            last_learning_rates=(0.1, 0.03)[:groups],
            groups={name: int(groups == 2 and name.endswith("bias")) for name in names},
            elements=sketch.dim,
        )
        store = directory.features(directory.ledger.append(record, dict(model.named_parameters())))
        store.write_sketch(sketch)
        store.write("probes", "00000", packed(range(probes), _drawn(probes, sketch.dim, repeats, generator)))
        order = torch.randperm(train, generator=generator)  # like the order that batches of similar length have
        for number, rows in enumerate(torch.split(order, size)):
            store.write("train", f"{number:05d}", packed(rows.tolist(), _drawn(len(rows), sketch.dim, repeats, generator)))
    directory.end()


def table_of(count: int) -> SampleTable:
    """Samples in turn of each language."""
    languages = tuple(LANGUAGES[index % len(LANGUAGES)] for index in range(count))
    return SampleTable(languages, (None,) * count, tuple(f"sample {index}" for index in range(count)), (None,) * count)


def _drawn(count: int, features: int, repeats: int, generator: torch.Generator) -> Tensor:
    """Features with different norms: [count, features]."""
    different = torch.randn(-(-count // repeats), features, generator=generator)
    return (different * (1 + torch.rand(len(different), 1, generator=generator))).repeat_interleave(repeats, 0)[:count]
