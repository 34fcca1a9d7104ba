"""Root-mean-square norms are recognised whatever they are called, and what only looks like one is not."""

from __future__ import annotations

import copy
import importlib
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_tracin.gradients import plan_coverage
from tests.gradients.test_rules import Middle, assert_layer_is_exact
from tests.support.exactness import assert_exact
from tests.support.norms import NEAR_MISSES, WIDTH, ByLength, Functional, Gated, OnePlus, Scaled, WithConstant


def of_transformers(model: str, name: str) -> Callable[..., nn.Module]:
    """A layer of a model that the installed transformers may lack."""

    def build(**options: Any) -> nn.Module:
        try:
            module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
        except ModuleNotFoundError:
            pytest.skip(f"this transformers has no {model}")
        built = getattr(module, name)(WIDTH, **options)
        assert isinstance(built, nn.Module)
        return built

    return build


FAMILIES = {
    "T5": of_transformers("t5", "T5LayerNorm"),
    "Llama": of_transformers("llama", "LlamaRMSNorm"),
    "Mistral": of_transformers("mistral", "MistralRMSNorm"),
    "Qwen2": of_transformers("qwen2", "Qwen2RMSNorm"),
    "Qwen3": of_transformers("qwen3", "Qwen3RMSNorm"),
    "Olmo2": of_transformers("olmo2", "Olmo2RMSNorm"),
    "Gemma": of_transformers("gemma", "GemmaRMSNorm"),
    "Gemma2": of_transformers("gemma2", "Gemma2RMSNorm"),
    "Gemma3": of_transformers("gemma3", "Gemma3RMSNorm"),
    "Gemma3n": of_transformers("gemma3n", "Gemma3nRMSNorm"),
}


@pytest.mark.parametrize("epsilon", [1e-6, 0.1])
@pytest.mark.parametrize("family", FAMILIES)
def test_norms_of_transformers(family: str, epsilon: float) -> None:
    assert_layer_is_exact(FAMILIES[family](eps=epsilon), (5, WIDTH), "RMSNorm")


@pytest.mark.parametrize("layer", [Scaled, WithConstant, OnePlus, Functional, ByLength])
@pytest.mark.parametrize("shape", [(WIDTH,), (5, WIDTH), (2, 3, WIDTH)], ids=str)
def test_norms_written_by_hand(layer: type[nn.Module], shape: tuple[int, ...]) -> None:
    assert_layer_is_exact(layer(), shape, "RMSNorm")


class Shrunk(Middle):
    """With inputs about as small as the layer's epsilon, so that a wrong one shows."""

    def __init__(self, layer: nn.Module, size: float) -> None:
        super().__init__(layer)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.size)


