"""Small fits that are accounted for, and what their accounts say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_tracin import ContributionCallback
from lightning_tracin.storage.account import AccountStore
from tests.support.fits import trainer

LANGUAGES = ("de", "en", "ru")


class Tokens(Dataset[dict[str, Any]]):
    """Samples with tokens and a class; their languages are an attribute, in blocks of `run` samples."""

    def __init__(self, count: int, seed: int, run: int = 1, languages: Sequence[str] = LANGUAGES) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(31, (count, 5), generator=generator)
        self.labels = torch.randint(3, (count,), generator=generator)
        self.language = [languages[index // run % len(languages)] for index in range(count)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"tokens": self.tokens[index], "labels": self.labels[index]}


class Model(nn.Module):
    """An embedding, a norm and two heads; the second one is used only by batches with certain tokens."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.table, self.norm, self.inner = nn.Embedding(31, 4), nn.LayerNorm(4), nn.Linear(4, 6)
        self.head, self.rare, self.dropout = nn.Linear(6, 3), nn.Linear(6, 3, bias=False), nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        states = self.dropout(torch.tanh(self.inner(self.norm(self.table(tokens)))).mean(1))
        found, chosen = self.head(states), tokens[:, 0] < 4
        return torch.where(chosen[:, None], self.rare(states), found) if chosen.any() else found


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.1),
}


class Module(pl.LightningModule):
    """Classifies tokens."""

    def __init__(self, optimizer: str = "sgd", dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model, self.optimizer = Model(dropout).double(), optimizer  # before a checkpoint is loaded

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.model(batch["tokens"]), batch["labels"])

    def configure_optimizers(self) -> Any:
        return OPTIMIZERS[self.optimizer](self.parameters())


def probes() -> DataLoader[Any]:
    return DataLoader(Tokens(9, seed=2), batch_size=4)


class Resumable(DataLoader[Any]):
    """A loader that goes on in the middle of an epoch, as Lightning asks of loaders that can: batches are those of positions."""

    def __init__(self, dataset: Any, size: int, **others: Any) -> None:
        self.order = Order(len(dataset), size)
        super().__init__(dataset, batch_sampler=self.order, **others)

    def state_dict(self) -> dict[str, int]:
        return {"given": self.order.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.order.skipped = state["given"]


class Order:
    """Batches in a random order that follows from the epoch; counts those that it gave, and may skip some."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size, self.epoch, self.given, self.skipped = count, size, 0, 0, 0
        self.sampler = self  # which Lightning tells the epoch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.count // self.size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.epoch)
        order = torch.randperm(self.count, generator=generator).tolist()
        skipped, self.skipped = self.skipped % len(self), 0
        for at in range(skipped, len(self)):
            self.given = at + 1
            yield order[at * self.size : (at + 1) * self.size]


def fit(
    folder: Path,
    train: Any,
    module: pl.LightningModule | None = None,
    options: dict[str, Any] | None = None,
    callbacks: Sequence[Any] = (),
    checkpoint: Path | None = None,
    given: DataLoader[Any] | None = None,
    **settings: Any,
) -> pl.LightningModule:
    """Fit with an account in `folder / "run"`, of the probes that are given or of others."""
    module = Module() if module is None else module
    chosen = {"window": 3, "dtype": "float64", **(options or {})}
    account = ContributionCallback(folder / "run", **chosen)
    fitting = trainer(folder, [account, *callbacks], **{"precision": "64-true", "max_epochs": 2, **settings})
    fitting.fit(module, train, probes() if given is None else given, ckpt_path=checkpoint)
    return module


def numbers(folder: Path) -> list[dict[str, Any]]:
    """What the windows in `folder / "run"` say, by source instead of in the order of columns."""
    found = []
    for window in AccountStore(folder / "run").windows():
        record, tensors = window.record, window.numbers
        columns = {name: tensors["nats"][:, at] for at, name in enumerate(record.sources)}
        found.append(
            {
                "steps": (record.first_step, record.last_step, record.accounted),
                "epoch": record.epoch,
                "samples": {name: count for name, count in zip(record.sources, record.samples, strict=True) if count},
                **{f"nats of {name}": column for name, column in columns.items() if bool(column.any())},
                "before": tensors["before"],
                "after": tensors["after"],
            }
        )
    return found


def require_same(found: list[dict[str, Any]], expected: list[dict[str, Any]], close: float) -> None:
    """Two accounts say the same, but for rounding relative to the largest number of a window."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        largest = max(float(value.abs().max()) for name, value in other.items() if name.startswith("nats"))
        for name, value in other.items():
            if isinstance(value, Tensor):
                scale = largest if name.startswith("nats") else float(value.abs().max())
                difference = float((one[name] - value).abs().max())
                assert difference <= close * scale, f"{name} of steps {other['steps']}: {difference / scale:.1e}"
            else:
                assert one[name] == value, name


def loader(count: int = 20, **settings: Any) -> DataLoader[Any]:
    return DataLoader(Tokens(count, seed=1), **{"batch_size": 4, **settings})


def rows(**others: Any) -> list[dict[str, Any]]:
    dataset = Tokens(8, seed=1)
    return [{**dataset[index], **others} for index in range(8)]


def without_language(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    return torch.utils.data.default_collate([{name: sample[name] for name in ("tokens", "labels")} for sample in samples])
