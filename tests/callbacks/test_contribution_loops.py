"""Each language's part of the updates under manual optimization and loss scaling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_tracin.gradients.group_split import UNDIVIDED
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


class Manual(Module):
    """Manual optimization by a function: `step(module, optimizers, batch, batch_idx)`."""

    def __init__(self, step: Callable[..., None], optimizers: Callable[[Any], Any]) -> None:
        super().__init__(Plain)
        self.automatic_optimization = False
        self.step, self.make = step, optimizers

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.model(batch["tokens"]), batch["labels"])

    def shifted(self, batch: dict[str, Tensor]) -> Tensor:
        """A second loss, for a second optimizer."""
        return nn.functional.cross_entropy(self.model(batch["tokens"]), (batch["labels"] + 1) % 3)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        if not self.trainer.training:  # the callback looks at the probes
            return self.loss(batch)
        self.step(self, self.optimizers(), batch, batch_idx)
        return None

    def per_sample_loss(self, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.model(batch["tokens"]), batch["labels"], reduction="none")

    def configure_optimizers(self) -> Any:
        return self.make(self)


INNER = ("model.inner.weight", "model.inner.bias", "model.head.weight")
OUTER = ("model.table.weight", "model.norm.weight", "model.norm.bias")


def some(module: nn.Module, names: Sequence[str]) -> list[nn.Parameter]:
    return [one for name, one in module.named_parameters() if name in names]


def two(module: nn.Module) -> list[torch.optim.Optimizer]:
    return [
        torch.optim.SGD(some(module, OUTER), lr=0.1, momentum=0.9),
        torch.optim.AdamW(some(module, INNER), lr=0.02, weight_decay=0.1),
    ]


def two_by_hand(name: str) -> plain.PlainStep:
    return plain.sgd(0.1, 0.9) if name in OUTER else plain.adam(0.02, weight_decay=0.1, decoupled=True)


def one(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=0.02)


def one_by_hand(_: str) -> plain.PlainStep:
    return plain.adam(0.02)


def _both_losses(module: Any, optimizers: Any, batch: Any, _: int) -> None:
    first, second = optimizers
    first.zero_grad()
    module.manual_backward(module.loss(batch))
    first.step()
    second.zero_grad()  # drops what the first backward pass left here
    module.manual_backward(module.shifted(batch))
    second.step()


def _both_losses_by_hand(hand: ByHand, module: Any, batch: range, _: int) -> None:
    for loss, names in ((module.loss, OUTER), (module.shifted, INNER)):
        hand.loss = loss
        if names is OUTER:
            hand.parts.update({name: {} for name in OUTER})
        else:
            hand.parts.update({name: {} for name in INNER})
        hand.backward(batch)
        hand.step(only=names)


def _toggled(module: Any, optimizers: Any, batch: Any, _: int) -> None:
    for optimizer, loss in zip(optimizers, (module.loss, module.shifted), strict=True):
        module.toggle_optimizer(optimizer)
        module.manual_backward(loss(batch))
        optimizer.step()
        optimizer.zero_grad()
        module.untoggle_optimizer(optimizer)


def _toggled_by_hand(hand: ByHand, module: Any, batch: range, _: int) -> None:
    for loss, names in ((module.loss, OUTER), (module.shifted, INNER)):
        hand.zero()
        hand.loss = loss
        hand.backward(batch, only=names)
        hand.step(only=names)


def _clipped(module: Any, optimizer: Any, batch: Any, _: int) -> None:
    optimizer.zero_grad(set_to_none=False)
    module.manual_backward(module.loss(batch))
    module.clip_gradients(optimizer, gradient_clip_val=0.05, gradient_clip_algorithm="norm")
    optimizer.step()


def _clipped_by_hand(hand: ByHand, module: Any, batch: range, _: int) -> None:
    hand.zero()
    hand.backward(batch)
    hand.clip(0.05)
    hand.step()


def _every_second(module: Any, optimizer: Any, batch: Any, number: int) -> None:
    module.manual_backward(module.loss(batch) / 2)
    if number % 2:
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)


def _every_second_by_hand(hand: ByHand, module: Any, batch: range, number: int) -> None:
    hand.backward(batch, 0.5 / len(batch))
    if number % 2:
        hand.step()
        hand.zero()


def _thrown_away(module: Any, optimizer: Any, batch: Any, number: int) -> None:
    module.manual_backward(module.shifted(batch))
    optimizer.zero_grad(set_to_none=bool(number % 2))
    module.manual_backward(module.loss(batch))
    optimizer.step()
    module.manual_backward(module.shifted(batch))
    optimizer.zero_grad(set_to_none=bool(number % 2))


def _twice(module: Any, optimizer: Any, batch: Any, number: int) -> None:
    """Two steps on one batch, of which the second goes on with the gradients of the first."""
    optimizer.zero_grad()
    module.manual_backward(module.loss(batch))
    optimizer.step()
    module.manual_backward(module.loss(batch))
    optimizer.step()


def _plainly_by_hand(hand: ByHand, module: Any, batch: range, _: int) -> None:
    hand.zero()
    hand.backward(batch)
    hand.step()


def _retained(module: Any, optimizer: Any, batch: Any, _: int) -> None:
    """Two backward passes through one graph, and a second loss of the same outputs."""
    loss = module.loss(batch)
    optimizer.zero_grad()
    module.manual_backward(loss, retain_graph=True)
    module.manual_backward(0.5 * loss)
    optimizer.step()


def _retained_by_hand(hand: ByHand, module: Any, batch: range, _: int) -> None:
    hand.zero()
    hand.backward(batch, 1.5 / len(batch))
    hand.step()


LOOPS: dict[str, tuple[Any, Any, Any, Any]] = {
    "two optimizers with two losses": (two, _both_losses, two_by_hand, _both_losses_by_hand),
    "toggle_optimizer": (two, _toggled, two_by_hand, _toggled_by_hand),
    "clip_gradients, zero_grad(set_to_none=False)": (one, _clipped, one_by_hand, _clipped_by_hand),
    "a step every second batch": (one, _every_second, one_by_hand, _every_second_by_hand),
    "gradients that are thrown away": (one, _thrown_away, one_by_hand, _plainly_by_hand),
    "two backward passes through one graph": (one, _retained, one_by_hand, _retained_by_hand),
}


@pytest.mark.parametrize("name", LOOPS)
def test_manual_optimization(tmp_path: Path, name: str) -> None:
    train = Tokens(19, seed=1)
    make, step, stepper, by_hand = LOOPS[name]
    module, other = Manual(step, make), Manual(step, make)
    spy = fitted(tmp_path, module, loader(train), {})
    hand = ByHand(other, train, stepper, other.loss)
    for _ in range(2):
        for number, batch in enumerate(batches_of(19, SIZE)):
            by_hand(hand, other, batch, number)
    require_same_weights(module, other)
    require_same(spy, hand.totals)
    assert spy.account is not None
    assert spy.account.approximate is None
    assert not spy.account.remainders


def test_gradients_that_outlive_their_step_are_undivided(tmp_path: Path) -> None:
    module, train = Manual(_twice, one), Tokens(19, seed=1)
    before = weights_of(module)
    with pytest.warns(UserWarning, match=r"gradients of 6 parameters \(such as model\.\S+, in 10 steps\) were not the"):
        spy = fitted(tmp_path, module, loader(train), {})
    assert require_sums(spy, before, weights_of(module)) < 1e-12
    assert all(UNDIVIDED in mine for mine in spy.found.values())


class Scaled(Manual):
    """A GradScaler, and an infinite gradient in some batches."""

    def __init__(self, make: Callable[[Any], Any], clip: float | None) -> None:
        super().__init__(self._scaled, make)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
        self.clip = clip

    @staticmethod
    def _scaled(module: Any, optimizer: Any, batch: Any, number: int) -> None:
        optimizer.zero_grad()
        loss = module.loss(batch) * (float("inf") if number == 2 else 1.0)
        module.manual_backward(module.scaler.scale(loss))
        if module.clip is not None:
            module.scaler.unscale_(optimizer.optimizer)
            module.clip_gradients(optimizer, gradient_clip_val=module.clip, gradient_clip_algorithm="norm")
        module.scaler.step(optimizer.optimizer)
        module.scaler.update()


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("fused", [False, True])
def test_loss_scaling_with_a_skipped_step(tmp_path: Path, clip: float | None, fused: bool) -> None:
    train = Tokens(19, seed=1)

    def make(module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(module.parameters(), lr=0.02, weight_decay=0.1, fused=fused)

    module, other = Scaled(make, clip), Scaled(make, clip)
    spy = fitted(tmp_path, module, loader(train), {})
    hand = ByHand(other, train, lambda _: plain.adam(0.02, weight_decay=0.1, decoupled=True), other.loss)
    for _ in range(2):
        for number, batch in enumerate(batches_of(19, SIZE)):
            if number != 2:
                hand.zero()
                hand.backward(batch)
                hand.clip(clip)
                hand.step()
    require_same_weights(module, other)
    require_same(spy, hand.totals)
    assert spy.account is not None
    assert spy.account.steps == {0: 8}
    assert spy.account.approximate is None
    assert not spy.account.remainders


def test_sparse_adam(tmp_path: Path) -> None:
    def make(module: Any) -> list[torch.optim.Optimizer]:
        return [
            torch.optim.SparseAdam(module.model.table.parameters(), lr=0.01),
            torch.optim.SGD(module.model.head.parameters(), 0.1),
        ]

    def step(module: Any, optimizers: Any, batch: Any, _: int) -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        module.manual_backward(module.loss(batch))
        for optimizer in optimizers:
            optimizer.step()

    module = Manual(step, make)
    module.model = Bag().double()
    before = weights_of(module)
    with pytest.warns(UserWarning, match="SparseAdam, which has no rule"):
        spy = fitted(tmp_path, module, loader(Tokens(19, seed=1)), {})
    assert require_sums(spy, before, weights_of(module)) < 1e-10