@pytest.mark.parametrize("epsilon", [0.0, 1e-12, 1e-8, 1e-6, 1e-5, 1e-3, 2.0])
def test_epsilon_is_found(epsilon: float) -> None:
    torch.manual_seed(0)
    model = Shrunk(Scaled(epsilon), size=epsilon**0.5 or 1e-7)
    samples = [torch.randn(5, WIDTH) for _ in range(9)]
    coverage = assert_exact(model, lambda batch: model(batch).sum(), torch.stack, samples[:6], samples[6:], batch_size=4)
    assert set(coverage.by_rule) == {"RMSNorm"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("family", FAMILIES)
def test_other_types_of_number(family: str, dtype: torch.dtype) -> None:
    layer = FAMILIES[family](eps=1e-6).to(dtype)
    torch.manual_seed(0)
    layer.weight.data += torch.randn(WIDTH).to(dtype) * 0.2
    (planned,) = plan_coverage(layer, frozenset({"weight"})).layers
    assert planned.rule_name == "RMSNorm"
    assert planned.rule is not None
    inputs, heads = torch.randn(4, 3, WIDTH, dtype=dtype), torch.randn(4, 3, WIDTH, dtype=dtype)
    form = planned.rule(layer, inputs, heads, frozenset({"weight"}))["weight"].values
    for position in range(4):
        (truth,) = torch.autograd.grad(layer(inputs[position]), layer.weight, heads[position])
        torch.testing.assert_close(form[position].double(), truth.double(), rtol=3 * torch.finfo(dtype).eps, atol=3e-2)


@pytest.mark.parametrize("layer", NEAR_MISSES)
def test_near_misses_are_exact_without_the_rule(layer: type[nn.Module]) -> None:
    assert_layer_is_exact(layer().eval(), (5, WIDTH), "fallback")


def test_weight_without_gradient_does_not_get_the_rule() -> None:
    class Detached(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            return self.normalised(x) * self.weight.detach()

    assert not is_recognised(Detached())


def test_gate_is_taken_into_account() -> None:
    class ByItself(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = Gated()

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x, x.tanh())

    assert_layer_is_exact(ByItself(), (5, WIDTH), "fallback")


def test_hooks_may_change_what_a_layer_computes() -> None:
    before, after = Scaled(), Scaled()
    before.register_forward_pre_hook(lambda _module, args: (args[0] + 1,))
    after.register_forward_hook(lambda _module, _args, output: output * 2)
    for layer in (before, after):
        assert_layer_is_exact(layer, (5, WIDTH), "fallback")


def test_forward_replaced_on_one_module() -> None:
    layer = Scaled()
    layer.forward = lambda x: x * layer.weight  # type: ignore[method-assign]
    assert not is_recognised(layer)


def test_other_layers_with_a_single_scale() -> None:
    assert not is_recognised(of_transformers("qwen3_next", "Qwen3NextRMSNormGated")())
    assert not is_recognised(nn.PReLU(WIDTH))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_own_type_of_number_and_float32_must_both_follow(dtype: torch.dtype) -> None:
    class ByType(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight if x.dtype is dtype else super().forward(x)

    assert not is_recognised(ByType().bfloat16())


def test_half_precision_hides_no_small_difference() -> None:
    class SlightlyLarger(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 1.01

    assert not is_recognised(SlightlyLarger().bfloat16())


@pytest.mark.parametrize("training", [True, False])
def test_both_modes_must_follow(training: bool) -> None:
    class InOneMode(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if self.training == training else x * self.weight

    assert not is_recognised(InOneMode().train(training))


@pytest.mark.parametrize("draw", [random.random, lambda: float(torch.rand(()))], ids=["python", "torch"])
def test_what_depends_on_chance_is_refused_whatever_chance_says(draw: Callable[[], float]) -> None:
    class RarelySkipped(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if draw() > 1e-9 else x

    assert not is_recognised(RarelySkipped())


def is_recognised(layer: nn.Module) -> bool:
    (planned,) = plan_coverage(layer, frozenset({"weight"})).layers
    return planned.rule_name == "RMSNorm"


class Watched(Scaled):
    """Leaves traces wherever it can."""

    seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        random.random()
        return super().forward(x) + 0 * torch.rand(())


def test_recognition_leaves_no_trace() -> None:
    layer, calls = Watched().train(), []
    layer.register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(vars(layer)), layer.weight.clone(), torch.get_rng_state(), random.getstate()
    unhooked = Watched().train()
    unhooked.weight.requires_grad_(False)
    for one in (layer, unhooked):
        is_recognised(one)
    assert not calls
    assert vars(layer).keys() == before[0].keys()
    assert unhooked.training
    assert unhooked.seen == layer.seen == 0
    assert torch.equal(layer.weight, before[1])
    assert layer.weight.grad is unhooked.weight.grad is None
    assert layer.weight.requires_grad
    assert not unhooked.weight.requires_grad
    assert torch.equal(torch.get_rng_state(), before[2])
    assert random.getstate() == before[3]


def test_recognised_in_any_surroundings() -> None:
    layer = Scaled()
    with torch.no_grad():
        assert is_recognised(layer)
    with torch.inference_mode():
        assert is_recognised(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert is_recognised(layer)
