"""Of a fit that averages weights, the trained ones are imported, or the import is refused."""

from __future__ import annotations

from pathlib import Path

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
