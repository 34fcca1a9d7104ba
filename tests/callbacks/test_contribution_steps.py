"""What ContributionCallback takes for each language's part of the updates, in real fits, against a loop that is written out.

The loop makes one backward pass a sample, in float64, and steps with optimizers written out by hand. Its final weights are those
of the fit, so the loop itself is right.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.utils.data import DataLoader

from lightning_tracin import ContributionCallback
from lightning_tracin.attribution.accounts import DECAY, Account
from lightning_tracin.gradients.group_split import UNDIVIDED
from lightning_tracin.gradients.group_vectors import TOTAL
from tests.support import plain_optimizers as plain

LANGUAGES = ("de", "en", "ru")


class Tokens(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(11, (count, 5), generator=generator)
        self.labels = torch.randint(3, (count,), generator=generator)
        self.language = [LANGUAGES[int(i)] for i in torch.randint(3, (count,), generator=generator)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"tokens": self.tokens[index], "labels": self.labels[index]}


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.inner = nn.Embedding(11, 4), nn.LayerNorm(4), nn.Linear(4, 6)
        self.head = nn.Linear(6, 3, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(self.norm(self.table(tokens)))).mean(1))


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


Stepper = Callable[[], plain.PlainStep]


class Module(pl.LightningModule):
    """One optimizer for the weights and, in a group of its own, one for the biases."""

    def __init__(self, model: Callable[[], nn.Module], optimizer: Callable[..., torch.optim.Optimizer], schedule: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model, self.optimizer, self.schedule = model().double(), optimizer, schedule

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.model(batch["tokens"]), batch["labels"])

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        if not self.schedule:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 4))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Totals(pl.Callback):
    """Keeps the totals of the account after every batch."""

    def __init__(self) -> None:
        self.found: dict[str, dict[int, Tensor]] = {}
        self.account: Account | None = None

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        (callback,) = (one for one in trainer.callbacks if isinstance(one, ContributionCallback))  # type: ignore[attr-defined]
        self.account = callback._accounting._account
        self.found = {
            name: {source: vectors.dense(TOTAL).clone() for source, vectors in mine.items() if TOTAL in vectors}
            for name, mine in self.account.totals().items()
        }
        self.names = callback._accounting._names.known


def fitted(folder: Path, module: pl.LightningModule, train: Any, options: dict[str, Any], **settings: Any) -> Totals:
    spy = Totals()
    account = ContributionCallback(folder / "run", window=10_000, dtype="float64", **options)
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=[account, spy],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        precision=settings.pop("precision", "64-true"),
        max_epochs=settings.pop("max_epochs", 2),
        **settings,
    )
    trainer.fit(module, train, DataLoader(Tokens(9, seed=2), batch_size=4))
    return spy


def written_out(
    module: Module, dataset: Tokens, size: int, epochs: int, stepper: Stepper, settings: dict[str, Any]
) -> dict[str, dict[object, Tensor]]:
    """Fit by hand: each parameter's total update by language."""
    accumulate = settings.get("accumulate_grad_batches", 1)
    parameters = {name: one for name, one in module.named_parameters() if one.requires_grad}
    own = {name: stepper() for name in parameters}
    totals: dict[str, dict[object, Tensor]] = {name: {} for name in parameters}
    for _ in range(epochs):
        batches = [range(at, min(at + size, len(dataset))) for at in range(0, len(dataset), size)]
        for first in range(0, len(batches), accumulate):
            parts: dict[str, dict[object, Tensor]] = {name: {} for name in parameters}
            for batch in batches[first : first + accumulate]:
                for index in batch:
                    sample = {name: value[None] for name, value in dataset[index].items()}
                    loss = module.training_step(sample, 0) / len(batch) / accumulate
                    module.zero_grad()
                    loss.backward()
                    for name, parameter in parameters.items():
                        mine, language = parts[name], dataset.language[index]
                        mine[language] = mine.get(language, 0) + (torch.zeros(()) if parameter.grad is None else parameter.grad)
            whole = {name: sum(mine.values()) for name, mine in parts.items()}
            for name, parameter in parameters.items():
                parameter.grad = whole[name].expand_as(parameter).clone()
            value = settings.get("gradient_clip_val")
            if value is not None:
                clip = clip_grad_value_ if settings.get("gradient_clip_algorithm") == "value" else clip_grad_norm_
                clip(list(parameters.values()), value)
            for name, parameter in parameters.items():
                factor = torch.where(whole[name] != 0, parameter.grad / whole[name], torch.ones(()))
                clipped = {language: (factor * one).expand_as(parameter) for language, one in parts[name].items()}
                changes = own[name](clipped, parameter.detach().clone())
                with torch.no_grad():
                    for source, change in changes.items():
                        totals[name][source] = totals[name].get(source, 0) + change
                        parameter.add_(change)
    return totals


def require_same(spy: Totals, totals: dict[str, dict[object, Tensor]], close: float = 1e-7) -> None:
    for name, expected in totals.items():
        largest = max(float(one.norm()) for one in expected.values())
        for language, one in expected.items():
            source = DECAY if language == "decay" else spy.names.index(language)
            found = spy.found.get(name, {}).get(source, torch.zeros(()))
            difference = float((found - one).norm())
            assert difference <= close * max(largest, 1e-12), f"{name}, {language}: {difference / largest:.1e}"
        assert UNDIVIDED not in spy.found.get(name, {}), name


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
    module, other = (Module(Plain, optimizer[0], schedule=False) for _ in range(2))
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
    module, other = (Module(MODELS[model], SGD[0], schedule=False) for _ in range(2))
    spy = fitted(tmp_path, module, DataLoader(train, batch_size=4), {})
    require_same(spy, written_out(other, train, 4, 2, SGD[1], {}))
    assert all(torch.allclose(one, two, atol=1e-12) for one, two in zip(module.parameters(), other.parameters(), strict=True))
