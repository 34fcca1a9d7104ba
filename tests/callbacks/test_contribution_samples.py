"""With `samples=True`, an account also says what each train sample contributed by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_tracin import TracInError, TracInRun
from lightning_tracin.storage.account import AccountStore
from tests.support import plain_optimizers as plain
from tests.support.accounted_fits import OPTIMIZERS, Module, Resumable, Tokens, fit, probes
from tests.support.models import tiny_xlmr, ragged_samples, padded

#: The languages of the probes, in the order of columns.
GROUPS = ("de", "en", "ru")


def kept(folder: Path) -> Tensor:
    return AccountStore(folder / "run").samples()


def by_language(folder: Path, languages: list[str]) -> dict[tuple[str, str], float]:
    """(probe language, train language) -> sum over its samples."""
    nats = kept(folder).double()
    return {
        (probe, train): float(nats[[one == train for one in languages], column].sum())
        for column, probe in enumerate(GROUPS)
        for train in sorted(set(languages))
    }


def require_sums(folder: Path, languages: list[str], close: float = 1e-5) -> None:
    """The samples of each language add up to what the account says of it."""
    table = TracInRun.open(folder / "run").contributions(cumulative=True)
    last = table[(table["window"] == table["window"].max()) & table["is_group"]]
    expected = {(row.probe_language, row.train_language): row.nats for row in last.itertuples()}
    found = by_language(folder, languages)
    assert found.keys() == expected.keys()
    largest = max(map(abs, expected.values()))
    assert largest > 1e-3
    for pair, nats in expected.items():
        assert abs(found[pair] - nats) <= close * largest, pair


# -- against loops


class Points(Dataset[dict[str, Tensor]]):
    """Samples of a linear model with squared loss."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.inputs = torch.randn(count, 3, generator=generator, dtype=torch.float64)
        noise = 0.3 * torch.randn(count, generator=generator, dtype=torch.float64)
        self.targets = self.inputs @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + noise
        self.language = [GROUPS[index % 3] for index in range(count)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.inputs[index], "y": self.targets[index]}


