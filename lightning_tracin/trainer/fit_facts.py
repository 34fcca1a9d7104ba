"""What a Trainer says about its fit: its data, its length, and whether it averages weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning import Trainer

from lightning_tracin.attribution.adam import chosen_preconditioner
from lightning_tracin.config import Options
from lightning_tracin.storage.records import SCHEDULE


def users_objects(trainer: Trainer) -> tuple[Any, ...]:
    """What a fit's data and steps come from, and draw from."""
    return trainer.lightning_module, getattr(trainer, "datamodule", None), trainer.train_dataloader, trainer.val_dataloaders


def validation_loaders(trainer: Trainer) -> Any:
    """The fit's validation loaders, even before the Trainer has built them; None if there are none."""
    if trainer.val_dataloaders is not None:
        return trainer.val_dataloaders
    source = trainer.fit_loop.epoch_loop.val_loop._data_source
    return source.dataloader() if source.is_defined() else None


def with_preconditioner(options: Options, trainer: Trainer) -> Options:
    """The options with `preconditioner="auto"` decided, and a warning where bfloat16 decided it.

    Raises:
        TracInError: the options ask for Adam's metric in bfloat16.
    """
    precise = chosen_preconditioner(options.but(dtype="float32"), trainer.optimizers)
    options = chosen_preconditioner(options, trainer.optimizers)
    if options.preconditioner != precise.preconditioner:
        rank_zero_warn(
            "TracIn: scores are those of plain gradients, because rounding in dtype='bfloat16' is larger than what Adam scales "
            "up. For the default's scores, take dtype='float32'."
        )
    return options


def data_replicas(trainer: Trainer) -> int:
    """The number of processes that train on different samples: those of a tensor-parallel group share theirs."""
    sharing = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {}
    return int(sharing.get("num_replicas", trainer.world_size))


def averaging_callback(callbacks: Sequence[Any]) -> str | None:
    """Class name of the first callback that averages weights: one of Lightning's, or a subclass. None if there is none.

    Example:
        >>> from pytorch_lightning.callbacks import StochasticWeightAveraging, Timer
        >>> averaging_callback([Timer(), StochasticWeightAveraging(0.01)])
        'StochasticWeightAveraging'
    """
    kinds = {"StochasticWeightAveraging", "WeightAveraging"}  # by name: both Lightning packages have these classes
    found = (one for one in callbacks if kinds & {parent.__name__ for parent in type(one).__mro__})
    return next((type(one).__name__ for one in found), None)


def expected_snapshots(options: Options, trainer: Trainer) -> int | None:
    """The number of snapshots that the fit will take; None if its length is unknown."""
    if options.every_n_train_steps is not None:
        steps = trainer.estimated_stepping_batches
        return None if steps == float("inf") else -(-int(steps) // options.every_n_train_steps)
    if trainer.max_epochs is None or trainer.max_epochs < 0 or options.every_n_epochs is None:
        return None
    return -(-trainer.max_epochs // options.every_n_epochs)


def changed_schedule(before: Options, now: Options) -> str | None:
    """Say that a resumed fit takes snapshots at other times than before; None if it does not.

    Example:
        >>> changed_schedule(Options(every_n_epochs=2), Options(every_n_train_steps=100))
        'TracIn: the run goes on with every_n_train_steps=100; its snapshots so far were taken with every_n_epochs=2.'
        >>> changed_schedule(Options(), Options(every_n_epochs=1))
    """
    schedules = [{name: getattr(one, name) for name in SCHEDULE if getattr(one, name)} for one in (before, now)]
    if schedules[0] == schedules[1]:
        return None
    old, new = (", ".join(f"{name}={every}" for name, every in schedule.items()) for schedule in schedules)
    return f"TracIn: the run goes on with {new}; its snapshots so far were taken with {old}."
