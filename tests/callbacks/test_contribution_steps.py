"""What ContributionCallback takes for each language's part of the updates, in real fits, against a loop that is written out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.support import plain_optimizers as plain
from tests.support.step_fits import Module, Plain, Tokens, fitted, require_same, written_out


class Tied(nn.Module):
    """The head is the embedding itself, used without its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner = nn.Embedding(11, 4), nn.Linear(4, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return nn.functional.linear(torch.tanh(self.inner(self.table(tokens))).mean(1), self.table.weight)[:, :3]


class Attending(nn.Module):
    """`nn.MultiheadAttention` with positions first, a GRU, a convolution, and a parameter of the model's own in a module."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.attention = nn.Embedding(11, 4), nn.MultiheadAttention(4, 2)
        self.gru, self.convolution = nn.GRU(4, 4), nn.Conv1d(4, 6, 3, padding=1)
        self.scaled, self.head = Scaled(), nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        states = self.table(tokens).transpose(0, 1)  # [positions, samples, width]
        states = states + self.attention(states, states, states, need_weights=False)[0]
        states = self.gru(states)[0].permute(1, 2, 0)
        return self.head(self.scaled(self.convolution(states)).mean(2))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 6))

    def forward(self, states: Tensor) -> Tensor:
        return torch.tanh(states * self.scale[:, None])


class Checkpointed(Plain):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def forward(self, tokens: Tensor) -> Tensor:
        states = torch.utils.checkpoint.checkpoint(self._states, self.table(tokens), use_reentrant=self.reentrant)
        return self.head(states.mean(1))

    def _states(self, states: Tensor) -> Tensor:
        return torch.tanh(self.inner(self.norm(states)))


SGD = (partial(torch.optim.SGD, lr=0.1, momentum=0.9), lambda: plain.sgd(0.1, 0.9))
ADAMW = (partial(torch.optim.AdamW, lr=0.02, weight_decay=0.1), lambda: plain.adam(0.02, weight_decay=0.1, decoupled=True))

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipping by norm": {"gradient_clip_val": 0.05},
    "clipping by value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "accumulation, last one short": {"accumulate_grad_batches": 3},
    "accumulation and clipping by value": {
        "accumulate_grad_batches": 2,
        "gradient_clip_val": 0.01,
        "gradient_clip_algorithm": "value",
    },
}


@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_updates_are_split_as_a_loop_splits_them(tmp_path: Path, settings: str, optimizer: Any) -> None:
    train = Tokens(19, seed=1)
    module, other = (Module(Plain, optimizer[0]) for _ in range(2))
    spy = fitted(tmp_path, module, DataLoader(train, batch_size=4), {}, **SETTINGS[settings])
    require_same(spy, written_out(other, train, 4, 2, optimizer[1], SETTINGS[settings]))
    assert all(torch.allclose(one, two, atol=1e-12) for one, two in zip(module.parameters(), other.parameters(), strict=True))
    assert spy.account is not None
    assert spy.account.approximate is None
    assert not spy.account.remainders


MODELS: dict[str, Callable[[], nn.Module]] = {
    "tied": Tied,
    "attention, GRU, convolution, own parameter": Attending,
    "checkpointing": partial(Checkpointed, reentrant=False),
    "reentrant checkpointing": partial(Checkpointed, reentrant=True),
}


@pytest.mark.parametrize("model", MODELS)
def test_models_are_split_as_a_loop_splits_them(tmp_path: Path, model: str) -> None:
    train = Tokens(19, seed=1)
    module, other = (Module(MODELS[model], SGD[0]) for _ in range(2))
    spy = fitted(tmp_path, module, DataLoader(train, batch_size=4), {})
    require_same(spy, written_out(other, train, 4, 2, SGD[1], {}))
    assert all(torch.allclose(one, two, atol=1e-12) for one, two in zip(module.parameters(), other.parameters(), strict=True))