class Linear(pl.LightningModule):
    def __init__(self, optimizer: Callable[[Any], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.optimizer = nn.Linear(3, 1, bias=False).double(), optimizer

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return (self.linear(batch["x"])[:, 0] - batch["y"]).square().mean()

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())


def fit_points(folder: Path, train: Points, optimizer: Callable[[Any], Any], asked: Points, **options: Any) -> Linear:
    module = Linear(optimizer)
    chosen = {"window": 1, "samples": True, "probes_per_language": None, **options}
    return fit(folder, DataLoader(train, batch_size=4), module, chosen, given=DataLoader(asked, batch_size=9))


def test_linear_model_under_sgd_has_the_closed_form(tmp_path: Path) -> None:
    """A step on a quadratic loss: the gradient in its middle is that of its beginning, and half a step of the Hessian more."""
    train, asked, rate = Points(18, seed=1), Points(9, seed=2), 0.02
    fit_points(tmp_path, train, lambda p: torch.optim.SGD(p, lr=rate), asked)
    torch.manual_seed(0)
    weights = nn.Linear(3, 1, bias=False).double().weight.detach()[0].clone()
    found, middle = torch.zeros(18, 3, dtype=torch.float64), torch.zeros(18, 3, dtype=torch.float64)
    for _ in range(2):
        for at in range(0, 18, 4):
            batch = list(range(at, min(at + 4, 18)))
            updates = {
                one: -rate * 2 / len(batch) * (train.inputs[one] @ weights - train.targets[one]) * train.inputs[one]
                for one in batch
            }
            step = sum(updates.values())
            for column, language in enumerate(GROUPS):
                mine = [one for one in range(9) if asked.language[one] == language]
                x, y = asked.inputs[mine], asked.targets[mine]
                slope, hessian = 2 * x.T @ (x @ weights - y) / len(mine), 2 * x.T @ x / len(mine)
                exact = {one: float(-(slope + hessian @ step / 2) @ update) for one, update in updates.items()}
                left = {one: float(-slope @ update) for one, update in updates.items()}
                for one in batch:
                    same = [other for other in batch if train.language[other] == train.language[one]]
                    found[one, column] += left[one] + sum(exact[other] - left[other] for other in same) / len(same)
                    middle[one, column] += exact[one]
            weights = weights + step
    assert torch.allclose(kept(tmp_path).double(), found, rtol=1e-6, atol=1e-7)
    assert float((found - middle).norm() / middle.norm()) < 0.05


def credits_by_loop(
    module: Any, train: Any, order: Callable[[], Iterator[list[int]]], stepper: Callable[[], plain.PlainStep], asked: Any
) -> Tensor:
    """Each sample as a source of its own, with its own moment: minus its part of each step times the mean of the probes' gradients
    at both ends."""
    named = dict(module.named_parameters())
    own = {name: stepper() for name in named}
    count = len(train)

    def gradients(dataset: Any, indices: list[int]) -> dict[str, Tensor]:
        batch = torch.utils.data.default_collate([dataset[index] for index in indices])
        found = torch.autograd.grad(module.training_step(batch, 0), list(named.values()), allow_unused=True)
        return {n: torch.zeros_like(named[n]) if one is None else one for n, one in zip(named, found, strict=True)}

    def slopes() -> list[dict[str, Tensor]]:
        mine = [[index for index in range(len(asked)) if asked.language[index] == language] for language in GROUPS]
        each = []
        for indices in mine:
            found = [gradients(asked, [index]) for index in indices]
            each.append({name: sum(one[name] for one in found) / len(found) for name in named})
        return each

    credits = torch.zeros(count, 3, dtype=torch.float64)
    before = slopes()
    for batch in order():
        each = {index: gradients(train, [index]) for index in batch}
        changes = {}
        for name, parameter in named.items():
            parts: dict[object, Tensor] = {index: one[name] / len(batch) for index, one in each.items()}
            changes[name] = own[name](parts, parameter.detach().clone())
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.add_(sum(changes[name].values()))
        after = slopes()
        for name in named:
            for source, change in changes[name].items():
                if isinstance(source, int):
                    for column in range(3):
                        credits[source, column] -= float(((before[column][name] + after[column][name]) / 2 * change).sum())
        before = after
    return credits


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_samples_rank_as_in_a_loop_with_a_moment_for_each(tmp_path: Path, optimizer: str) -> None:
    """Embeddings, a norm and heads, of which one is used by some samples only."""
    train, asked = Tokens(40, seed=1), Tokens(9, seed=2)
    fit(tmp_path, DataLoader(train, batch_size=4), Module(optimizer), {"window": 1, "samples": True})
    stepper = {"adamw": lambda: plain.adam(0.02, weight_decay=0.1, decoupled=True), "sgd": lambda: plain.sgd(0.1, momentum=0.9)}

    def order() -> Iterator[list[int]]:
        for _ in range(2):
            yield from ([*range(at, at + 4)] for at in range(0, 40, 4))

    expected = credits_by_loop(Module(optimizer), train, order, stepper[optimizer], asked)
    for column in range(3):
        rank = spearmanr(kept(tmp_path)[:, column], expected[:, column]).statistic
        print(
            optimizer, column, rank, float((kept(tmp_path)[:, column] - expected[:, column]).norm() / expected[:, column].norm())
        )
        assert rank >= 0.95


# -- sums


WAYS: dict[str, dict[str, Any]] = {
    "SGD": {"optimizer": "plain"},
    "momentum": {"optimizer": "sgd"},
    "AdamW, clipped by norm": {"optimizer": "adamw", "gradient_clip_val": 0.1},
    "AdamW, clipped by value": {"optimizer": "adamw", "gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "AdamW, accumulated": {"optimizer": "adamw", "accumulate_grad_batches": 2},
    "every second step": {"optimizer": "adamw", "options": {"every_n_steps": 2}},
    "windows of a step": {"optimizer": "adamw", "options": {"window": 1}},
    "a language a batch": {"optimizer": "adamw", "run": 4},
}


@pytest.mark.parametrize("way", WAYS)
def test_samples_add_up_to_their_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setitem(OPTIMIZERS, "plain", lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    chosen = {"options": {}, "run": 1, **WAYS[way]}
    options, run, optimizer = chosen.pop("options"), chosen.pop("run"), chosen.pop("optimizer")
    train = Tokens(36, seed=1, run=run)
    fit(tmp_path, DataLoader(train, batch_size=4), Module(optimizer), {"samples": True, **options}, **chosen)
    require_sums(tmp_path, train.language)
    assert all(len(set(kept(tmp_path)[:, column].tolist())) > 20 for column in range(3))
