"""Adds probes to a run with projected features: only the new probes go through the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytorch_lightning import LightningModule

from lightning_tracin.attribution.adam import on_model, stored_scales
from lightning_tracin.attribution.batching import Job, Target
from lightning_tracin.attribution.checks import checked_loss
from lightning_tracin.attribution.method import method_of
from lightning_tracin.attribution.prepare import GivenLanguages, dtype_of, require_frozen_alike, verify
from lightning_tracin.attribution.probes import probes_from_loaders
from lightning_tracin.config import SampleColumns
from lightning_tracin.errors import TracInError
from lightning_tracin.gradients.partition import parts_of
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.lock import RunLock
from lightning_tracin.storage.records import SpotCheck
from lightning_tracin.storage.snapshots import load_weights
from lightning_tracin.trainer.environment import Environment
from lightning_tracin.trainer.isolation import isolated_copy, untouched_process
from lightning_tracin.trainer.language_warnings import warn_of_mismatch


def add_probes(
    directory: RunDirectory,
    module: LightningModule,
    probes: Any,
    languages: Sequence[str] | None = None,
    language_column: str | tuple[str, ...] | None = None,
    item_column: str | None = None,
) -> None:
    """Compute what new probes add at every snapshot, and add the probes to the run.

    `run.json` is written last; without it the new probes do not count. Files of a killed process are overwritten by the next.

    Args:
        directory: the run.
        module: a module like the fit's, with the fit's values of the parameters that the fit did not train.
        probes: a DataLoader of the new probes, or several.
        languages: each new probe's language. None: read from the column.
        language_column: the column of the languages. None: the fit's.
        item_column: the column of the items. None: the fit's.

    Raises:
        TracInError: the run's method cannot add probes, a snapshot's weights were not kept, the module is another than the fit's,
            or `probes_from_loaders` raises it.
    """
    with RunLock(directory.path), untouched_process(module, probes):
        directory.reload()  # another process may have just changed it
        record = directory.record()
        options, snapshots, method = record.options, directory.ledger.snapshots(), method_of(record.options)
        if not method.adds_probes:
            raise TracInError(
                f"{directory.path} holds products with its own probes only; probes can be added to a run with a `projection_dim`."
            )
        require_frozen_alike(module, snapshots)
        columns = SampleColumns(
            language_column=language_column or options.language_column,
            item_column=item_column or options.item_column,
            text_columns=options.text_columns,
            label_column=options.label_column,
        )
        added = probes_from_loaders(probes, columns, GivenLanguages(probes=languages).probes)
        held = directory.samples("probes")
        first = len(held)
        warn_of_mismatch(directory.samples("train").language, (*held.language, *added.table.language))
        copy = isolated_copy(module, dtype_of(options))
        prepared = Environment(copy).prepared(copy, dtype_of(options))
        checks: dict[str, SpotCheck] = {}
        for snapshot in snapshots:
            groups = snapshot.record.groups
            load_weights(copy, snapshot.state_dict())
            loss = checked_loss(copy, None, added, prepared, record.known_loss, options.loss_unit)
            coverage = verify(copy, frozenset(groups), loss, None, added, prepared, f"at snapshot {snapshot.name}").coverage
            size = 1 if loss.is_of_one else options.batch_size
            job = Job(added, added, loss, prepared, size, memory_budget=0, progress=added.progress)
            scales = stored_scales(options, snapshot)
            if scales is not None:
                scales = on_model(scales, copy, dtype_of(options))
            target = Target(snapshot.name, copy, coverage, parts_of(groups, options.per_layer), scales)
            checks[snapshot.name] = method.add(target, job, directory, snapshot, first)
        directory.add(added.table)
        for name, check in checks.items():
            before = directory.record().spot_checks.get(name)
            directory.note_check(name, check if before is None else before.and_also(check))
