"""Small real fits that tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.support.models import padded, ragged_samples, tiny_xlmr

LANGUAGES = ("de", "en", "ru")


class Samples(torch.utils.data.Dataset[dict[str, Any]]):
    """A map-style dataset whose languages are an attribute."""

    def __init__(self, count: int, seed: int, languages: tuple[str, ...] = LANGUAGES) -> None:
        self.samples = ragged_samples(count, seed)
        self.language = [languages[i % len(languages)] for i in range(count)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.samples[index]


class Classifier(pl.LightningModule):
    """An ordinary module: two parameter groups, warm-up and decay, logging, dropout."""

    def __init__(
        self, attention: str = "sdpa", accumulate: int = 1, steps: int = 12, rates: tuple[float, float] = (1e-2, 3e-3)
    ) -> None:
        super().__init__()
        self.model = tiny_xlmr(attention, hidden_dropout_prob=0.1)
        self.steps, self.rates = steps, rates

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.model(**batch).loss
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.model(**batch).loss)

    def configure_optimizers(self) -> Any:
        bare = [p for name, p in self.named_parameters() if name.endswith("bias")]
        rest = [p for name, p in self.named_parameters() if not name.endswith("bias")]
        optimizer = torch.optim.AdamW([{"params": rest, "lr": self.rates[0]}, {"params": bare, "lr": self.rates[1]}])
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / 4, max(0.0, (self.steps - step) / self.steps))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def loaders(train: int = 30, probes: int = 12, batch_size: int = 7) -> tuple[DataLoader[Any], DataLoader[Any]]:
    return (
        DataLoader(Samples(train, 1), batch_size=batch_size, shuffle=True, collate_fn=padded),
        DataLoader(Samples(probes, 2), batch_size=5, collate_fn=padded),
    )


def with_texts(*several: DataLoader[Any]) -> tuple[DataLoader[Any], ...]:
    """Loaders whose samples have texts: an attribute of their datasets."""
    for loader in several:
        dataset: Any = loader.dataset
        dataset.text = [f"text {index}" for index in range(len(dataset))]
    return several


class Data(pl.LightningDataModule):
    """The same loaders as a data module."""

    def __init__(self, train: int = 30, probes: int = 12) -> None:
        super().__init__()
        self.train, self.probes = train, probes

    def train_dataloader(self) -> DataLoader[Any]:
        return loaders(train=self.train)[0]

    def val_dataloader(self) -> DataLoader[Any]:
        return loaders(probes=self.probes)[1]


def trainer(root: Path, callbacks: list[Any], **settings: Any) -> pl.Trainer:
    return pl.Trainer(
        **{
            "default_root_dir": root,
            "max_epochs": 3,
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": callbacks,
            **settings,
        }
    )
