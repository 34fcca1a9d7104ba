"""Attribution without a Trainer: what is missing of a run's snapshots, in this process or those of a Fabric."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule
from torch.utils.data import DataLoader

from lightning_tracin.attribution.attributor import Attributor
from lightning_tracin.attribution.prepare import (
    Setup,
    Sources,
    dtype_of,
    mask_of_run,
    read_samples,
    require_run_samples,
    require_top_k,
)
from lightning_tracin.attribution.processes import Processes, working_in
from lightning_tracin.config import Similarity, Weighting
from lightning_tracin.errors import TracInError
from lightning_tracin.run import TracInRun
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.filesystem import Place, place
from lightning_tracin.storage.snapshots import Snapshot, frozen_digest, load_weights
from lightning_tracin.trainer.environment import FabricEnvironment, OneProcess, refuse_sharded
from lightning_tracin.trainer.finish import finish
from lightning_tracin.trainer.isolation import isolated_copy, untouched_process


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
    """Compute what is missing of every snapshot of a run, and write its results, as the end of its fit would.

    For runs of a fit with `when="never"`, runs whose fit was killed, and imported checkpoints. What is already there is not
    computed again. The run's record says how samples are read and how influence is computed.

    Args:
        module: like the fit's; the snapshots' weights replace its own, but frozen parameters are its own.
        run: the run, or its directory.
        train_loader: over the fit's train samples, in the same order of the dataset.
        probes: a DataLoader over the fit's probes, or several, as they were given to the fit (or its validation loaders).
        mask: the mask's file, where the run has one: its record holds only a digest.
        languages: each train sample's language, where the fit was given them as a list.
        languages_of_probes: each probe's language, where the fit was given them as a list.
        top_k: how many proponents count in the results; None: as the callback was told.
        similarity: of the results; None: as the callback was told.
        weighting: of the results; None: as the callback was told.
        memory_budget: bytes for the probes' gradients and a block's factors; None: as the callback was told.
        fabric: a launched `Fabric` whose ranks share the work; None: this process alone, on the module's device.
        progress: whether progress bars are shown.

    Returns:
        The run with what was computed.

    Raises:
        TracInError: samples, mask or module differ from the run's, a snapshot has no weights, gradients cannot be taken, or
            the Fabric shards the model; the message names the difference.
    """
    if fabric is not None:
        refuse_sharded(fabric.strategy, "attribute", "give a Fabric with `strategy='ddp'` or a single device, or none")
        progress = progress and fabric.global_rank == 0
    directory = RunDirectory(run.path if isinstance(run, TracInRun) else place(run))
    directory.record()  # a folder without a run is not to be locked
    here: Processes = OneProcess(module) if fabric is None else FabricEnvironment(fabric, module)
    with working_in(directory.path, here):
        directory.reload()  # another process may have worked there until now
        record, snapshots = directory.record(), directory.ledger.snapshots()
        if not snapshots:
            raise TracInError(
                f"{directory.path} has no snapshots, so there is nothing to attribute; its fit ended before the first."
            )
        options = record.options.but(top_k=top_k, similarity=similarity, weighting=weighting, memory_budget=memory_budget)
        require_top_k(options.top_k, record.train.count)
        sources = Sources(train_loader, probes, languages, languages_of_probes)
        _require_languages(directory, sources)
        train, chosen = read_samples(sources, options, here, progress)
        require_run_samples(directory, train, chosen, here)
        setup = Setup(options, train, chosen, record.loss, mask_of_run(directory, None if mask is None else Path(mask)), progress)
        _require_frozen_alike(module, snapshots)
        with untouched_process():
            copy = isolated_copy(module, dtype_of(options))
            processes: Processes = OneProcess(copy)
            if fabric is not None:
                copy.to(fabric.device)
                processes = FabricEnvironment(fabric, copy)
            attributor = Attributor(directory, processes, setup)
            for snapshot in attributor.unfinished(snapshots):
                attributor.attribute_stored(copy, snapshot)

        def fitted() -> LightningModule:
            load_weights(copy, snapshots[-1].state_dict())
            return copy

        opened = TracInRun(directory)
        if processes.rank == 0:
            finish(opened, options.view(opened.method.measure), setup, processes, fitted)
        processes.barrier("tracin_results")
        return opened


def _require_languages(directory: RunDirectory, sources: Sources) -> None:
    """Refuse to read languages from the data where the fit was given them as a list."""
    record = directory.record()
    for given, now, name in (
        (record.languages_given, sources.languages, "languages"),
        (record.languages_of_probes_given, sources.languages_of_probes, "languages_of_probes"),
    ):
        if given and now is None:
            raise TracInError(f"The fit of {directory.path} was given its `{name}` as a list; give them again: `{name}=[...]`.")


def _require_frozen_alike(module: LightningModule, snapshots: Sequence[Snapshot]) -> None:
    """Refuse a module whose frozen parameters have other values than the fit's."""
    with_weights = [snapshot for snapshot in snapshots if snapshot.kept]
    if not with_weights or with_weights[-1].record.frozen is None:
        return
    names = [snapshot.own_names for snapshot in with_weights]
    if not frozenset().union(*names) <= names[-1]:  # frozen again later: their values then are not known
        return
    if frozen_digest(module, names[-1]) != with_weights[-1].record.frozen:
        frozen = [name for name, _ in module.named_parameters() if name not in names[-1]]
        which = f"such as {frozen[0]!r}" if frozen else "of which this module has none"
        raise TracInError(
            f"The parameters that the fit did not train ({which}) are not those of the fit: the run keeps what was trained, so "
            "give a module that has the fit's other parameters, with their values (the same pre-trained weights)."
        )
