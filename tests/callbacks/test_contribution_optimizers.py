"""Each language's part of the updates with the optimizers, schedules and training loops that users write."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_tracin.storage.account import AccountStore
from lightning_tracin.storage.filesystem import place
from tests.support import plain_optimizers as plain
from tests.support.step_fits import (
    SIZE,
    Bag,
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


def warm_up(step: int) -> float:
    return min(1.0, (step + 1) / 4) * (1 - step / 20)


RATES = {"embeddings": 0.02, "decayed": 0.01, "bare": 0.05}
DECAYS = {"embeddings": 0.0, "decayed": 0.3, "bare": 0.0}


def group_of(name: str) -> str:
    return "embeddings" if "table" in name else "bare" if name.endswith("bias") or "norm" in name else "decayed"


class Grouped(Module):
    """Three parameter groups and a warm-up per step."""

    def configure_optimizers(self) -> Any:
        assert self.optimizer is not None
        groups = [
            {
                "params": [p for name, p in self.named_parameters() if group_of(name) == group],
                "lr": RATES[group],
                "weight_decay": DECAYS[group],
            }
            for group in RATES
        ]
        optimizer = self.optimizer(groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


GROUPED: dict[str, tuple[Callable[..., torch.optim.Optimizer], Callable[[float], plain.PlainStep]]] = {
    "sgd": (partial(torch.optim.SGD, momentum=0.9), lambda decay: plain.sgd(1.0, 0.9, weight_decay=decay)),
    "adam": (torch.optim.Adam, lambda decay: plain.adam(1.0, weight_decay=decay)),
    "adamw": (torch.optim.AdamW, lambda decay: plain.adam(1.0, weight_decay=decay, decoupled=True)),
    "adamw, capturable, foreach": (
        partial(torch.optim.AdamW, capturable=False, foreach=True),
        lambda decay: plain.adam(1.0, weight_decay=decay, decoupled=True),
    ),
}


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("clip", [None, 0.3])
def test_parameter_groups_and_a_schedule_by_step(tmp_path: Path, name: str, clip: float | None) -> None:
    train = Tokens(19, seed=1)
    make, stepper = GROUPED[name]
    module, other = Grouped(Plain, make), Grouped(Plain, make)
    spy = fitted(tmp_path, module, loader(train), {}, gradient_clip_val=clip)
    hand = ByHand(other, train, lambda one: stepper(DECAYS[group_of(one)]))
    for step, batch in enumerate(batches_of(19, SIZE) * 2):
        hand.zero()
        hand.backward(batch)
        hand.clip(clip)
        hand.step(lambda one, step=step: RATES[group_of(one)] * warm_up(step))
    require_same_weights(module, other)
    require_same(spy, hand.totals)
    assert spy.account is not None
    assert spy.account.approximate is None
    assert not spy.account.remainders


class Switched(pl.Callback):
    """Freezes or unfreezes the inner layer from a step on, as a user's callback does."""

    def __init__(self, step: int, add: bool) -> None:
        self.step, self.add = step, add

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            inner = list(pl_module.model.inner.parameters())
            for parameter in inner:
                parameter.requires_grad_(self.add)
                if not self.add:
                    parameter.grad = None
            if self.add:
                trainer.optimizers[0].add_param_group({"params": inner, "lr": 0.01})


class Unfrozen(Module):
    """The inner layer is frozen at first, and no parameter of the optimizer."""

    def configure_optimizers(self) -> Any:
        assert self.optimizer is not None
        self.model.inner.requires_grad_(False)
        return self.optimizer([one for one in self.parameters() if one.requires_grad])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("unfreezes", [True, False])
def test_parameters_that_are_frozen_or_unfrozen_in_the_middle(tmp_path: Path, optimizer: str, unfreezes: bool) -> None:
    train, kind = Tokens(19, seed=1), Unfrozen if unfreezes else Module
    make, stepper = {
        "sgd": (partial(torch.optim.SGD, lr=0.02, momentum=0.9), lambda: plain.sgd(1.0, 0.9)),
        "adamw": (
            partial(torch.optim.AdamW, lr=0.02, weight_decay=0.1),
            lambda: plain.adam(1.0, weight_decay=0.1, decoupled=True),
        ),
    }[optimizer]
    module, other = kind(Plain, make), kind(Plain, make)
    if unfreezes:
        other.model.inner.requires_grad_(False)
    spy = fitted(tmp_path, module, loader(train), {}, callbacks=[Switched(4, unfreezes)])
    hand = ByHand(other, train, lambda _: stepper())
    for step, batch in enumerate(batches_of(19, SIZE) * 2):
        if step == 4:
            other.model.inner.requires_grad_(unfreezes)
        hand.zero()
        hand.backward(batch)
        hand.step(lambda name: 0.01 if unfreezes and "inner" in name else 0.02)
    require_same_weights(module, other)
    require_same(spy, hand.totals)
    assert spy.account is not None
    assert spy.account.approximate is None
    assert not spy.account.remainders


