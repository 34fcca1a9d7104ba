"""Where a pass runs: in a Trainer's fit, in one process, or in the processes of a Fabric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from lightning_utilities.core.rank_zero import rank_zero_info
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from lightning_tracin.attribution.processes import _Value
from lightning_tracin.errors import TracInError


@dataclass(frozen=True)
class TrainerEnvironment:
    """The processes of a fit."""

    trainer: Trainer
    module: LightningModule

    @property
    def rank(self) -> int:
        """Number of this process."""
        return self.trainer.global_rank

    @property
    def ranks(self) -> int:
        """How many processes there are."""
        return self.trainer.world_size

    def barrier(self, name: str) -> None:
        """Wait until all processes are here."""
        self.trainer.strategy.barrier(name)

    def broadcast(self, value: _Value) -> _Value:
        """Rank 0's value, on all ranks."""
        return self.trainer.strategy.broadcast(value)

    def gather(self, values: Tensor) -> Tensor:
        """Every rank's values."""
        strategy = self.trainer.strategy
        return strategy.all_gather(values.to(strategy.root_device)).cpu().view(self.ranks, *values.shape)

    def prepared(self, dtype: torch.dtype) -> Callable[[Any], Any]:
        """A function that turns a collated batch into what the fit gives a step."""
        return in_one_precision(
            lambda batch: self.trainer.strategy.batch_to_device(self.module._on_before_batch_transfer(batch)), dtype
        )

    def info(self, message: str) -> None:
        """Say something to the user, on rank 0."""
        rank_zero_info(message)


@dataclass(frozen=True)
class OneProcess:
    """This process alone, on the module's device."""

    module: LightningModule
    rank: int = 0
    ranks: int = 1

    def barrier(self, name: str) -> None:
        """Go on: nobody else is there."""

    def broadcast(self, value: _Value) -> _Value:
        """The value itself."""
        return value

    def gather(self, values: Tensor) -> Tensor:
        """The values themselves: [1, *shape]."""
        return values[None]

    def prepared(self, dtype: torch.dtype) -> Callable[[Any], Any]:
        """A function that turns a collated batch into what a fit would give a step."""
        return in_one_precision(lambda batch: to_device_of(self.module, batch), dtype)

    def info(self, message: str) -> None:
        """Say something to the user, on rank 0."""
        rank_zero_info(message)


@dataclass(frozen=True)
class FabricEnvironment:
    """The processes of a launched `lightning.fabric.Fabric` (or `lightning_fabric.Fabric`)."""

    fabric: Any
    module: LightningModule

    @property
    def rank(self) -> int:
        """Number of this process."""
        return int(self.fabric.global_rank)

    @property
    def ranks(self) -> int:
        """How many processes there are."""
        return int(self.fabric.world_size)

    def barrier(self, name: str) -> None:
        """Wait until all processes are here."""
        self.fabric.barrier(name)

    def broadcast(self, value: _Value) -> _Value:
        """Rank 0's value, on all ranks."""
        received: _Value = self.fabric.broadcast(value)
        return received

    def gather(self, values: Tensor) -> Tensor:
        """Every rank's values."""
        gathered: Tensor = self.fabric.all_gather(values)
        return gathered.cpu().view(self.ranks, *values.shape)

    def prepared(self, dtype: torch.dtype) -> Callable[[Any], Any]:
        """A function that turns a collated batch into what a fit would give a step."""
        return in_one_precision(lambda batch: to_device_of(self.module, batch), dtype)

    def info(self, message: str) -> None:
        """Say something to the user, on rank 0."""
        rank_zero_info(message)


def refuse_sharded(strategy: object, what: str, remedy: str) -> None:
    """Refuse a strategy under which ranks do not all have the whole model; known by its name, for it may not be installed.

    Args:
        strategy: a Trainer's or a Fabric's.
        what: asks for whole weights.
        remedy: the supported way.

    Raises:
        TracInError: it is not one device's, nor DDP.
    """
    strategies = {parent.__name__ for parent in type(strategy).__mro__}
    if not strategies & {"SingleDeviceStrategy", "DDPStrategy"} or "DeepSpeedStrategy" in strategies:
        raise TracInError(f"{type(strategy).__name__} shards the model, but {what} needs whole weights on every rank; {remedy}.")


def to_device_of(module: LightningModule, batch: Any) -> Any:
    """A batch on a module's device, by the module's own hooks."""
    return module._apply_batch_transfer_handler(module._on_before_batch_transfer(batch), device=module.device)


def in_one_precision(to_device: Callable[[Any], Any], dtype: torch.dtype) -> Callable[[Any], Any]:
    """A function that moves a batch to its device, with floating-point tensors in the precision of the scores."""

    def prepared(batch: Any) -> Any:
        return apply_to_collection(
            to_device(batch), Tensor, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor
        )

    return prepared
