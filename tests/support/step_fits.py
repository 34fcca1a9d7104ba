"""Real fits with a ContributionCallback whose every part of every update is kept, and the same fits written out by hand.

The written-out fit makes one backward pass a sample, in float64, and steps with optimizers written out from their papers
(`plain_optimizers`). Its final weights are those of the fit, so the oracle itself is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.utils.data import DataLoader

from lightning_tracin import ContributionCallback
from lightning_tracin.attribution.accounts import DECAY, MOMENTUM, Account
from lightning_tracin.gradients.group_split import UNDIVIDED
from lightning_tracin.gradients.group_vectors import TOTAL
from tests.support import plain_optimizers as plain

LANGUAGES = ("de", "en", "ru")


#: Samples of a batch.
SIZE = 4


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


class Bag(nn.Module):
    """Its embedding has sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(11, 4, sparse=True), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.table(tokens)).mean(1))


class Module(pl.LightningModule):
    """A classifier with an optimizer for all of its parameters."""

    def __init__(self, model: Callable[[], nn.Module], optimizer: Callable[..., torch.optim.Optimizer] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model, self.optimizer = model().double(), optimizer

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        return nn.functional.cross_entropy(self.model(batch["tokens"]), batch["labels"])

    def configure_optimizers(self) -> Any:
        assert self.optimizer is not None
        return self.optimizer(self.parameters())


class Totals(pl.Callback):
    """Keeps the totals of the account after every batch."""

    def __init__(self) -> None:
        self.found: dict[str, dict[int, Tensor]] = {}
        self.account: Account | None = None

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        (callback,) = (one for one in trainer.callbacks if isinstance(one, ContributionCallback))  # type: ignore[attr-defined]
        self.account = callback.accounting.account
        self.found = {
            name: {source: vectors.dense(TOTAL).clone() for source, vectors in mine.items() if TOTAL in vectors}
            for name, mine in self.account.totals().items()
        }
        self.names = callback.accounting.names.known


def fitted(folder: Path, module: pl.LightningModule, train: Any, options: dict[str, Any], **settings: Any) -> Totals:
    """Fit with the account of all updates."""
    spy = Totals()
    probes, checkpoint = settings.pop("probes", None), settings.pop("ckpt_path", None)
    account = ContributionCallback(folder / "run", **{"window": 10_000, "dtype": "float64", **options})
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=[account, *settings.pop("callbacks", []), spy],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        precision=settings.pop("precision", "64-true"),
        max_epochs=settings.pop("max_epochs", 2),
        **settings,
    )
    trainer.fit(module, train, probes or DataLoader(Tokens(9, seed=2), batch_size=4), ckpt_path=checkpoint)
    return spy


class ByHand:
    """A fit written out: gradients of single samples, by language, and each language's part of the updates.

    Args:
        module: its weights are moved.
        dataset: its samples have languages.
        stepper: makes each parameter's optimizer, written out for a learning rate of 1 where `step` is given rates.
        loss: of one sample, in a batch of one; default: the module's `training_step`.
    """

    def __init__(
        self, module: Any, dataset: Tokens, stepper: Callable[[str], plain.PlainStep], loss: Callable[[Any], Tensor] | None = None
    ) -> None:
        self.parameters = dict(module.named_parameters())
        self.totals: dict[str, dict[object, Tensor]] = {name: {} for name in self.parameters}
        self._module, self._dataset = module, dataset
        self.own = {name: stepper(name) for name in self.parameters}
        self.loss = loss or (lambda sample: module.training_step(sample, 0))
        self.zero()

    def zero(self) -> None:
        """Throw the gradients away."""
        self.parts: dict[str, dict[object, Tensor]] = {name: {} for name in self.parameters}

    def backward(self, batch: Sequence[int], weight: float | None = None, only: Sequence[str] | None = None) -> None:
        """Add the gradients of a batch's mean loss (or of the weighted sum) to those of some parameters."""
        wanted = [name for name, one in self.parameters.items() if one.requires_grad and (only is None or name in only)]
        for index in batch:
            sample = {name: value[None] for name, value in self._dataset[index].items()}
            loss = self.loss(sample) * (1 / len(batch) if weight is None else weight)
            self._module.zero_grad()
            loss.backward()
            for name in wanted:
                mine, language, gradient = self.parts[name], self._dataset.language[index], self.parameters[name].grad
                whole = torch.zeros_like(self.parameters[name]) if gradient is None else gradient.to_dense().clone()
                mine[language] = mine.get(language, 0) + whole
        self._module.zero_grad()

    def scale(self, factors: Mapping[str, Any]) -> None:
        """Multiply gradients elementwise."""
        self.parts.update(
            {name: {key: factor * one for key, one in self.parts[name].items()} for name, factor in factors.items()}
        )

    def clip(self, value: float | None, how: str = "norm", only: Sequence[str] | None = None) -> None:
        """Clip as torch does."""
        if value is None:
            return
        names = [name for name, parts in self.parts.items() if parts and (only is None or name in only)]
        whole = {name: sum(self.parts[name].values(), torch.zeros(())) for name in names}
        dummies = [nn.Parameter(torch.zeros_like(whole[name])) for name in names]
        for dummy, name in zip(dummies, names, strict=True):
            dummy.grad = whole[name].clone()
        (clip_grad_value_ if how == "value" else clip_grad_norm_)(dummies, value)
        self.scale(
            {
                name: torch.where(whole[name] != 0, dummy.grad / whole[name], torch.ones(()))  # type: ignore[operator]
                for dummy, name in zip(dummies, names, strict=True)
            }
        )

    def step(self, rate: Callable[[str], float] = lambda _: 1.0, only: Sequence[str] | None = None) -> None:
        """Step the parameters that have gradients; the gradients stay."""
        for name, parts in self.parts.items():
            if not parts or (only is not None and name not in only):
                continue
            parameter = self.parameters[name]
            changes = self.own[name](parts, parameter.detach().clone())
            with torch.no_grad():
                for source, change in changes.items():
                    moved = (rate(name) * change).expand_as(parameter)
                    self.totals[name][source] = self.totals[name].get(source, 0) + moved
                    parameter.add_(moved)


