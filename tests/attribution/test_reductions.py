"""Whatever a step does to reduce its loss, the summed loss is the sum of what each sample has alone, or it is not certain."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_tracin import TracInError
from lightning_tracin.attribution.losses import Probed, StepLoss, find_loss, require_sum

CLASSES, TOKENS, RARE = 3, 4, 2
WEIGHT = torch.tensor([1.0, 1.0, 20.0])

Step = Callable[["Module", Any], Tensor]


class Module(nn.Module):
    def __init__(self, step: Step) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.step = nn.Linear(5, CLASSES).double(), step

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step(self, batch)


def batch_of(size: int, seed: int, rare: int = 0) -> dict[str, Tensor]:
    """A batch of which the first `rare` samples have the rare class, and the others do not."""
    made = torch.Generator().manual_seed(seed)
    label = torch.randint(RARE, (size,), generator=made)
    label[:rare] = RARE
    tokens = torch.randint(CLASSES, (size, TOKENS), generator=made)
    tokens[torch.rand(size, TOKENS, generator=made) < 0.4] = -100
    tokens[:, 0] = 1
    return {
        "x": torch.randn(size, 5, generator=made, dtype=torch.float64),
        "sequence": torch.randn(size, TOKENS, 5, generator=made, dtype=torch.float64),
        "label": label,
        "tokens": tokens,
        "target": torch.rand(size, CLASSES, generator=made, dtype=torch.float64),
        "mask": (tokens != -100).double(),
        "weight": torch.where(label == RARE, 7.0, 1.0).double(),
    }


def alone(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    return [{name: value[index : index + 1] for name, value in batch.items()} for index in range(len(batch["x"]))]


def checks() -> list[Probed]:
    """Batches without the rare class: a look at them takes every weight for the same."""
    return [Probed(batch, alone(batch), "train samples") for batch in (batch_of(size, size) for size in (5, 2, 8))]


def own_mean(module: Module, batch: dict[str, Tensor], **settings: Any) -> Tensor:
    return F.cross_entropy(module.layer(batch["x"]), batch["label"], **settings)


def token_losses(module: Module, batch: dict[str, Tensor], reduction: str = "none", **settings: Any) -> Tensor:
    logits = module.layer(batch["sequence"])
    return F.cross_entropy(logits.reshape(-1, CLASSES), batch["tokens"].reshape(-1), reduction=reduction, **settings)


def by_hand(module: Module, batch: dict[str, Tensor]) -> Tensor:
    return own_mean(module, batch, reduction="none") * batch["weight"]


STEPS: dict[str, Step] = {
    "mean": own_mean,
    "sum": lambda module, batch: own_mean(module, batch, reduction="sum"),
    "class weights": lambda module, batch: own_mean(module, batch, weight=WEIGHT.double()),
    "class weights, smoothed": lambda module, batch: own_mean(module, batch, weight=WEIGHT.double(), label_smoothing=0.1),
    "class weights, nll": lambda module, batch: F.nll_loss(
        module.layer(batch["x"]).log_softmax(-1), batch["label"], WEIGHT.double()
    ),
    "class weights by module": lambda module, batch: nn.CrossEntropyLoss(weight=WEIGHT.double())(
        module.layer(batch["x"]), batch["label"]
    ),
    "class weights, sum": lambda module, batch: own_mean(module, batch, weight=WEIGHT.double(), reduction="sum"),
    "tokens": lambda module, batch: token_losses(module, batch, "mean"),
    "tokens, weighted": lambda module, batch: token_losses(module, batch, "mean", weight=WEIGHT.double()),
    "tokens, classes second": lambda module, batch: F.cross_entropy(
        module.layer(batch["sequence"]).transpose(1, 2), batch["tokens"]
    ),
    "tokens by hand": lambda module, batch: (token_losses(module, batch) * batch["mask"].reshape(-1)).sum() / batch["mask"].sum(),
    "tokens, sum over count": lambda module, batch: token_losses(module, batch, "sum") / (batch["tokens"] != -100).sum(),
    "sample weights": lambda module, batch: by_hand(module, batch).sum() / batch["weight"].sum(),
    "sample weights, mean": lambda module, batch: by_hand(module, batch).mean(),
    "sum over samples by hand": lambda module, batch: own_mean(module, batch, reduction="sum") / len(batch["x"]),
    "focal": lambda module, batch: (
        (1 - (-own_mean(module, batch, reduction="none")).exp()) ** 2 * by_hand(module, batch)
    ).mean(),
    "multi-label": lambda module, batch: F.binary_cross_entropy_with_logits(
        module.layer(batch["x"]), batch["target"].round(), pos_weight=WEIGHT.double()
    ),
    "distillation": lambda module, batch: F.kl_div(
        module.layer(batch["x"]).log_softmax(-1), batch["target"].softmax(-1), reduction="batchmean"
    ),
    "soft labels": lambda module, batch: F.cross_entropy(module.layer(batch["x"]), batch["target"].softmax(-1)),
    "regression": lambda module, batch: F.mse_loss(module.layer(batch["x"]), batch["target"]),
    "two terms": lambda module, batch: (
        own_mean(module, batch, weight=WEIGHT.double()) + 0.3 * F.mse_loss(module.layer(batch["x"]), batch["target"])
    ),
    "two weightings": lambda module, batch: (
        0.5 * own_mean(module, batch, weight=WEIGHT.double()) + 2 * token_losses(module, batch, "mean")
    ),
    "twice": lambda module, batch: sum((own_mean(module, batch) for _ in range(2)), torch.zeros(())) / 2,
}


def loop(module: Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The oracle: losses and gradients of the step on single samples, added up."""
    losses = [module.training_step(one, 0) for one in alone(batch)]
    gradients = [torch.autograd.grad(loss, module.layer.weight)[0] for loss in losses]
    return torch.stack(losses).sum().detach(), torch.stack(gradients).sum(0)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize(("size", "rare"), [(1, 0), (7, 0), (6, 2), (16, 1)])
