"""The processes of a pass: those of a Trainer's fit, those of a Fabric, or this one alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from lightning_utilities.core.rank_zero import rank_zero_info
from pytorch_lightning import LightningModule
from torch import Tensor

from lightning_tracin.attribution.processes import Value
from lightning_tracin.errors import TracInError
from lightning_tracin.trainer.isolation import set_moment


@dataclass(frozen=True)
class Environment:
    """The processes of a strategy, which the Trainers and the Fabrics of both Lightning packages give.

    Attributes:
        module: the user's module, whose device batches go to without a strategy.
        strategy: a Trainer's, or a launched Fabric's. None: this process alone, on the module's device.
    """

    module: LightningModule
    strategy: Any = None

    @property
    def rank(self) -> int:
        """Rank of this process."""
        return int(getattr(self.strategy, "global_rank", 0))

    @property
    def ranks(self) -> int:
        """Number of processes."""
        return int(getattr(self.strategy, "world_size", 1))

    def barrier(self, name: str) -> None:
        """Wait for all processes."""
        if self.strategy is not None:
            self.strategy.barrier(name)

    def broadcast(self, value: Value) -> Value:
        """Rank 0's value, on all ranks."""
        received: Value = value if self.strategy is None else self.strategy.broadcast(value)
        return received

    def gather(self, values: Tensor) -> Tensor:
        """The values of all ranks: [ranks, *shape], on the CPU."""
        gathered: Tensor = values if self.strategy is None else self.strategy.all_gather(values.to(self.strategy.root_device))
        return gathered.cpu().view(self.ranks, *values.shape)

    def set_moment(self, model: LightningModule, epoch: int, step: int | None) -> None:
        """Make an isolated copy see an epoch (from 0) and step of its fit."""
        set_moment(model, epoch, step)

    def prepared(self, model: LightningModule, dtype: torch.dtype) -> Callable[[Any], Any]:
        """A function that passes a collated batch through a copy's transfer hooks and casts its floating-point tensors.

        Args:
            model: the isolated copy.
            dtype: of the tensors.
        """

        def prepare(batch: Any) -> Any:
            device = self.module.device if self.strategy is None else self.strategy.root_device
            moved = model._apply_batch_transfer_handler(model._on_before_batch_transfer(batch), device=device)
            return apply_to_collection(moved, Tensor, lambda one: one.to(dtype) if one.is_floating_point() else one)

        return prepare

    def info(self, message: str) -> None:
        """Print a message, on rank 0 only."""
        rank_zero_info(message)


def is_sharding(strategy: object) -> bool:
    """Whether ranks may hold parts of the model only. Strategies are known by name, because their package may not be installed.

    Args:
        strategy: a Trainer's or a Fabric's.

    Example:
        >>> class FSDPStrategy: ...
        >>> class DDPStrategy: ...
        >>> is_sharding(FSDPStrategy()), is_sharding(DDPStrategy())
        (True, False)
    """
    strategies = _names_of(strategy)
    return not strategies & {"SingleDeviceStrategy", "DDPStrategy"} or "DeepSpeedStrategy" in strategies


def has_pieces(strategy: object) -> bool:
    """Whether the ranks' parts of the model can be read tensor by tensor: torch's DTensors, under ModelParallelStrategy.

    Example:
        >>> class ModelParallelStrategy: ...
        >>> has_pieces(ModelParallelStrategy())
        True
    """
    return "ModelParallelStrategy" in _names_of(strategy)


def _names_of(strategy: object) -> set[str]:
    return {parent.__name__ for parent in type(strategy).__mro__}


def refuse_sharded(strategy: object, what: str, remedy: str) -> None:
    """Check that every rank has the whole model.

    Args:
        strategy: a Trainer's or a Fabric's.
        what: name of what needs whole weights, for the message.
        remedy: what to use instead, for the message.

    Raises:
        TracInError: the strategy is neither a single device nor DDP.

    Example:
        >>> class FSDPStrategy: ...
        >>> try:
        ...     refuse_sharded(FSDPStrategy(), "attribute", "use DDP")
        ... except TracInError as error:
        ...     print(error)
        FSDPStrategy shards the model, but attribute needs whole weights on every rank; use DDP.
    """
    if is_sharding(strategy):
        raise TracInError(f"{type(strategy).__name__} shards the model, but {what} needs whole weights on every rank; {remedy}.")
