"""Losses in which some samples weigh more than others: scores of whole fits equal a loop over single samples, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_tracin import TracInCallback, TracInError, TracInRun
from lightning_tracin.storage.snapshots import load_weights
from tests.support.fits import Classifier, Samples, trainer
from tests.support.models import padded
from tests.support.oracles import gradient_loop, ingredients_loop

HEAVY = torch.tensor([1.0, 1.0, 20.0])


class Weighted(Classifier):
    """Weighs the third class twenty times."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, weight=HEAVY.to(logits))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return self.loss(self.model(**inputs).logits, batch["labels"])


class WeightedUnseen(Weighted):
    """The same mean, computed so that no reduction over samples is seen."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        losses, weights = F.cross_entropy(logits, labels, reduction="none"), HEAVY.to(logits)[labels]
        return torch.dot(losses, weights) / torch.dot(weights, torch.ones_like(weights))


def rare(count: int, heavy: int, seed: int) -> Samples:
    """Samples of which only the last few have the heavy class."""
    samples = Samples(count, seed)
    for index, sample in enumerate(samples.samples):
        sample["labels"] = 2 if index >= count - heavy else sample["labels"] % 2
    return samples


def fitted(folder: Path, module: pl.LightningModule, **options: Any) -> TracInRun:
    pl.seed_everything(3)
    callback = TracInCallback(folder / "run", top_k=5, preconditioner=None, **options)
    train = DataLoader(rare(60, 2, 1), batch_size=12, shuffle=True, collate_fn=padded)
    probes = DataLoader(rare(9, 1, 2), batch_size=5, collate_fn=padded)
    trainer(folder, [callback], max_epochs=1).fit(module, train, probes)
    return TracInRun.open(folder / "run")


class Tokens(Classifier):
    """A mean over the tokens of a batch: longer samples weigh more."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.head = nn.Linear(16, 60)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        hidden = self.model.roberta(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        targets = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return F.cross_entropy(self.head(hidden).transpose(1, 2), targets)


@pytest.mark.parametrize("kind", [Weighted, Tokens])
@pytest.mark.parametrize("batch_size", [1, 16])
def test_scores_of_a_fit_with_a_weighted_mean_equal_the_loop(
    tmp_path: Path, kind: Callable[[], Classifier], batch_size: int
) -> None:
    module = kind()
    run = fitted(tmp_path, module, batch_size=batch_size)
    expected = 0.0
    module.eval()
    for snapshot in run.snapshots:
        load_weights(module, snapshot.state_dict())
        groups = dict(snapshot.record.groups)
        loops = [
            gradient_loop(module, lambda sample: module.training_step(padded([sample]), 0), data.samples, list(groups))
            for data in (rare(60, 2, 1), rare(9, 1, 2))
        ]
        expected = expected + ingredients_loop(*loops, groups, max(groups.values()) + 1)[0].sum(0).numpy()
    got = run.influence("dot", "uniform").to_numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert run.record.loss == "training_step (mean)"


def test_a_weight_that_is_not_seen_is_refused_and_the_samples_are_named(tmp_path: Path) -> None:
    with pytest.raises(TracInError, match=r"no longer the mean|neither the mean nor the sum"):
        fitted(tmp_path, WeightedUnseen(), batch_size=16)
