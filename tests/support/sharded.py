"""Fits whose model is sharded, on the CPU, and the same fits with whole models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.utils.data import DataLoader

from lightning_tracin import TracInCallback
from tests.support.fits import Classifier, Samples, trainer
from tests.support.models import padded
from tests.support.processes import last_checkpoint


class Whole(Classifier):
    """Without dropout, so that every way of fitting it draws the same numbers: none."""

    def __init__(self, frozen: str = "", optimizer: str = "AdamW") -> None:
        super().__init__()
        self.optimizer = optimizer
        for part in self.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not frozen or frozen not in name)

    def configure_optimizers(self) -> Any:
        if self.optimizer == "SGD":
            return torch.optim.SGD(self.parameters(), lr=0.05)
        return super().configure_optimizers()


class FullySharded(Whole):
    """Sharded by `fully_shard` where there is a mesh: each layer, and the rest."""

    def configure_model(self) -> None:
        if self.device_mesh is None:
            return
        from torch.distributed.fsdp import fully_shard

        for layer in self.model.roberta.encoder.layer:
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])
        fully_shard(self.model, mesh=self.device_mesh["data_parallel"])


class NeedsMesh(Whole):
    """Sharded whether or not there is a mesh."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        mesh: Any = self.device_mesh
        fully_shard(self.model, mesh=mesh["data_parallel"])


class TensorParallel(Whole):
    """The layers' two wide matrices are split, one by rows and one by columns; on top of it, `fully_shard` where it has ranks."""

    def configure_model(self) -> None:
        if self.device_mesh is None:
            return
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        for layer in self.model.roberta.encoder.layer:
            plan = {"intermediate.dense": ColwiseParallel(), "output.dense": RowwiseParallel()}
            parallelize_module(layer, self.device_mesh["tensor_parallel"], plan)
            if self.device_mesh["data_parallel"].size() > 1:
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])


class Gathered(pl.Callback):
    """Writes the whole weights after each epoch, put together by torch, and each rank's own after the fit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        whole = get_model_state_dict(pl_module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.save(whole, self.folder / f"step{trainer.global_step}.pt")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The weights, the optimizer's state and the state of the generator."""
        for part in pl_module.modules():
            if hasattr(part, "reshard"):
                part.reshard()
        held: dict[str, Tensor] = {name: _local(one) for name, one in pl_module.named_parameters()}
        for name, parameter in pl_module.named_parameters():
            for key, value in trainer.optimizers[0].state.get(parameter, {}).items():
                held[f"{name}/{key}"] = _local(value)
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.save({**held, "generator": torch.get_rng_state()}, self.folder / f"rank{trainer.global_rank}.pt")


def _local(tensor: Tensor) -> Tensor:
    whole: Any = tensor.detach()
    return (whole.to_local() if hasattr(whole, "to_local") else whole).clone()


class Failing(pl.Callback):
    """Ends the fit with an error when an epoch begins."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            raise RuntimeError("the power is off")


class Unfreezing(pl.Callback):
    """Trains all parameters from an epoch on."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            for part in pl_module.modules():
                if hasattr(part, "reshard"):
                    part.reshard()
            pl_module.requires_grad_(True)


def sharded_loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    return (
        DataLoader(Samples(30, 1), batch_size=5, collate_fn=padded),
        DataLoader(Samples(12, 2), batch_size=5, collate_fn=padded),
    )


def fit_in_ranks(
    folder: Path, module: pl.LightningModule, callbacks: list[Any], data: int = 2, tensor: int = 1, epochs: int = 2
) -> None:
    """Fit in a process of `ranks.in_ranks`: sharded where the module has a way to be, else with DDP."""
    torch.set_num_threads(1)
    sharded = isinstance(module, FullySharded | TensorParallel)
    strategy: Any = ModelParallelStrategy(data_parallel_size=data, tensor_parallel_size=tensor) if sharded else "ddp"
    saver = ModelCheckpoint(folder / "checkpoints", filename="{epoch}", save_top_k=-1)
    several: dict[str, Any] = {"strategy": strategy, "devices": data * tensor, "enable_checkpointing": True}
    fitting = trainer(folder, [*callbacks, saver], max_epochs=epochs, **several)
    fitting.fit(module, *sharded_loaders(), ckpt_path=last_checkpoint(folder))


def watcher(folder: Path, **options: Any) -> TracInCallback:
    return TracInCallback(folder / "run", **{"top_k": 5, "batch_size": 8, **options})
