"""Attribution without a Trainer: what is missing of a run's snapshots, in this process or those of a Fabric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch.utils.data import DataLoader

from lightning_tracin.attribution.attributor import Attributor, Pass
from lightning_tracin.attribution.checks import checked_loss
from lightning_tracin.attribution.masks import Mask, read_mask
from lightning_tracin.attribution.probes import chosen_probes, probes_from_loaders
from lightning_tracin.attribution.processes import Processes, done_by_first, working_in
from lightning_tracin.attribution.samples import SampleSet, from_loader, measured
from lightning_tracin.config import SampleColumns, Similarity, View, Weighting
from lightning_tracin.errors import TracInError
from lightning_tracin.run import TracInRun
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.filesystem import Place, place
from lightning_tracin.storage.records import RunRecord, known_samples
from lightning_tracin.storage.sample_table import SampleTable
from lightning_tracin.storage.snapshots import Snapshot, frozen_digest, load_weights
from lightning_tracin.trainer.environment import FabricEnvironment, OneProcess, preparation, refuse_sharded
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

    For runs of a fit with `when="never"`, of one that was killed, and of imported checkpoints. What is there is not computed
    again. How samples are read and influence is computed stands in the run's record.

    Args:
        module: like the fit's; the snapshots' weights take the place of its own, but frozen parameters are its own.
        run: the run, or its directory.
        train_loader: over the fit's train samples, in the same order of the dataset.
        probes: a DataLoader over the fit's probes, or several, as they were given to the fit (or its validation loaders).
        mask: the mask's file, where the run has one: its record holds a digest only.
        languages: each train sample's language, where these were given outright.
        languages_of_probes: each probe's language, where these were given outright.
        top_k: how many proponents count in the results; None = as the callback was told.
        similarity: of the results; None = as the callback was told.
        weighting: of the results; None = as the callback was told.
        memory_budget: bytes that the probes' gradients and a block's factors may take; None = as the callback was told.
        fabric: a launched `Fabric` whose ranks share the work; None = this process alone, on the module's device.
        progress: whether bars are shown.

    Returns:
        The run as it is now.

    Raises:
        TracInError: samples, mask or module differ from the run's, a snapshot has no weights, gradients cannot be taken, or
            the Fabric shards the model; the message names the difference.
    """
    if fabric is not None:
        refuse_sharded(fabric.strategy, "attribute", "give a Fabric with `strategy='ddp'` or a single device, or none")
    directory = run.directory if isinstance(run, TracInRun) else RunDirectory(place(run))
    directory.record()  # a folder without a run is not to be locked
    here: Processes = OneProcess(module) if fabric is None else FabricEnvironment(fabric, module)
    with working_in(directory.path, here):
        record, snapshots = directory.record(), directory.ledger.snapshots()
        if not snapshots:
            raise TracInError(
                f"{directory.path} has no snapshots, so there is nothing to attribute; its fit ended before the first."
            )
        view = _view(record, top_k, similarity, weighting)
        progress = progress and (fabric is None or fabric.global_rank == 0)
        train, probe_set = _samples(directory, record, train_loader, probes, languages, languages_of_probes, here)
        chosen_mask = _mask(directory, record, mask)
        _require_frozen_alike(module, snapshots)
        with untouched_process():
            copy = isolated_copy(module, getattr(torch, record.settings.dtype))
            environment: Processes = OneProcess(copy)
            if fabric is not None:
                copy.to(fabric.device)
                environment = FabricEnvironment(fabric, copy)
            work = Pass(
                train=measured(replace(train, progress=progress), here),
                probes=probe_set,
                settings=record.settings,
                loss=record.loss,
                mask=chosen_mask,
                memory_budget=record.choices.memory_budget if memory_budget is None else memory_budget,
                progress=progress,
            )
            attributor = Attributor(directory, environment, work)
            for number, snapshot in enumerate(attributor.unfinished(snapshots)):
                if number == 0:
                    _require_same_loss(copy, snapshot, environment, work)
                attributor.attribute_stored(copy, snapshot)

        def fitted() -> LightningModule:
            load_weights(copy, snapshots[-1].state_dict())
            return copy

        attributor.write_results(view, fitted)
        environment.barrier("tracin_results")
        return TracInRun(directory)


