"""What no language's samples did: earlier momentum, steps that are not accounted, and gradients that users change."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_tracin.attribution.accounts import MOMENTUM
from lightning_tracin.gradients.group_split import UNDIVIDED
from lightning_tracin.trainer import accounting
from tests.support import plain_optimizers as plain
from tests.support.step_fits import (
    SIZE,
    ByHand,
    Module,
    Plain,
    Tokens,
    batches_of,
    fitted,
    loader,
    require_same,
    require_same_weights,
    require_sums,
    weights_of,
)

OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], Callable[[], plain.PlainStep]]] = {
    "sgd": (partial(torch.optim.SGD, lr=0.1), lambda: plain.sgd(0.1)),
    "momentum": (partial(torch.optim.SGD, lr=0.1, momentum=0.9), lambda: plain.sgd(0.1, 0.9)),
    "nesterov": (
        partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
        lambda: plain.sgd(0.1, 0.9, nesterov=True),
    ),
    "adam": (partial(torch.optim.Adam, lr=0.02), lambda: plain.adam(0.02)),
    "adamw": (
        partial(torch.optim.AdamW, lr=0.02, weight_decay=0.1, amsgrad=True),
        lambda: plain.adam(0.02, weight_decay=0.1, decoupled=True, amsgrad=True),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_momentum_from_before_the_account_is_a_source(tmp_path: Path, name: str) -> None:
    train = Tokens(19, seed=1)
    make, stepper = OPTIMIZERS[name]
    module, other = (Module(Plain, make) for _ in range(2))
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    first = pl.Trainer(max_epochs=1, precision="64-true", default_root_dir=tmp_path, enable_checkpointing=False, **quiet)
    first.fit(module, loader(train))
    first.save_checkpoint(tmp_path / "first.ckpt")
    begun = weights_of(module)
    spy = fitted(tmp_path, module, loader(train), {}, ckpt_path=tmp_path / "first.ckpt")

    hand = ByHand(other, train, lambda _: stepper())
    for batch in batches_of(19, SIZE):
        hand.zero()
        hand.backward(batch)
        hand.parts.update({one: {"momentum": sum(parts.values())} for one, parts in hand.parts.items()})
        hand.step()
    hand.totals = {one: {} for one in hand.totals}
    for batch in batches_of(19, SIZE):
        hand.zero()
        hand.backward(batch)
        hand.step()
    require_same_weights(module, other)
    require_same(spy, hand.totals)
    require_sums(spy, begun, weights_of(module))
    assert any(MOMENTUM in mine for mine in spy.found.values()) == (name != "sgd")
    assert spy.account is not None
    assert spy.account.approximate is None


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("every", [2, 3])
def test_estimates_from_some_steps_are_right_on_average(
    tmp_path: Path, name: str, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = Tokens(19, seed=1)
    found: dict[str, dict[int, Tensor]] = {}
    for offset in range(every):
        monkeypatch.setattr(accounting, "is_accounted", lambda step, n, offset=offset: (step - offset) % n == 0)
        spy = fitted(tmp_path / str(offset), Module(Plain, OPTIMIZERS[name][0]), loader(train), {"every_n_steps": every})
        for one, mine in spy.found.items():
            for source, total in mine.items():
                found.setdefault(one, {}).setdefault(source, torch.zeros_like(total)).add_(total / every)
    whole = fitted(tmp_path / "whole", Module(Plain, OPTIMIZERS[name][0]), loader(train), {})
    for one, mine in whole.found.items():
        largest = max(float(total.norm()) for total in mine.values())
        assert found[one].keys() == mine.keys()
        for source, total in mine.items():
            assert float((found[one][source] - total).norm()) <= 1e-7 * largest, (one, source)


class Changed(pl.Callback):
    """Changes gradients just before the step."""

    def __init__(self, change: Callable[[dict[str, Tensor]], None]) -> None:
        self.change = change

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        with torch.no_grad():
            self.change({name: one.grad for name, one in pl_module.named_parameters() if one.grad is not None})


ROWS = torch.tensor([[1.0], [0.0], [0.0], [1.0], [1.0], [1.0], [0.0], [1.0], [1.0], [1.0], [0.0]], dtype=torch.float64)
FACTORS: dict[str, dict[str, Any]] = {
    "rows of the embedding are set to zero": {"model.table.weight": ROWS},
    "all rows of the embedding but one are set to zero": {"model.table.weight": torch.eye(11, dtype=torch.float64)[:, :1]},
    "each parameter is scaled": {
        "model.table.weight": 0.5,
        "model.inner.weight": 2.0,
        "model.norm.weight": 0.1,
        "model.head.weight": 1.5,
    },
    "each element is scaled down": {"model.inner.weight": torch.linspace(0.1, 0.9, 24, dtype=torch.float64).reshape(6, 4)},
    "one parameter is switched off": {"model.inner.weight": 0.0},
    "a sign is turned": {"model.inner.weight": -1.0},
}


@pytest.mark.parametrize("name", FACTORS)
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_gradients_that_a_user_multiplies(tmp_path: Path, name: str, optimizer: str) -> None:
    train, factors = Tokens(19, seed=1), FACTORS[name]
    make, stepper = OPTIMIZERS[optimizer]
    module, other = (Module(Plain, make) for _ in range(2))

    def change(gradients: dict[str, Tensor]) -> None:
        for one, factor in factors.items():
            gradients[one].mul_(factor)

    spy = fitted(tmp_path, module, loader(train), {}, callbacks=[Changed(change)])
    hand = ByHand(other, train, lambda _: stepper())
    for batch in batches_of(19, SIZE) * 2:
        hand.zero()
        hand.backward(batch)
        hand.scale(factors)
        hand.step()
    require_same_weights(module, other)
    require_same(spy, hand.totals)
    assert spy.account is not None
    assert not spy.account.remainders
    assert spy.account.approximate is None


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_noise_in_gradients_is_undivided(tmp_path: Path, optimizer: str) -> None:
    train = Tokens(19, seed=1)
    make, stepper = OPTIMIZERS[optimizer]
    module, other = (Module(Plain, make) for _ in range(2))
    generator, noise = torch.Generator().manual_seed(0), []

    def change(gradients: dict[str, Tensor]) -> None:
        noise.append(0.1 * torch.rand(6, 4, generator=generator, dtype=torch.float64))
        gradients["model.inner.weight"].add_(noise[-1])

    with pytest.warns(UserWarning, match=r"of 1 parameters \(such as model\.inner\.weight, in 10 steps\) were not the sum"):
        spy = fitted(tmp_path, module, loader(train), {}, callbacks=[Changed(change)])
    hand = ByHand(other, train, lambda _: stepper())
    for step, batch in enumerate(batches_of(19, SIZE) * 2):
        hand.zero()
        hand.backward(batch)
        hand.parts["model.inner.weight"]["undivided"] = noise[step]
        hand.step()
    require_same_weights(module, other)
    require_sums(spy, weights_of(Module(Plain, make)), weights_of(module))
    assert UNDIVIDED in spy.found["model.inner.weight"]
    require_same(spy, hand.totals)
    assert spy.account is not None
    assert spy.account.approximate is None


class Restarted(pl.Callback):
    """Forgets the optimizer's state before the second epoch."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.optimizers[0].state.clear()


@pytest.mark.parametrize("optimizer", ["momentum", "nesterov", "adam", "adamw"])
def test_momentum_that_a_user_resets(tmp_path: Path, optimizer: str) -> None:
    train = Tokens(19, seed=1)
    make, stepper = OPTIMIZERS[optimizer]
    module, other = (Module(Plain, make) for _ in range(2))
    spy = fitted(tmp_path, module, loader(train), {}, callbacks=[Restarted()])
    hand = ByHand(other, train, lambda _: stepper())
    for _ in range(2):
        hand.own = {name: stepper() for name in hand.parameters}
        for batch in batches_of(19, SIZE):
            hand.zero()
            hand.backward(batch)
            hand.step()
    require_same_weights(module, other)
    require_same(spy, hand.totals)
