"""Adds probes to a run with projected features: only the new probes go through the model."""

from __future__ import annotations

from pytorch_lightning import LightningModule

from lightning_tracin.attribution.batching import Job, Target
from lightning_tracin.attribution.checks import checked_loss
from lightning_tracin.attribution.method import method_of
from lightning_tracin.attribution.prepare import Sources, dtype_of, verify
from lightning_tracin.attribution.probes import probes_from_loaders
from lightning_tracin.attribution.projected import add_features
from lightning_tracin.attribution.spot_check import check_features
from lightning_tracin.config import SampleColumns
from lightning_tracin.errors import TracInError
from lightning_tracin.gradients.partition import parts_of
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.lock import RunLock
from lightning_tracin.storage.records import SpotCheck
from lightning_tracin.storage.snapshots import load_weights
from lightning_tracin.trainer.environment import Environment
from lightning_tracin.trainer.isolation import isolated_copy, untouched_process


def add_probes(directory: RunDirectory, module: LightningModule, sources: Sources, columns: SampleColumns) -> None:
    """Compute the features of new probes at every snapshot, and add the probes to the run.

    `run.json` is written last; without it the new probes do not count. Files of a killed process are overwritten by the next.

    Args:
        directory: the run.
        module: a module like the fit's; its weights do not matter.
        sources: the new probes; the train samples are not used.
        columns: which columns hold language and item.

    Raises:
        TracInError: the run has no features, a snapshot's weights were not kept, or `probes_from_loaders` raises it.
    """
    with RunLock(directory.path):
        directory.reload()  # another process may have just changed it
        record = directory.record()
        options, snapshots = record.options, directory.ledger.snapshots()
        if not method_of(options).adds_probes:
            raise TracInError(
                f"{directory.path} holds products with its own probes only; probes can be added to a run with a `projection_dim`."
            )
        probes = probes_from_loaders(sources.probes, columns, sources.languages_of_probes)
        first = len(directory.samples("probes"))
        with untouched_process():
            copy = isolated_copy(module, dtype_of(options))
            prepared = Environment(copy).prepared(dtype_of(options))
            checks: dict[str, SpotCheck] = {}
            for snapshot in snapshots:
                groups = snapshot.record.groups
                load_weights(copy, snapshot.state_dict())
                loss = checked_loss(copy, None, probes, prepared, known=record.loss)
                coverage = verify(copy, frozenset(groups), loss, None, probes, prepared, f"at snapshot {snapshot.name}")
                job = Job(probes, probes, loss, prepared, options.batch_size, memory_budget=0, progress=probes.progress)
                target = Target(snapshot.name, copy, coverage, parts_of(groups, options.per_layer))
                add_features(target, job, directory.features(snapshot), first)
                checks[snapshot.name] = check_features(target, job, directory.features(snapshot, len(probes)), probes, first)
        directory.add(probes.table)
        for name, check in checks.items():
            before = directory.record().spot_checks.get(name)
            directory.note_check(name, check if before is None else before.and_also(check))
