"""The memory that an account announces before the fit is what its vectors take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_tracin import ContributionCallback
from lightning_tracin.attribution.account_memory import AccountMemory, account_memory
from lightning_tracin.attribution.accounts import Account
from tests.support.accounted_fits import LANGUAGES, Module, Tokens, fit

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, weight_decay=0.1),
    "adam without decay": lambda parameters: torch.optim.Adam(parameters),
    "adam with coupled decay": lambda parameters: torch.optim.Adam(parameters, weight_decay=0.1),
    "sgd with momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
}


class Wide(Module):
    """All weights have gradients in every step."""

    def __init__(self, make: Callable[[Any], torch.optim.Optimizer]) -> None:
        super().__init__()
        self.make = make
        self.model: Any = nn.Sequential(
            nn.Embedding(31, 4), nn.Flatten(), nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 3)
        ).double()

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters())


class Look(pl.Callback):
    """Takes the account, and what is announced of its memory, from the fit."""

    account: Account
    memory: AccountMemory
    weights: int

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        (callback,) = (one for one in trainer.callbacks if isinstance(one, ContributionCallback))  # type: ignore[attr-defined]
        self.account = callback.accounting.account
        self.memory = account_memory(self.account.split, self.account.optimizers)
        self.weights = sum(one.nbytes for one in pl_module.parameters())


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_announced_memory_is_taken_and_no_more(tmp_path, make):
    look = Look()
    fit(tmp_path, DataLoader(Tokens(36, seed=1), batch_size=6), Wide(make), callbacks=[look])
    account, memory = look.account, look.memory
    taken = account.most_bytes - account.most_of_rows + look.weights
    assert 0.9 * memory.known(len(LANGUAGES)) <= taken <= memory.known(len(LANGUAGES))
    assert 0 < account.most_of_rows <= memory.of_rows(len(LANGUAGES))
