"""Each rule against the loop, and that a layer which computes something else does not get the rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lightning_tracin.gradients import Coverage, plan_coverage
from tests.support.exactness import assert_exact


class Middle(nn.Module):
    """Something before a layer and a loss after it, on inputs of the shape that the layer takes."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.sin(x)).flatten(1).tanh().cumsum(1).square().mean(1)


def assert_layer_is_exact(layer: nn.Module, shape: tuple[int, ...], rule: str) -> Coverage:
    torch.manual_seed(0)
    model = Middle(layer)
    samples = [torch.randn(shape) for _ in range(9)]
    coverage = assert_exact(model, lambda batch: model(batch).sum(), torch.stack, samples[:6], samples[6:], batch_size=4)
    assert set(coverage.by_rule) == {rule}
    return coverage


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"padding": "same", "dilation": 2},
        {"padding": "same", "padding_mode": "circular"},
        {"padding": 2, "padding_mode": "reflect", "bias": False},
        {"padding": "valid", "groups": 2},
        {"groups": 4, "stride": 3, "padding": 2, "dilation": 2, "padding_mode": "replicate"},
    ],
    ids=str,
)
@pytest.mark.parametrize("dimensions", [1, 2])
def test_convolutions(dimensions: int, options: dict[str, Any]) -> None:
    if dimensions == 1:
        assert_layer_is_exact(nn.Conv1d(4, 8, 3, **options), (4, 11), "Conv1d")
    else:
        assert_layer_is_exact(nn.Conv2d(4, 8, (3, 2), **options), (4, 9, 8), "Conv2d")


@pytest.mark.parametrize(
    ("layer", "rule"),
    [
        (nn.Linear(6, 4, bias=False), "Linear"),
        (Conv1D(4, 6), "Conv1D"),
        (nn.LayerNorm(6, bias=False), "LayerNorm"),
        (nn.LayerNorm((5, 6)), "LayerNorm"),
        (nn.RMSNorm(6), "RMSNorm"),
        (nn.RMSNorm((5, 6), eps=0.1), "RMSNorm"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_over_positions(layer: nn.Module, rule: str) -> None:
    assert_layer_is_exact(layer, (5, 6), rule)


def test_subclass_with_another_forward_does_not_get_the_formula() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight * 2, self.bias)

    assert_layer_is_exact(Doubled(6, 4), (5, 6), "fallback")


def test_forward_replaced_on_one_module_does_not_get_the_formula() -> None:
    layer = nn.Linear(6, 6)
    layer.forward = lambda x: F.linear(x, layer.weight.T, layer.bias)  # type: ignore[method-assign]
    assert_layer_is_exact(layer, (5, 6), "fallback")


def test_coverage_counts_every_element_once_and_names_tied_parameters_by_all_their_rules() -> None:
    model = nn.ModuleDict({"words": nn.Embedding(7, 3), "norm": nn.LayerNorm(3), "head": nn.Linear(3, 7)})
    model["head"].weight = model["words"].weight
    coverage = plan_coverage(model, frozenset(name for name, _ in model.named_parameters()))
    assert coverage.by_rule == {"Embedding+Linear": (1, 21), "Linear": (1, 7), "LayerNorm": (2, 6)}