def _view(record: RunRecord, top_k: int | None, similarity: Similarity | None, weighting: Weighting | None) -> View:
    choices = record.choices
    view = View(
        choices.top_k if top_k is None else top_k,
        similarity or choices.similarity,
        weighting or choices.weighting,
        "mean" if record.settings.method == "means" else "share",
    )
    if view.top_k > record.train.count:
        raise TracInError(
            f"top_k={view.top_k} is larger than the train set ({record.train.count} samples); choose a smaller `top_k`."
        )
    return view


def _samples(
    directory: RunDirectory,
    record: RunRecord,
    train_loader: Any,
    probes: Any,
    languages: Sequence[str] | None,
    languages_of_probes: Sequence[str] | None,
    environment: Processes,
) -> tuple[SampleSet, SampleSet]:
    """Train samples and probes, which are those of the run."""
    choices = record.choices
    for given, now, name in (
        (choices.languages_given, languages, "languages"),
        (choices.languages_of_probes_given, languages_of_probes, "languages_of_probes"),
    ):
        if given and now is None:
            raise TracInError(f"The fit of {directory.path} was given its `{name}` outright; give them again: `{name}=[...]`.")
    columns = SampleColumns(choices.language_column, choices.item_column, choices.text_columns, choices.label_column)
    train = from_loader(train_loader, columns, "train samples", languages, environment)
    chosen = chosen_probes(
        probes_from_loaders(probes, columns, languages_of_probes, environment),
        choices.probe_languages,
        choices.max_probes_per_language,
    )

    def require_those_of_the_run() -> None:
        require_same_samples(train.table, directory.samples("train"), "train sample", directory.path)
        held = directory.samples("probes").take(range(record.probes.count))  # without those that were added
        require_same_samples(chosen.table, held, "probe", directory.path)

    done_by_first(environment, require_those_of_the_run)
    return train, chosen


def require_same_samples(found: SampleTable, held: SampleTable, kind: str, path: Path) -> None:
    """Refuse samples that are not a run's.

    Args:
        found: the samples.
        held: the run's.
        kind: "train sample" or "probe".
        path: of the run.

    Raises:
        TracInError: they differ; the message names the first difference.
    """
    if known_samples(found) == known_samples(held):
        return
    remedy = "Give the data of the fit, in the same order."
    if len(found) != len(held):
        raise TracInError(f"{path} is a run on {len(held)} {kind}s, but there are {len(found)}. {remedy}")
    for index, (ours, theirs) in enumerate(zip(found.rows(), held.rows(), strict=True)):
        for column, value in theirs.items():
            if ours[column] != value:
                raise TracInError(
                    f"{kind.capitalize()} {index} has the {column} {ours[column]!r}, but {value!r} in the run {path}. {remedy}"
                )


def _mask(directory: RunDirectory, record: RunRecord, path: str | Path | None) -> Mask | None:
    """The run's mask, read again."""
    digest = record.settings.mask
    if path is None:
        if digest is not None:
            raise TracInError(f"{directory.path} has a mask, of which a run keeps a digest only; give the file as `mask=`.")
        return None
    if digest is None:
        raise TracInError(f"{directory.path} has no mask, but mask={str(path)!r} was given; leave it out.")
    mask = read_mask(Path(path))
    if mask.sha256 != digest:
        raise TracInError(
            f"The mask {path} is not the one of the run {directory.path}: its digest is {mask.sha256[:12]}..., the run's "
            f"{digest[:12]}...; give the file that the fit had."
        )
    return mask


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


def _require_same_loss(copy: LightningModule, snapshot: Snapshot, environment: Processes, work: Pass) -> None:
    """Refuse a module whose loss is another than the fit's."""
    load_weights(copy, snapshot.state_dict())
    found = checked_loss(copy, work.train, work.probes, preparation(environment, work.dtype))
    if found.name != work.loss:
        raise TracInError(
            f"The loss of {type(copy).__name__} is {found.name}, but the run's is {work.loss}; give a module with the fit's loss."
        )
