"""The ordinary module of the task examples: nothing in it is there for TracIn."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import Tensor


class PlainModule(pl.LightningModule):
    """Trains a model of transformers with the loss that it computes itself."""

    def __init__(self, model: torch.nn.Module, learning_rate: float = 1e-3) -> None:
        super().__init__()
        self.model, self.learning_rate = model, learning_rate

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.model(**batch).loss  # type: ignore[no-any-return]

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.model(**batch).loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate)