@pytest.mark.parametrize("in_optimizer", [True, False])
def test_base_finetuning_of_lightning(tmp_path: Path, in_optimizer: bool) -> None:
    class Later(pl.callbacks.BaseFinetuning):
        def freeze_before_training(self, pl_module: Any) -> None:
            self.freeze(pl_module.model.inner)

        def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
            if epoch == 1:
                self.unfreeze_and_add_param_group(pl_module.model.inner, optimizer, initial_denom_lr=2.0)

    def make(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([one for one in parameters if in_optimizer or one.requires_grad], lr=0.02, momentum=0.9)

    train = Tokens(19, seed=1)
    module, other = (Module(Plain, make) for _ in range(2))
    spy = fitted(tmp_path, module, loader(train), {}, callbacks=[Later()], max_epochs=3)
    hand = ByHand(other, train, lambda _: plain.sgd(1.0, 0.9))
    for step, batch in enumerate(batches_of(19, SIZE) * 3):
        other.model.inner.requires_grad_(step >= 5)
        hand.zero()
        hand.backward(batch)
        hand.step(lambda name: 0.01 if "inner" in name and not in_optimizer else 0.02)
    require_same_weights(module, other)
    require_same(spy, hand.totals)


class OwnSGD(torch.optim.Optimizer):
    """A user's optimizer: a step of fixed size along the gradient, and a drift."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(0.01 * parameter.grad / (parameter.grad.norm() + 1e-12) + 0.001)
        return loss


class LouderAdamW(torch.optim.AdamW):
    """Steps twice as far as AdamW."""

    def step(self, closure: Any = None) -> Any:
        before = [parameter.detach().clone() for group in self.param_groups for parameter in group["params"]]
        loss = super().step(closure)
        after = [parameter for group in self.param_groups for parameter in group["params"]]
        with torch.no_grad():
            for old, new in zip(before, after, strict=True):
                new.add_(new - old)
        return loss


NO_RULE: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "Rprop": partial(torch.optim.Rprop, lr=0.01),
    "OwnSGD": OwnSGD,
    "LouderAdamW": partial(LouderAdamW, lr=0.01),
    "ASGD": partial(torch.optim.ASGD, lr=0.01),
    "LBFGS": partial(torch.optim.LBFGS, lr=0.1, max_iter=3),
    "Muon": lambda parameters: torch.optim.Muon([one for one in parameters if one.ndim == 2], lr=0.01),
}


@pytest.mark.parametrize("name", NO_RULE)
def test_optimizer_without_a_rule_is_approximate_and_adds_up(tmp_path: Path, name: str) -> None:
    module = Module(Plain, NO_RULE[name])
    before = weights_of(module)
    with pytest.warns(UserWarning, match=rf"The updates of {name}, which has no rule of its own, are split in proportion to"):
        spy = fitted(tmp_path, module, loader(Tokens(19, seed=1)), {})
    assert require_sums(spy, before, weights_of(module)) < 1e-10
    assert spy.account is not None
    assert AccountStore(place(tmp_path / "run")).record().approximate == spy.account.approximate


def test_part_of_an_optimizer_without_a_rule_is_in_proportion_to_the_gradients(tmp_path: Path) -> None:
    train = Tokens(19, seed=1)
    module, other = (Module(Plain, OwnSGD) for _ in range(2))
    spy = fitted(tmp_path, module, loader(train), {}, max_epochs=1)

    def own(parts: plain.Parts, weights: Tensor) -> plain.Parts:
        whole = sum(parts.values(), torch.zeros(()))
        change = -(0.01 * whole / (whole.norm() + 1e-12) + 0.001)
        along = (change * whole).sum() / whole.square().sum()
        return {**{key: along * part for key, part in parts.items()}, "momentum": change - along * whole}

    hand = ByHand(other, train, lambda _: own)
    for batch in batches_of(19, SIZE):
        hand.zero()
        hand.backward(batch)
        hand.step()
    require_same_weights(module, other)
    require_same(spy, hand.totals)


def test_optimizer_that_does_not_step_as_its_rule_says_becomes_approximate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = torch.optim.AdamW._init_group
    made = []

    def wrong(self: Any, group: Any, *rest: Any) -> Any:
        made.append(1)
        result = true(self, group, *rest)
        if len(made) > 2:
            with torch.no_grad():
                for parameter in group["params"]:
                    parameter.sub_(0.05)
        return result

    monkeypatch.setattr(torch.optim.AdamW, "_init_group", wrong)
    module = Module(Plain, partial(torch.optim.AdamW, lr=0.01))
    before = weights_of(module)
    with pytest.warns(UserWarning, match="The updates of AdamW, which does not step as its rule says, are split"):
        spy = fitted(tmp_path, module, loader(Tokens(19, seed=1)), {})
    for name, after in module.named_parameters():  # the step in which it was found is not accounted for in full
        gap = (sum(spy.found[name].values()) - (after - before[name])).detach()
        assert torch.allclose(gap, torch.full_like(gap, 0.05), atol=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sparse_embedding_with_sgd(tmp_path: Path, momentum: float) -> None:
    train, make = Tokens(19, seed=1), partial(torch.optim.SGD, lr=0.1, momentum=momentum)
    module, other = Module(Bag, make), Module(Bag, make)
    spy = fitted(tmp_path, module, loader(train), {})
    hand = ByHand(other, train, lambda _: plain.sgd(0.1, momentum))
    for batch in batches_of(19, SIZE) * 2:
        hand.zero()
        hand.backward(batch)
        hand.step()
    require_same_weights(module, other)
    require_same(spy, hand.totals)


def test_updates_as_small_as_rounding_do_not_make_an_optimizer_approximate(tmp_path: Path) -> None:
    class Single(Module):
        def __init__(self) -> None:
            super().__init__(Plain, partial(torch.optim.AdamW, lr=3e-8, weight_decay=0.1))
            self.float()

    spy = fitted(tmp_path, Single(), loader(Tokens(19, seed=1)), {}, precision="32-true")
    assert spy.account is not None
    assert spy.account.approximate is None
    assert not spy.account.remainders