def test_every_kind_of_reduction_is_the_sum_of_what_single_samples_have(name: str, size: int, rare: int) -> None:
    module = Module(STEPS[name])
    loss = find_loss(module, checks)
    batch = batch_of(size, seed=100 + size, rare=rare)
    summed = loss.summed(batch, size)
    value, gradient = loop(module, batch)
    assert summed.is_certain
    torch.testing.assert_close(summed.total.detach(), value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(summed.total, module.layer.weight)[0], gradient, rtol=1e-9, atol=1e-12)


class Hook:
    """Does nothing with a gradient."""

    def __call__(self, gradient: Tensor) -> None:
        pass


@pytest.mark.parametrize("name", STEPS)
def test_a_batch_leaves_nothing_in_memory(name: str) -> None:
    """At once, and not when the garbage collector comes: it counts objects, and these are few and large."""
    module = Module(STEPS[name])
    loss = find_loss(module, checks)
    batch = batch_of(7, seed=3)
    gc.collect()
    gc.disable()
    try:
        hooks = [Hook()]  # the graph owns its hooks
        graph = weakref.ref(hooks[0])
        handle = module.layer.register_forward_hook(lambda _module, _args, output: output.register_hook(hooks[0]) and None)
        summed = loss.summed(batch, 7)
        own = summed.own()
        handle.remove()
        hooks.clear()
        assert graph() is not None
        del summed, own
        assert graph() is None
    finally:
        gc.enable()


def own_way(module: Module, batch: dict[str, Tensor]) -> Tensor:
    """A mean that no torch function computes as one: it is a plain one, until the rare class comes."""
    losses = own_mean(module, batch, reduction="none") * batch["weight"] ** 2
    return torch.dot(losses, torch.ones_like(losses)) / torch.dot(batch["weight"], torch.ones_like(losses))


def test_a_reduction_that_is_not_seen_is_never_certain_and_a_batch_that_breaks_it_is_refused() -> None:
    module = Module(own_way)
    loss = find_loss(module, checks)
    plain, broken = batch_of(6, seed=1), batch_of(6, seed=1, rare=1)
    for batch in (plain, broken):
        assert not loss.summed(batch, 6).is_certain
    require_sum(loss, loss(plain, 6).item(), alone(plain), torch.float64, "a batch")
    with pytest.raises(TracInError, match=r"no longer the mean of its .* for train samples 3 to 8.*per_sample_loss"):
        require_sum(loss, loss(broken, 6).item(), alone(broken), torch.float64, "train samples 3 to 8")


@pytest.mark.parametrize(
    "step",
    [
        lambda module, batch: own_mean(module, batch) * (1 + (batch["label"] == RARE).double().mean()),
        lambda module, batch: own_mean(module, batch, reduction="mean" if RARE not in batch["label"] else "sum"),
    ],
)
def test_a_batch_that_does_not_follow_what_was_checked_is_not_certain(step: Step) -> None:
    loss = find_loss(Module(step), checks)
    assert loss.summed(batch_of(6, seed=1), 6).is_certain
    assert not loss.summed(batch_of(6, seed=1, rare=1), 6).is_certain


def test_a_term_beside_the_reductions_makes_no_batch_certain() -> None:
    def penalised(module: Module, batch: dict[str, Tensor]) -> Tensor:
        return own_mean(module, batch) + (batch["label"] == RARE).double().sum() ** 2 * module.layer.weight.pow(2).sum()

    loss = find_loss(Module(penalised), checks)
    assert not loss.summed(batch_of(6, seed=1), 6).is_certain
    broken = batch_of(6, seed=1, rare=2)
    with pytest.raises(TracInError, match=r"a term that depends on the batch\?"):
        require_sum(loss, loss(broken, 6).item(), alone(broken), torch.float64, "a batch")


def test_a_mean_and_a_sum_in_one_loss_are_refused() -> None:
    module = Module(lambda module, batch: own_mean(module, batch) + own_mean(module, batch, reduction="sum"))
    with pytest.raises(TracInError, match="neither the mean nor the sum"):
        find_loss(module, checks)


def test_without_gradients_no_batch_is_certain() -> None:
    loss = StepLoss(Module(own_mean), "mean")
    with torch.no_grad():
        assert not loss.summed(batch_of(4, seed=1), 4).is_certain
