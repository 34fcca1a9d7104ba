"""Turns checkpoints of a fit without the callback into a run directory, for `attribute`."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from lightning_tracin.attribution.adam import chosen_preconditioner
from lightning_tracin.attribution.checks import checked_loss
from lightning_tracin.attribution.prepare import (
    GivenLanguages,
    Scored,
    Setup,
    dtype_of,
    opened_mask,
    read_samples,
    run_record,
    scored_names,
    verify,
)
from lightning_tracin.config import SCALED, Options
from lightning_tracin.errors import TracInError
from lightning_tracin.run import TracInRun
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.filesystem import Place, place
from lightning_tracin.storage.frozen_digest import frozen_digest
from lightning_tracin.storage.lock import RunLock
from lightning_tracin.storage.snapshots import SnapshotRecord, load_weights, weights_of
from lightning_tracin.trainer.checkpoints import Checkpoint, found_checkpoints, read_checkpoint
from lightning_tracin.trainer.environment import Environment
from lightning_tracin.trainer.isolation import isolated_copy, untouched_process
from lightning_tracin.trainer.language_warnings import warn_of_mismatch
from lightning_tracin.trainer.learning_rates import groups_of, rates_by_group
from lightning_tracin.trainer.one_fit import require_one_fit, require_same_weights
from lightning_tracin.trainer.past_rates import past_rates, unknown_rates


def import_checkpoints(
    dirpath: Place,
    checkpoints: str | Path | Iterable[str | Path],
    module: LightningModule,
    train_loader: DataLoader[Any],
    probes: Any,
    *,
    optimizers: Sequence[Optimizer] | None = None,
    changed: Collection[str] = (),
    **settings: Any,
) -> TracInRun:
    """Create a run from existing checkpoints, ordered by step; `attribute` then computes its influence.

    A Lightning checkpoint stores the learning rate of the next step. The rates before it come from the module's schedulers, where
    these give what every checkpoint holds, or from the other checkpoints. Hugging Face's Trainer logs one rate for all
    parameters; the rate of an interval is the mean of its log lines. Where the rate of every step is not known, the run's record
    says so.

    Args:
        dirpath: the run directory to create.
        checkpoints: `.ckpt` files of Lightning's ModelCheckpoint, `checkpoint-N` folders of Hugging Face's Trainer, or a folder
            that contains either. One checkpoint per step is used.
        module: a module with the parameters in the checkpoints, or with a submodule that has them; its weights do not matter.
        train_loader: a DataLoader over the fit's train samples.
        probes: a DataLoader of the probes, or several.
        optimizers: the fit's, on the parameters of `module`; they tell which parameter is in which group. None: with several
            groups, or one that has not all parameters, `module.configure_optimizers()` is called.
        changed: what the fit changed by itself, such as `weight_decay` or a hyperparameter, by the names in the error that a
            change is otherwise; an optimizer's state that was reset has the names `step` and `exp_avg_sq`.
        settings: options of `TracInCallback`, such as `language_column` or `projection_dim`.

    Returns:
        The run, without influence yet.

    Raises:
        TracInError: there is no checkpoint, one has an unknown layout or other parameters than the module, they are not of one
            fit, one holds averaged or rounded weights, the directory already contains a run, or influence cannot be computed for
            the samples or the loss.

    Example:
        Skipped: needs checkpoints and the fit's module.

        >>> run = import_checkpoints("runs/old", "checkpoints/", module, train_loader, val_loader)  # doctest: +SKIP
        >>> run = attribute(module, run, train_loader, val_loader)  # doctest: +SKIP
    """
    languages = GivenLanguages(settings.pop("languages", None), settings.pop("languages_of_probes", None))
    if isinstance(changed, str):
        raise TracInError(f"changed should be a list of names, but is the string {changed!r}.")
    options = chosen_preconditioner(Options(**{**settings, "when": "never"}), ())
    if options.preconditioner in SCALED:
        raise TracInError(
            f"preconditioner={options.preconditioner!r} needs second moments at each snapshot, which are not taken from "
            "checkpoints."
        )
    directory = RunDirectory(place(dirpath))
    with RunLock(directory.path), untouched_process(module, train_loader, probes):
        directory.refuse_other_run()
        train, chosen = read_samples(train_loader, probes, languages, options)
        warn_of_mismatch(train.table.language, chosen.table.language)
        mask = opened_mask(options.mask, module)
        names = scored_names(options, mask, module)
        ordered = _ordered(found_checkpoints(checkpoints), len(train_loader))
        for one, other in pairwise(ordered):  # without tensors, so that the first error comes soon
            require_one_fit(one, other, changed)
        identity = uuid.uuid4().hex
        ledger = directory.import_ledger(identity)
        kept = isolated_copy(module, next(module.parameters()).dtype)
        copy = isolated_copy(module, dtype_of(options))
        prepared = Environment(copy).prepared(copy, dtype_of(options))
        everything = frozenset(name for name, _ in kept.named_parameters())
        rates = past_rates(ordered, _schedules(module) if any(one.schedulers for one in ordered) else None)
        before: Checkpoint | None = None
        for index, (path, step) in enumerate((one.path, one.step) for one in ordered):
            checkpoint = read_checkpoint(path, len(train_loader))
            if before is not None:
                require_one_fit(before, checkpoint, changed)
            _require_exact(kept, checkpoint)
            load_weights(kept, _named(kept, checkpoint))
            weights = weights_of(kept, everything)
            load_weights(copy, weights)
            if index == 0:
                loss = checked_loss(copy, train, chosen, prepared, unit=options.loss_unit)
                verified = verify(copy, names, loss, train, chosen, prepared, f"at {path}")
                coverage = verified.coverage
            groups = _groups(module, names, checkpoint, optimizers)
            record = SnapshotRecord(
                index=index,
                epoch=checkpoint.epoch,
                step=step,
                steps=step - (0 if before is None else before.step),
                visits=max(0.0, checkpoint.passed - (0 if before is None else before.passed)),
                learning_rates=rates_by_group(rates[index].mean, groups),
                last_learning_rates=rates_by_group(rates[index].last, groups),
                groups=groups,
                elements=coverage.total,
                frozen=frozen_digest(kept, everything),
            )
            ledger.append(record, weights)
            before = checkpoint
        setup = Setup(options, train, chosen, loss.name, mask, deviation=verified.deviation)
        record_of_run = run_record(identity, setup, Scored.of(coverage), languages).model_copy(
            update={"not_compared": tuple(changed)}
        )
        unknown = unknown_rates(ordered, rates)
        if unknown is not None:
            warnings.warn(unknown, stacklevel=2)
            record_of_run = record_of_run.model_copy(update={"estimated_rates": unknown})
        directory.start_imported(record_of_run, train.table, chosen.table)
        return TracInRun(directory)


def _ordered(paths: Sequence[Path], batches: int) -> list[Checkpoint]:
    """One checkpoint per step, in order, without its tensors.

    Raises:
        TracInError: two checkpoints of one step differ.
    """
    found: dict[int, Checkpoint] = {}
    for path in sorted(paths):  # of equals, the first name
        checkpoint = read_checkpoint(path, batches)
        if checkpoint.step in found:
            require_same_weights(read_checkpoint(found[checkpoint.step].path, batches), checkpoint)
        if checkpoint.step not in found or checkpoint.passed < found[checkpoint.step].passed:  # after a fit, it counts one more
            found[checkpoint.step] = replace(checkpoint, weights={}, optimizers=(), callbacks={})
    return [found[step] for step in sorted(found)]


def _named(module: nn.Module, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """A checkpoint's weights under the module's own names, also if only a submodule was saved.

    Raises:
        TracInError: the parameters are not the module's.
    """
    every = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    first = {id(tensor): name for name, tensor in reversed(every.items())}
    prefixes = ["", *(f"{name}." for name, _ in module.named_modules() if name)]
    prefix = next((one for one in prefixes if all(f"{one}{name}" in every for name in checkpoint.weights)), None)
    if prefix is None:
        unknown = next((name for name in checkpoint.weights if name not in every), "")
        raise TracInError(
            f"{checkpoint.path} holds other parameters than {type(module).__name__}: {unknown!r} is not one of them, and no "
            "submodule has all parameters of the checkpoint; give the module of the fit."
        )
    found = {first[id(every[f"{prefix}{name}"])]: tensor for name, tensor in checkpoint.weights.items()}
    missing = [name for name, _ in module.named_parameters() if name not in found]
    if missing:
        raise TracInError(
            f"{checkpoint.path} holds other parameters than {type(module).__name__}: it has no {missing[0]!r} (and "
            f"{len(missing) - 1} more); give the module of the fit, and checkpoints of whole weights."
        )
    return found


def _groups(
    module: LightningModule, names: frozenset[str], checkpoint: Checkpoint, optimizers: Sequence[Optimizer] | None
) -> dict[str, int]:
    """The optimizer group of each named parameter; see `groups_of`."""
    whole = {len(list(module.parameters())), sum(one.requires_grad for one in module.parameters())}
    if checkpoint.groups is None or (len(checkpoint.groups) == 1 and checkpoint.groups[0] in whole and optimizers is None):
        return {name: 0 for name, _ in module.named_parameters() if name in names}
    if optimizers is None:
        optimizers = _configured(module)
    sizes = tuple(len(group["params"]) for optimizer in optimizers for group in optimizer.param_groups)
    if sizes != checkpoint.groups:
        saved, given = (" + ".join(map(str, each)) or "no" for each in (checkpoint.groups, sizes))
        raise TracInError(
            f"{checkpoint.path} was saved with groups of {saved} parameters, but the optimizers have {given}; give the fit's as "
            "`optimizers=[...]`."
        )
    return groups_of(module, names, optimizers)


def _schedules(module: LightningModule) -> Any:
    """What `configure_optimizers` returns for a copy of the module; None if it needs more than the module."""
    try:
        return isolated_copy(module, next(module.parameters()).dtype).configure_optimizers()
    except Exception:  # rates are then an estimate, and the record says so
        return None


def _require_exact(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Check that the module holds the checkpoint's weights without rounding."""
    own = next(module.parameters()).dtype
    for name, tensor in checkpoint.weights.items():
        if tensor.is_floating_point() and torch.promote_types(tensor.dtype, own) != own:
            raise TracInError(
                f"{checkpoint.path} holds {name!r} in {tensor.dtype}, which {own} of {type(module).__name__} would round; "
                "convert the module to the data type of the checkpoints."
            )


def _configured(module: LightningModule) -> list[Optimizer]:
    """The optimizers from `configure_optimizers`, in any of the forms that it may return."""
    try:
        made: Any = module.configure_optimizers()
    except Exception as error:
        raise TracInError(
            f"{type(module).__name__}.configure_optimizers fails without a Trainer ({error}), and the checkpoints have several "
            "groups; give the fit's optimizers as `optimizers=[...]`."
        ) from error
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], list | tuple):
        made = made[0]
    several = made if isinstance(made, list | tuple) else [made]
    return [one["optimizer"] if isinstance(one, dict) else one for one in several]
