"""With `samples=True`, an account also says what each train sample contributed by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_tracin import ContributionCallback, TracInError, TracInRun
from lightning_tracin.storage.account import AccountStore
from tests.support import plain_optimizers as plain
from tests.support.accounted_fits import OPTIMIZERS, Module, Tokens, fit, numbers, probes, require_same
from tests.support.fits import trainer

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
    module: Any,
    train: Any,
    steps: Iterator[list[int]],
    stepper: Callable[[], plain.PlainStep],
    asked: Any,
    clip: float = math.inf,
) -> Tensor:
    """Each sample as a source of its own, with its own moment: minus its part of each step times the probes' gradients.

    The gradients are the means of those at both ends of the step, and the train gradients are clipped by value.
    """
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
    for batch in steps:
        each = {index: gradients(train, [index]) for index in batch}
        changes = {}
        for name, parameter in named.items():
            parts: dict[object, Tensor] = {index: one[name] / len(batch) for index, one in each.items()}
            whole = sum(parts.values(), torch.zeros(()))
            factor = torch.where(whole == 0, 1.0, whole.clamp(-clip, clip) / whole)
            parts = {index: factor * one for index, one in parts.items()}
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


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_samples_rank_as_in_a_loop_with_a_moment_for_each(tmp_path: Path, optimizer: str) -> None:
    """Embeddings, a norm and heads, of which one is used by some samples only."""
    train, asked = Tokens(40, seed=1), Tokens(9, seed=2)
    fit(tmp_path, DataLoader(train, batch_size=4), Module(optimizer), {"window": 1, "samples": True}, max_epochs=5)
    stepper = {"adamw": lambda: plain.adam(0.02, weight_decay=0.1, decoupled=True), "sgd": lambda: plain.sgd(0.1, momentum=0.9)}

    steps = ([*range(at, at + 4)] for _ in range(5) for at in range(0, 40, 4))
    expected = credits_by_loop(Module(optimizer), train, steps, stepper[optimizer], asked)
    for column in range(3):
        rank = spearmanr(kept(tmp_path)[:, column], expected[:, column]).statistic
        assert rank >= 0.95


@pytest.mark.parametrize("clip", [math.inf, 0.01], ids=["unclipped", "clipped by value"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("optimizer", ["plain", "adam"])
def test_samples_without_a_moment_are_those_of_a_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, accumulate: int, clip: float
) -> None:
    """What is left of the difference is that of the probes' gradients at a step's two ends."""
    monkeypatch.setitem(OPTIMIZERS, "plain", lambda parameters: torch.optim.SGD(parameters, lr=0.02))
    monkeypatch.setitem(OPTIMIZERS, "adam", lambda parameters: torch.optim.Adam(parameters, lr=0.001, betas=(0.0, 0.99)))
    train, asked = Tokens(40, seed=1), Tokens(9, seed=2)
    settings = {} if clip == math.inf else {"gradient_clip_val": clip, "gradient_clip_algorithm": "value"}
    module, options = Module(optimizer), {"window": 1, "samples": True, "probes_per_language": None}
    fit(tmp_path, DataLoader(train, batch_size=4), module, options, accumulate_grad_batches=accumulate, **settings)
    stepper = {"plain": lambda: plain.sgd(0.02), "adam": lambda: plain.adam(0.001, (0.0, 0.99))}[optimizer]
    size = 4 * accumulate
    steps = ([*range(at, at + size)] for _ in range(2) for at in range(0, 40, size))
    expected = credits_by_loop(Module(optimizer), train, steps, stepper, asked, clip)
    assert float((kept(tmp_path) - expected).norm() / expected.norm()) < 0.05


# -- sums


def warming(parameters: Any) -> Any:
    """AdamW whose first step has a learning rate of zero."""
    optimizer = torch.optim.AdamW(parameters, lr=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 4))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


OTHERS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.005, momentum=0.9),
    "nesterov": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True),
    "rprop": lambda parameters: torch.optim.Rprop(parameters, lr=0.005),
    "warming": warming,
}


WAYS: dict[str, dict[str, Any]] = {
    "SGD": {"optimizer": "plain"},
    "momentum": {"optimizer": "sgd"},
    "AdamW, clipped by norm": {"optimizer": "adamw", "gradient_clip_val": 0.1},
    "AdamW, clipped by value": {"optimizer": "adamw", "gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "AdamW, accumulated": {"optimizer": "adamw", "accumulate_grad_batches": 2},
    "every second step": {"optimizer": "adamw", "options": {"every_n_steps": 2}},
    "windows of a step": {"optimizer": "adamw", "options": {"window": 1}},
    "a language a batch": {"optimizer": "adamw", "run": 4},
    "moment of scaled gradients": {"optimizer": "rmsprop"},
    "Nesterov": {"optimizer": "nesterov"},
    "no rule": {"optimizer": "rprop"},
    "rates from zero": {"optimizer": "warming"},
}


@pytest.mark.parametrize("way", WAYS)
def test_samples_add_up_to_their_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    for name, optimizer in OTHERS.items():
        monkeypatch.setitem(OPTIMIZERS, name, optimizer)
    chosen = {"options": {}, "run": 1, **WAYS[way]}
    options, run, optimizer = chosen.pop("options"), chosen.pop("run"), chosen.pop("optimizer")
    train = Tokens(36, seed=1, run=run)
    fit(tmp_path, DataLoader(train, batch_size=4), Module(optimizer), {"samples": True, **options}, **chosen)
    require_sums(tmp_path, train.language)
    assert all(len(set(kept(tmp_path)[:, column].tolist())) > 20 for column in range(3))


def test_samples_without_own_gradients_share_what_their_language_contributed(tmp_path: Path) -> None:
    """A parameter outside all layers with a rule is split by repeating the backward pass of its module."""

    class Scaled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.weight = inner, nn.Parameter(torch.ones(3, dtype=torch.float64))

        def forward(self, states: Tensor) -> Tensor:
            return self.inner(states) * self.weight

    module = Module("adamw")
    module.model.head = Scaled(module.model.head)
    train = Tokens(36, seed=1)
    fit(tmp_path, DataLoader(train, batch_size=4), module, {"samples": True})
    require_sums(tmp_path, train.language)


# -- what it is for


def test_mislabelled_sample_is_harmful_and_a_copy_of_a_probe_helpful(tmp_path: Path) -> None:
    train, asked = Points(60, seed=1), Points(9, seed=2)
    train.targets[20] = -4 * train.targets[20].sign() * max(1.0, float(train.targets[20].abs()))
    asked.inputs[:] = torch.tensor([1.5, -1.5, 1.5])
    asked.targets[:] = 5.25  # of the true weights
    train.inputs[21], train.targets[21] = asked.inputs[3], asked.targets[3]
    fit_points(tmp_path, train, lambda p: torch.optim.AdamW(p, lr=0.02), asked, window=5)
    run = TracInRun.open(tmp_path / "run")
    assert 20 in run.top(by="contribution", group="de", sign="negative", k=6)["train"].tolist()
    helpful = run.top(by="contribution", group="de", k=6)
    assert 21 in helpful["train"].tolist()
    assert helpful["score"].tolist() == pytest.approx(kept(tmp_path)[:, 0].sort(descending=True).values[:6].tolist())
    assert helpful["language"].tolist() == [train.language[index] for index in helpful["train"]]


# -- the fit, and what it cannot be used with


@pytest.mark.parametrize("settings", [{}, {"precision": "bf16-mixed"}, {"accumulate_grad_batches": 3}], ids=str)
def test_fit_and_account_are_those_without_it(tmp_path: Path, settings: dict[str, Any]) -> None:
    train = Tokens(36, seed=1, run=4)
    found = {}
    for name, options in (("with", {"samples": True}), ("without", {})):
        torch.manual_seed(3)
        module = Module("adamw", dropout=0.2)
        module = module.float() if "precision" in settings else module
        fit(tmp_path / name, DataLoader(train, batch_size=4, shuffle=True), module, options, **settings)
        found[name] = [one.detach() for one in module.parameters()], torch.get_rng_state(), numbers(tmp_path / name)
    assert all(torch.equal(one, other) for one, other in zip(found["with"][0], found["without"][0], strict=True))
    assert torch.equal(found["with"][1], found["without"][1])
    require_same(found["with"][2], found["without"][2], 1e-2 if "precision" in settings else 1e-9)
    require_sums(tmp_path / "with", train.language)


def test_given_languages_are_those_of_the_table(tmp_path: Path) -> None:
    train = Tokens(20, seed=1)
    given = train.language
    del train.language
    account = ContributionCallback(tmp_path / "run", languages=given, window=3, dtype="float64", samples=True)
    fitting = trainer(tmp_path, [account], precision="64-true", max_epochs=1)
    fitting.fit(Module(), DataLoader(train, batch_size=4), probes())
    assert list(AccountStore(tmp_path / "run").train().language) == given


class Stream(IterableDataset[dict[str, Any]]):
    def __iter__(self) -> Iterator[dict[str, Any]]:
        dataset = Tokens(20, seed=1)
        yield from ({**dataset[index], "language": dataset.language[index]} for index in range(20))


def test_stream_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TracInError, match=r"come from Stream, a stream, whose samples have no position; leave it out"):
        fit(tmp_path, DataLoader(Stream(), batch_size=4), Module(), {"samples": True})
    assert not (tmp_path / "run" / "contributions" / "account.json").exists()


def test_announces_its_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        fit(tmp_path, DataLoader(Tokens(20, seed=1), batch_size=4), Module(), {"samples": True}, max_epochs=1)
    assert "a vector of the trainable weights for each of 3 probe groups, and as many numbers for each of 20 train" in caplog.text