def loader(train: Tokens) -> DataLoader[Any]:
    """Batches in the order of the samples."""
    return DataLoader(train, batch_size=SIZE)


def require_same_weights(one: nn.Module, other: nn.Module) -> None:
    """The loop ends with the weights of the fit."""
    for (name, mine), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-11), f"{name}: the oracle itself is wrong"


def batches_of(count: int, size: int) -> list[range]:
    """The positions of the samples of each batch."""
    return [range(at, min(at + size, count)) for at in range(0, count, size)]


def written_out(
    module: Any, dataset: Tokens, size: int, epochs: int, stepper: Callable[[], plain.PlainStep], settings: Mapping[str, Any]
) -> dict[str, dict[object, Tensor]]:
    """Fit by hand as the Trainer does in automatic optimization: each parameter's total update by language."""
    accumulate = settings.get("accumulate_grad_batches", 1)
    hand = ByHand(module, dataset, lambda _: stepper())
    for _ in range(epochs):
        batches = batches_of(len(dataset), size)
        for first in range(0, len(batches), accumulate):
            hand.zero()
            for batch in batches[first : first + accumulate]:
                hand.backward(batch, 1 / len(batch) / accumulate)
            hand.clip(settings.get("gradient_clip_val"), settings.get("gradient_clip_algorithm", "norm"))
            hand.step()
    return hand.totals


_OTHERS: Mapping[object, int] = {"decay": DECAY, "momentum": MOMENTUM, "undivided": UNDIVIDED}


def require_same(spy: Totals, totals: Mapping[str, Mapping[object, Tensor]], close: float = 1e-7) -> float:
    """Each language's part of each parameter's updates is that of the loop; the largest deviation, relative to the largest."""
    worst = 0.0
    for name, expected in totals.items():
        found = spy.found.get(name, {})
        largest = max([float(one.norm()) for one in expected.values()], default=0.0)
        numbers = {_OTHERS[key] if key in _OTHERS else spy.names.index(str(key)): key for key in expected}
        for number in {*numbers, *found}:
            one = expected[numbers[number]] if number in numbers else torch.zeros(())
            difference = float((found.get(number, torch.zeros(())) - one).norm())
            assert difference <= close * max(largest, 1e-12), f"{name}, {number}: {difference:.1e} of {largest:.1e}"
            worst = max(worst, difference / max(largest, 1e-12))
    return worst


def require_sums(spy: Totals, before: Mapping[str, Tensor], after: Mapping[str, Tensor], close: float = 1e-9) -> float:
    """All parts of each parameter add up to its change; the largest deviation, relative to the largest change."""
    worst = 0.0
    for name, start in before.items():
        change = after[name].double() - start.double()
        parts = [one.double() for one in spy.found.get(name, {}).values()]
        gap, largest = float((sum(parts, torch.zeros(())) - change).norm()), float(change.norm())
        assert gap <= close * max(largest, *(float(part.norm()) for part in [*parts, torch.zeros(1)]), 1e-12), (
            f"{name}: {gap:.1e} of {largest:.1e}"
        )
        worst = max(worst, gap / max(largest, 1e-12))
    return worst


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters."""
    return {name: one.detach().clone() for name, one in module.named_parameters()}
