"""Whitened scores weighted by learning rates agree with refits without a language, whatever the groups' rates are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_tracin import TracInCallback, TracInRun
from tests.support.fits import trainer

LANGUAGES = ("de", "en", "es", "fr", "ru", "sw")


class Related(Dataset[dict[str, Tensor]]):
    """Languages with inputs of their own, whose labels follow from rules that are partly shared."""

    def __init__(self, each: int, seed: int, without: str | None = None) -> None:
        common, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
        shared, x, y = torch.randn(8, 3, generator=common), [], []
        self.language: list[str] = []
        for language in LANGUAGES:
            mean, rule = torch.randn(8, generator=common), shared + torch.randn(8, 3, generator=common)
            inputs = torch.randn(each, 8, generator=own) + mean
            if language != without:
                x.append(inputs)
                y.append((inputs @ rule).argmax(1))
                self.language += [language] * each
        self.x, self.y = torch.cat(x), torch.cat(y)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "y": self.y[index]}


class Network(pl.LightningModule):
    def __init__(self, rates: tuple[float, float]) -> None:
        super().__init__()
        self.rates, self.embed, self.head = rates, nn.Linear(8, 6), nn.Linear(6, 3)

    def losses(self, batch: dict[str, Tensor]) -> Tensor:
        logits = self.head(torch.tanh(self.embed(batch["x"])))
        return nn.functional.cross_entropy(logits, batch["y"], reduction="none")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.losses(batch).mean()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.losses(batch)

    def configure_optimizers(self) -> Any:
        layers = zip((self.embed, self.head), self.rates, strict=True)
        return torch.optim.SGD([{"params": list(layer.parameters()), "lr": rate} for layer, rate in layers])


def loss_by_language(folder: Path, rates: tuple[float, float], without: str | None, *callbacks: pl.Callback) -> Any:
    pl.seed_everything(0)
    module, train, probes = Network(rates), Related(20, 1, without), Related(15, 2)
    data = DataLoader(train, batch_size=len(train) // 10, shuffle=True), DataLoader(probes, batch_size=50)
    trainer(folder, list(callbacks), max_epochs=6).fit(module, *data)
    with torch.no_grad():
        losses = module.losses({"x": probes.x, "y": probes.y}).numpy()
    return np.array([losses[np.array(probes.language) == language].mean() for language in LANGUAGES])


@pytest.mark.parametrize("rates", [(0.3, 0.01), (0.01, 0.3)], ids=["slow head", "slow embeddings"])
def test_signed_means_agree_with_refits(rates: tuple[float, float], tmp_path: Path) -> None:
    callback = TracInCallback(tmp_path / "run", top_k=3, projection_dim=200, preconditioner="fisher", every_n_epochs=2)
    fitted = loss_by_language(tmp_path, rates, None, callback)
    need = np.array([loss_by_language(tmp_path, rates, language) - fitted for language in LANGUAGES])
    run = TracInRun.open(tmp_path / "run")

    def agreement(similarity: Any, weighting: Any) -> float:
        influence = run.influence(similarity, weighting).groupby("train_language").mean().groupby("probe_language").mean()
        return float(np.corrcoef(influence.to_numpy().ravel(), need.ravel())[0, 1])

    assert agreement("dot", "learning_rate") > 0.8
    for similarity in ("dot", "cosine"):
        assert agreement(similarity, "learning_rate") > agreement(similarity, "uniform") - 0.05
