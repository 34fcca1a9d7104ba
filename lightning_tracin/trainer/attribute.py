"""Attribution without a Trainer: computes the missing influence of a run, in this process or those of a Fabric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule
from torch.utils.data import DataLoader

from lightning_tracin.attribution.attributor import Attributor
from lightning_tracin.attribution.late_checks import check_late, require_whole
from lightning_tracin.attribution.prepare import (
    GivenLanguages,
    Setup,
    dtype_of,
    mask_of_run,
    read_samples,
    require_frozen_alike,
    require_languages,
    require_run_samples,
    require_top_k,
)
from lightning_tracin.attribution.processes import on_rank_zero, working_in
from lightning_tracin.config import Similarity, Weighting
from lightning_tracin.errors import TracInError
from lightning_tracin.run import TracInRun
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.filesystem import Place, place
from lightning_tracin.storage.snapshots import load_weights
from lightning_tracin.trainer.environment import Environment, refuse_sharded
from lightning_tracin.trainer.finish import finish
from lightning_tracin.trainer.isolation import isolated_copy, untouched_process
from lightning_tracin.trainer.language_warnings import warn_of_mismatch


def attribute(
    module: LightningModule,
    run: Place | TracInRun,
    train_loader: DataLoader[Any],
    probes: Any,
    *,
    mask: str | Path | None = None,
    languages: Sequence[str] | None = None,
    languages_of_probes: Sequence[str] | None = None,
    top_k: int | None = None,
    similarity: Similarity | None = None,
    weighting: Weighting | None = None,
    memory_budget: int | None = None,
    fabric: Any = None,
    progress: bool = True,
) -> TracInRun:
    """Compute the missing influence of a run and write its results, as the end of the fit would.

    Use it for runs with `when="never"`, for runs whose fit was killed or sharded its model, and for imported checkpoints.
    Snapshots that are complete are skipped. How samples are read and influence is computed is taken from the run's record.

    Args:
        module: a module like the fit's, not sharded. Its trainable weights are replaced by the snapshots'; its frozen
            parameters must have the fit's values.
        run: the run, or its directory.
        train_loader: a DataLoader over the fit's train samples, in the same dataset order.
        probes: the probes as the fit had them: a DataLoader, or several (its validation loaders by default).
        mask: the mask file, if the run has a mask (the run stores only its digest).
        languages: each train sample's language, if the fit was given a list.
        languages_of_probes: each probe's language, if the fit was given a list.
        top_k: see `TracInCallback`. None: as in the fit.
        similarity: of the results. None: as in the fit.
        weighting: of the results. None: as in the fit.
        memory_budget: bytes of memory for gradients of probes and train samples. None: as in the fit.
        fabric: a launched `Fabric` whose ranks share the work. None: this process alone, on the module's device.
        progress: whether to show progress bars.

    Returns:
        The completed run.

    Raises:
        TracInError: samples, mask or module differ from the run's, a snapshot has no weights, gradients cannot be computed, the
            Fabric shards the model, or, after all others are written, a result cannot be written.

    Example:
        Skipped: needs a run directory and the fit's module.

        >>> run = attribute(module, "runs/xnli", train_loader, val_loader)  # doctest: +SKIP
        >>> fabric = Fabric(devices=4, strategy="ddp")  # or with four GPUs  # doctest: +SKIP
        >>> fabric.launch()  # doctest: +SKIP
        >>> run = attribute(module, "runs/xnli", train_loader, val_loader, fabric=fabric)  # doctest: +SKIP
    """
    strategy = None
    if fabric is not None:
        refuse_sharded(fabric.strategy, "attribute", "give a Fabric with `strategy='ddp'` or a single device, or none")
        fabric.barrier("tracin_launched")  # raises an error before the launch
        strategy, progress = fabric.strategy, progress and fabric.global_rank == 0
    directory = run.directory if isinstance(run, TracInRun) else RunDirectory(place(run))
    directory.record()  # raises an error before a folder without a run is locked
    here = Environment(module, strategy)
    with working_in(directory.path, here), untouched_process(module, train_loader, probes):
        directory.reload()  # another process may have just changed it
        record, snapshots = directory.record(), directory.ledger.snapshots()
        if not snapshots:
            raise TracInError(
                f"{directory.path} has no snapshots, so there is nothing to attribute; its fit ended before the first."
            )
        shown = {"top_k": top_k, "similarity": similarity, "weighting": weighting, "report": True}
        options = record.options.but(memory_budget=memory_budget, **shown)
        require_top_k(options.top_k, record.train.count)
        given = GivenLanguages(languages, languages_of_probes)
        require_languages(directory, given)
        train, chosen = read_samples(train_loader, probes, given, options, here, progress)
        require_run_samples(directory, train, chosen, here)
        warn_of_mismatch(train.table.language, chosen.table.language)
        setup = Setup(options, train, chosen, record.loss, mask_of_run(directory, None if mask is None else Path(mask)), progress)
        require_whole(module)
        require_frozen_alike(module, snapshots)
        copy = isolated_copy(module, dtype_of(options))
        if fabric is not None:
            copy.to(fabric.device)
        processes = Environment(copy, strategy)
        if not record.loss:
            setup = replace(setup, loss=check_late(directory, copy, setup, snapshots[-1], processes))
        attributor = Attributor(directory, processes, setup)
        for snapshot in attributor.unfinished(snapshots):
            attributor.attribute_stored(copy, snapshot)

        def fitted() -> LightningModule:
            load_weights(copy, snapshots[-1].state_dict())
            return copy

        opened = TracInRun(directory)

        def written() -> None:
            remedy = finish(opened, options.view(opened.method.measure), setup, processes, fitted).remedy
            if remedy is not None:
                raise TracInError(remedy)

        on_rank_zero(processes, written)
        return opened
