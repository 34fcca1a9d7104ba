"""New probes for a run that holds projected features: only the probes themselves go through the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule

from lightning_tracin.attribution.batching import Job, Target, batches_of, shards_of
from lightning_tracin.attribution.checks import check_gradients
from lightning_tracin.attribution.losses import loss_named
from lightning_tracin.attribution.probes import probes_from_loaders
from lightning_tracin.attribution.projected import features_of
from lightning_tracin.attribution.spot_check import check_features
from lightning_tracin.config import SampleColumns
from lightning_tracin.errors import TracInError
from lightning_tracin.gradients import Capture, plan_coverage
from lightning_tracin.gradients.partition import parts_of
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.features import packed
from lightning_tracin.storage.records import SpotCheck
from lightning_tracin.storage.snapshots import load_weights
from lightning_tracin.trainer.environment import OneProcess, preparation
from lightning_tracin.trainer.isolation import isolated_copy, untouched_process


def add_probes(
    directory: RunDirectory, module: LightningModule, loaders: Any, columns: SampleColumns, languages: Sequence[str] | None = None
) -> None:
    """Compute the features of more probes at every snapshot, and make them part of the run.

    They are part of it once `run.json` says so, which is written last; what a killed process leaves is replaced by the next.

    Args:
        directory: the run.
        module: a module like the fit's; its weights do not matter.
        loaders: a DataLoader of the new probes, or several.
        columns: where the facts about them stand.
        languages: each new probe's language, given outright.

    Raises:
        TracInError: the run holds no features, a snapshot's weights were not kept, or see `probes_from_loaders`.
    """
    record = directory.record()
    settings, snapshots = record.settings, directory.ledger.snapshots()
    if settings.method != "projected":
        raise TracInError(
            f"{directory.path} holds products with its own probes only; probes can be added to a run with a `projection_dim`."
        )
    probes = probes_from_loaders(loaders, columns, languages)
    first = len(directory.samples("probes"))
    with untouched_process():
        dtype: torch.dtype = getattr(torch, settings.dtype)
        copy = isolated_copy(module, dtype)
        prepare = preparation(OneProcess(copy), dtype)
        loss = loss_named(copy, record.loss)
        job = Job(probes, probes, loss, prepare, settings.batch_size, memory_budget=0, progress=probes.progress)
        checks: dict[str, SpotCheck] = {}
        for snapshot in snapshots:
            load_weights(copy, snapshot.state_dict())
            coverage = plan_coverage(copy, frozenset(snapshot.record.groups))
            check_gradients(copy, coverage, loss, probes, prepare, "probe", f"at snapshot {snapshot.name}")
            target = Target(snapshot.name, copy, coverage, parts_of(snapshot.record.groups, settings.per_layer))
            store = directory.features(snapshot)
            store.start_addition()
            sketch = store.sketch().to(copy.device)
            with Capture(copy, coverage) as capture:
                for shard, batches in enumerate(shards_of(batches_of(probes, settings.batch_size))):
                    index, features = features_of(capture, sketch, probes, batches, "probes", target, job)
                    store.write_addition(shard, packed([first + one for one in index], features))
            checks[snapshot.name] = check_features(target, job, directory.features(snapshot, len(probes)), probes, first)
    directory.add(probes.table)
    for name, check in checks.items():
        before = directory.record().spot_checks.get(name)
        directory.note_check(name, check if before is None else before.and_also(check))
