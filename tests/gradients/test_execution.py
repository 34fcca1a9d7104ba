"""Exact however the model is run: checkpointed, compiled, cast automatically, partly frozen, with adapters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_tracin.errors import TracInError
from lightning_tracin.gradients import Capture, plan_coverage, verify_gradients
from tests.support.exactness import assert_exact
from tests.support.models import PAD, padded, ragged_samples
from tests.support.oracles import gradient_of_one
from tests.support.zoo import lora

WIDTH = 6


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 9), nn.Linear(9, WIDTH)
        self.scale = nn.Parameter(torch.randn(WIDTH) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.down(torch.tanh(self.up(self.norm(x))))


class Stack(nn.Module):
    """Blocks run in a way that a test is about; the first is called twice, and the head is tied to the words."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(60, WIDTH), nn.Linear(WIDTH, 60, bias=False)
        self.head.weight = self.words.weight
        self.blocks = nn.ModuleList([Block(), Block()])

    def one(self, block: nn.Module, x: Tensor) -> Tensor:
        return block(x)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for block in [self.blocks[0], *self.blocks]:
            x = self.one(block, x)
        logits = self.head(x)
        losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
        return (losses * (ids[:, 1:] != PAD)).sum()


class Checkpointed(Stack):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def one(self, block: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(block, x, use_reentrant=self.reentrant)


def built(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def loss_of(model: nn.Module) -> Any:
    return lambda batch: model(batch["input_ids"])


def assert_model_is_exact(model: nn.Module, reference: nn.Module | None = None) -> None:
    """Exact; for models that plain `autograd.grad` cannot differentiate, against the same one without that."""
    samples = ragged_samples(11, seed=31, longest=9)
    if reference is None:
        assert_exact(model, loss_of(model), padded, samples[:7], samples[7:], batch_size=4, verified=True)
        return
    reference.load_state_dict(model.state_dict())
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    coverage = plan_coverage(model, frozenset(names))
    alone = [lambda one=one: model(padded([one])["input_ids"]) for one in samples[:5]]
    verify_gradients(model, coverage, lambda: model(padded(samples[:5])["input_ids"]), alone)
    handed: list[str] = []
    got: dict[str, Tensor] = {}

    def consume(name: str, forms: Any) -> None:
        from lightning_tracin.gradients.forms import to_dense

        handed.append(name)
        got[name] = sum(to_dense(form) for form in forms)

    with Capture(model, coverage) as capture:
        capture.run(lambda: model(padded(samples)["input_ids"]), len(samples), consume)
    assert sorted(handed) == sorted(names)
    for i, sample in enumerate(samples):
        want = gradient_of_one(reference, lambda sample=sample: reference(padded([sample])["input_ids"]), names)
        for name in names:
            torch.testing.assert_close(got[name][i], want[name], rtol=1e-4, atol=1e-5)


def test_checkpointing_without_reentrance() -> None:
    torch.manual_seed(0)
    assert_model_is_exact(built(Checkpointed(reentrant=False)))


def test_checkpointing_with_reentrance() -> None:
    torch.manual_seed(0)
    assert_model_is_exact(built(Checkpointed(reentrant=True)), Stack().eval())


def test_checkpointing_keeps_gradients_of_parameters() -> None:
    """The check before a fit differentiates by `backward`; it leaves no gradient behind and takes none away."""
    torch.manual_seed(0)
    model = built(Checkpointed(reentrant=True))
    held = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        p.grad = held[name]
    assert_model_is_exact(model, Stack().eval())
    assert all(p.grad is held[name] for name, p in model.named_parameters())


@pytest.mark.parametrize("where", ["model", "in place", "block", "function"])
def test_compiled_models_run_as_they_were_written(where: str) -> None:
    torch.manual_seed(0)
    model = built(Stack())
    if where == "block":
        model.blocks[1] = torch.compile(model.blocks[1], backend="eager")
    elif where == "in place":
        model.compile(backend="eager")
    elif where == "function":
        model.one = torch.compile(model.one, backend="eager")
    compiled = torch.compile(model, backend="eager") if where == "model" else model
    ids = padded(ragged_samples(3, seed=1))["input_ids"]
    compiled(ids)  # compiled code is there before the hooks are
    assert_model_is_exact(compiled)


def test_scripted_modules_are_refused() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.jit.trace(nn.Linear(3, 3), torch.zeros(1, 3))

    with pytest.raises(TracInError, match=r"'inner' is compiled by TorchScript.*parameters="):
        plan_coverage(Holder(), frozenset({"inner.weight"}))


class Cast(Stack):
    """Casts itself to bfloat16, its norms and losses aside."""

    def forward(self, ids: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(ids)


def test_autocast_gives_what_autograd_gives_under_the_same_autocast() -> None:
    """As near as bfloat16 can tell, and in the parameters' own precision; the same model in float32 is further off."""
    torch.manual_seed(0)
    model = built(Cast())
    samples = ragged_samples(8, seed=31, longest=9)
    names = [name for name, _ in model.named_parameters()]
    coverage = plan_coverage(model, frozenset(names))
    alone = [lambda one=one: model(padded([one])["input_ids"]) for one in samples]
    verify_gradients(model, coverage, lambda: model(padded(samples)["input_ids"]), alone)
    from lightning_tracin.gradients.forms import to_dense

    got: dict[str, Tensor] = {}
    with Capture(model, coverage) as capture:
        capture.run(
            lambda: model(padded(samples)["input_ids"]),
            len(samples),
            lambda name, forms: got.__setitem__(name, sum(to_dense(form) for form in forms)),
        )
        assert capture.coarsest is torch.bfloat16
    assert all(value.dtype is torch.float32 for value in got.values())
    for i, loss in enumerate(alone):
        want = gradient_of_one(model, loss, names)
        size = torch.cat(list(want.values())).norm()
        off = torch.cat([got[name][i] - want[name] for name in names]).norm() / size
        assert off < 0.02, off


def test_adapters_cost_only_themselves() -> None:
    """The backward stops at the lowest adapter, and frozen layers are not looked at."""
    model, loss = lora()
    reached: list[str] = []

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.requires_grad:
                output.register_hook(lambda _: reached.append(name))

        return hook

    watched = {
        name: module for name, module in model.named_modules() if name.endswith(("roberta.embeddings", "0.attention.self.key"))
    }
    assert len(watched) == 2
    for name, module in watched.items():
        module.register_forward_hook(watch(name))
    names = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
    assert names
    assert all("lora" in name or "classifier" in name for name in names)
    coverage = plan_coverage(model, names)
    assert all("lora" in layer.name or "classifier" in layer.name for layer in coverage.layers)
    with Capture(model, coverage) as capture:
        batch = padded(ragged_samples(4))
        seen: list[str] = []
        capture.run(lambda: loss(batch), 4, lambda name, forms: seen.append(name))
    assert set(seen) == names
    assert reached == []
