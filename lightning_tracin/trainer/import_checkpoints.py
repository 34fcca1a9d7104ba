"""Checkpoints of a fit that had no callback, taken into a run directory on which `attribute` works."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from lightning_tracin.attribution.checks import checked_loss
from lightning_tracin.attribution.prepare import (
    Setup,
    Sources,
    dtype_of,
    opened_mask,
    read_samples,
    run_record,
    scored_names,
    snapshot_record,
    verify,
)
from lightning_tracin.config import Options
from lightning_tracin.errors import TracInError
from lightning_tracin.run import TracInRun
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.filesystem import Place, place
from lightning_tracin.storage.lock import RunLock
from lightning_tracin.storage.snapshots import frozen_digest, load_weights, weights_of
from lightning_tracin.trainer.checkpoints import Checkpoint, found_checkpoints, read_checkpoint
from lightning_tracin.trainer.environment import OneProcess
from lightning_tracin.trainer.isolation import isolated_copy, untouched_process
from lightning_tracin.trainer.learning_rates import group_of_parameters


def import_checkpoints(
    dirpath: Place,
    checkpoints: str | Path | Iterable[str | Path],
    module: LightningModule,
    train_loader: DataLoader[Any],
    probes: Any,
    *,
    optimizers: Sequence[Optimizer] | None = None,
    **settings: Any,
) -> TracInRun:
    """Make a run directory of existing checkpoints, in the order of their steps; `attribute` then computes influence.

    Learning rates are those of Lightning's optimizer states, of each group the mean of the rates at both ends of the interval
    between two checkpoints; or the mean of those that Hugging Face's Trainer logged in it, one for all parameters.

    Args:
        dirpath: where the run goes.
        checkpoints: `.ckpt` files of Lightning's ModelCheckpoint, `checkpoint-N` folders of Hugging Face's Trainer, or a folder
            that holds either; of several with the same step one is taken.
        module: whose parameters (or those of a model within it) the checkpoints hold; its own values do not matter.
        train_loader: over the fit's train samples.
        probes: a DataLoader of the probes, or several.
        optimizers: of the fit, on the parameters of `module`, for which parameter is in which group; None asks
            `module.configure_optimizers()` where there are several groups.
        settings: what `TracInCallback` takes, such as `language_column` or `projection_dim`.

    Returns:
        The run, without ingredients.

    Raises:
        TracInError: there is no checkpoint, one is of an unknown layout or holds other parameters than the module, the
            directory holds a run, or samples and loss are not what influence can be computed for.
    """
    sources = Sources(train_loader, probes, settings.pop("languages", None), settings.pop("languages_of_probes", None))
    options = Options(**{**settings, "when": "never"})
    if options.preconditioner == "adam":
        raise TracInError("preconditioner='adam' needs second moments at each snapshot, which are not taken from checkpoints.")
    directory = RunDirectory(place(dirpath))
    with RunLock(directory.path):
        directory.refuse_other_run()
        train, chosen = read_samples(sources, options)
        mask = opened_mask(options.mask, module)
        names = scored_names(options, mask, module)
        ordered = _ordered(found_checkpoints(checkpoints), len(train_loader))
        identity = uuid.uuid4().hex
        ledger = directory.import_ledger(identity)
        with untouched_process():
            kept = isolated_copy(module, next(module.parameters()).dtype)
            copy = isolated_copy(module, dtype_of(options))
            prepared = OneProcess(copy).prepared(dtype_of(options))
            everything = frozenset(name for name, _ in kept.named_parameters())
            before: Checkpoint | None = None
            for index, (path, step) in enumerate(ordered):
                checkpoint = read_checkpoint(path, len(train_loader))
                load_weights(kept, _named(kept, checkpoint))
                weights = weights_of(kept, everything)
                load_weights(copy, weights)
                if index == 0:
                    loss = checked_loss(copy, train, chosen, prepared)
                    coverage = verify(copy, names, loss, train, chosen, prepared, f"at {path}")
                record = snapshot_record(
                    index,
                    epoch=checkpoint.epoch,
                    step=step,
                    steps=step - (0 if before is None else before.step),
                    visits=max(0.0, checkpoint.passed - (0 if before is None else before.passed)),
                    rates=checkpoint.mean_rates(before),
                    last_rates=checkpoint.rates,
                    groups=_groups(module, names, checkpoint, optimizers),
                    elements=coverage.total,
                    frozen=frozen_digest(kept, everything),
                )
                ledger.append(record, weights)
                before = checkpoint
        setup = Setup(options, train, chosen, loss.name, mask)
        directory.start_imported(run_record(identity, setup, coverage, sources), train.table, chosen.table)
        return TracInRun(directory)


def _ordered(paths: Sequence[Path], batches: int) -> list[tuple[Path, int]]:
    """Checkpoints and their steps in order, one of each step."""
    steps: dict[int, Path] = {}
    for path in sorted(paths):
        steps.setdefault(read_checkpoint(path, batches).step, path)
    return [(path, step) for step, path in sorted(steps.items())]


def _named(module: nn.Module, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """A checkpoint's weights by the module's own names; those of a model within it, where that was saved alone.

    Raises:
        TracInError: they are others than the module's.
    """
    every = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    first = {id(tensor): name for name, tensor in reversed(every.items())}
    prefixes = ["", *(f"{name}." for name, _ in module.named_modules() if name)]
    prefix = next((one for one in prefixes if all(f"{one}{name}" in every for name in checkpoint.weights)), None)
    if prefix is None:
        unknown = next((name for name in checkpoint.weights if name not in every), "")
        raise TracInError(
            f"{checkpoint.path} holds other parameters than {type(module).__name__}: {unknown!r} is none of it, nor are they all "
            "those of a model within it; give the module of the fit."
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
    """The group of each of the named parameters in the module's order; one more group for those that no optimizer moves."""
    ordered = [name for name, _ in module.named_parameters() if name in names]
    if checkpoint.groups is None or (len(checkpoint.groups) == 1 and optimizers is None):
        return dict.fromkeys(ordered, 0)
    if optimizers is None:
        optimizers = _configured(module)
    sizes = tuple(len(group["params"]) for optimizer in optimizers for group in optimizer.param_groups)
    if sizes != checkpoint.groups:
        raise TracInError(
            f"{checkpoint.path} was saved with groups of {_listed(checkpoint.groups)} parameters, but the optimizers have "
            f"{_listed(sizes)}; give the fit's as `optimizers=[...]`."
        )
    numbered = group_of_parameters(optimizers)
    parameters: Mapping[str, nn.Parameter] = dict(module.named_parameters())
    return {name: numbered.get(id(parameters[name]), len(sizes)) for name in ordered}


def _configured(module: LightningModule) -> list[Optimizer]:
    """The optimizers that the module makes, whichever form `configure_optimizers` has."""
    try:
        made: Any = module.configure_optimizers()
    except Exception as error:
        raise TracInError(
            f"{type(module).__name__}.configure_optimizers cannot be asked without a Trainer ({error}), and the checkpoints have "
            "several groups; give the fit's optimizers as `optimizers=[...]`."
        ) from error
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], list | tuple):
        made = made[0]
    several = made if isinstance(made, list | tuple) else [made]
    return [one["optimizer"] if isinstance(one, dict) else one for one in several]


def _listed(sizes: Sequence[int]) -> str:
    return " + ".join(map(str, sizes)) or "no"
