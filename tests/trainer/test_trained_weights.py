"""Of a fit that averages weights, the trained ones are imported, or the import is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, StochasticWeightAveraging

from lightning_tracin import TracInError
from lightning_tracin.trainer.checkpoints import read_checkpoint
from tests.support.fits import Classifier, loaders, trainer


class Plain(Classifier):
    """With an optimizer alone, as averaging wants it."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-2)


class Keeper(pl.Callback):
    """Keeps the trained weights of every step."""

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: object) -> None:
        self.weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["EMAWeightAveraging", "WeightAveraging", "StochasticWeightAveraging"])
def test_trained_weights_are_taken_and_averaged_ones_refused(tmp_path: Path, kind: str) -> None:
    callbacks = pytest.importorskip("pytorch_lightning.callbacks.weight_averaging")
    averaging = StochasticWeightAveraging(1e-2, 1) if kind.startswith("Stochastic") else getattr(callbacks, kind)()
    keeper, saver = Keeper(), ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1)
    fit = trainer(tmp_path, [averaging, keeper, saver], enable_checkpointing=True, max_epochs=3)
    fit.fit(Plain(), *loaders())
    read = read_checkpoint(tmp_path / "step=15.ckpt", 5).weights
    assert read.keys() == keeper.weights.keys()
    assert all(torch.equal(read[name], keeper.weights[name]) for name in read)
    fit.save_checkpoint(tmp_path / "after.ckpt")
    saved = torch.load(tmp_path / "after.ckpt", weights_only=True)
    if "current_model_state" not in saved:
        with pytest.raises(TracInError, match=r"after\.ckpt holds .*averaged.*, not the trained ones; give checkpoints"):
            read_checkpoint(tmp_path / "after.ckpt", 5)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_converted_weights_are_refused(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, filename="{step}")
    trainer(tmp_path, [saver], enable_checkpointing=True, max_epochs=1).fit(Plain(), *loaders())
    saved = torch.load(tmp_path / "step=5.ckpt", weights_only=True)
    saved["state_dict"] = {name: tensor.to(torch.bfloat16) for name, tensor in saved["state_dict"].items()}
    torch.save(saved, tmp_path / "half.ckpt")
    with pytest.raises(TracInError, match=r"holds weights in torch\.bfloat16, but its optimizer trained them in torch\.float32"):
        read_checkpoint(tmp_path / "half.ckpt", 5)


class OwnAverage(pl.Callback):
    """A moving average as third parties write it: kept in the checkpoint, and, with `swaps`, in place of the trained weights."""

    def __init__(self, layout: str, swaps: bool) -> None:
        self.layout, self.swaps = layout, swaps
        self.average: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: object) -> None:
        for name, tensor in module.state_dict().items():
            kept = self.average.setdefault(name, tensor.clone())
            if tensor.is_floating_point():
                kept.lerp_(tensor, 0.5)

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        average = {name: tensor.clone() for name, tensor in self.average.items()}
        if self.layout == "list":  # as torch_ema
            parameters = [average[name] for name, _ in module.named_parameters()]
            checkpoint["ema"] = {"decay": 0.5, "num_updates": 1, "shadow_params": parameters}
        elif self.layout == "prefix":  # as torch's AveragedModel
            checkpoint["averaged_model"] = {f"module.{name}": tensor for name, tensor in average.items()}
        else:
            checkpoint["state"] = {"callback": {"ema_state_dict": average}}
        if self.swaps:
            checkpoint["state_dict"] = average


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("layout", ["list", "prefix", "nested"])
@pytest.mark.parametrize("swaps", [False, True])
def test_averages_of_third_parties_are_refused_only_in_place_of_the_trained_weights(
    tmp_path: Path, layout: str, swaps: bool
) -> None:
    keeper, saver = Keeper(), ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1)
    fit = trainer(tmp_path, [OwnAverage(layout, swaps), keeper, saver], enable_checkpointing=True, max_epochs=2)
    fit.fit(Plain(), *loaders())
    if swaps:
        with pytest.raises(
            TracInError, match=r"step=10\.ckpt holds averaged weights, the same as in its .*, not the trained ones"
        ):
            read_checkpoint(tmp_path / "step=10.ckpt", 5)
        return
    read = read_checkpoint(tmp_path / "step=10.ckpt", 5).weights
    assert all(torch.equal(read[name], keeper.weights[name]) for name in read)
