"""Oracles that share nothing with the code under test but the model: forward-mode derivatives and closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jvp

from tests.support.exactness import ingredients, verified_coverage
from tests.support.models import padded, ragged_samples
from tests.support.oracles import gradient_of_one
from tests.support.zoo import MODELS


@pytest.mark.parametrize("family", ["albert", "gpt2", "llama", "mt5", "lora"])
def test_products_are_derivatives_along_the_probes_gradient(family: str) -> None:
    """``<grad l(z), grad l(q)>`` is the change of l(z) when the weights move along grad l(q): forward mode, no hook, no tie."""
    model, loss = MODELS[family]()
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = "eager"  # other kernels have no forward mode
    samples = ragged_samples(8, seed=41, longest=9)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    coverage = verified_coverage(model, loss, padded, samples[:4], names)
    groups = dict.fromkeys(names, 0)
    dot, _, _ = ingredients(model, loss, padded, samples[:5], samples[5:], groups, batch_size=3, coverage=coverage)
    weights = {name: dict(model.named_parameters())[name].detach() for name in names}

    class Whole(nn.Module):
        """The loss as a module, so that its weights can be given."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return loss(batch)

    whole = Whole()
    for j, probe in enumerate(samples[5:]):
        flat = gradient_of_one(model, lambda probe=probe: loss(padded([probe])), names)
        direction = {f"model.{name}": flat[name].view_as(weights[name]) for name in names}
        for i, sample in enumerate(samples[:5]):
            batch = padded([sample])
            _, change = jvp(
                lambda given, batch=batch: functional_call(whole, given, (batch,)),
                ({f"model.{name}": weight for name, weight in weights.items()},),
                (direction,),
            )
            torch.testing.assert_close(dot[0, i, j], change, rtol=1e-4, atol=1e-5 * float(dot.abs().max()))


def pairs(count: int, width: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(width, generator=generator), torch.randint(0, 2, (), generator=generator).float()) for _ in range(count)]


def stacked(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows])


@pytest.mark.parametrize("kind", ["linear", "logistic"])
def test_regressions_have_the_scores_derived_by_hand(kind: str) -> None:
    """``grad l = r (x, 1)`` with residual r, so ``<grad l(z), grad l(q)> = r_z r_q (x_z . x_q + 1)``.

    Squared loss ``(w.x + b - y)^2 / 2`` has r = w.x + b - y; log loss has r = sigmoid(w.x + b) - y.
    """
    torch.manual_seed(0)
    model = nn.Linear(7, 1)
    train, probes = pairs(11, 7, seed=1), pairs(6, 7, seed=2)

    def loss(batch: Any) -> Tensor:
        x, y = batch
        out = model(x)[:, 0]
        if kind == "linear":
            return ((out - y) ** 2 / 2).sum()
        return F.binary_cross_entropy_with_logits(out, y, reduction="sum")

    dot, norm, probe_norm = ingredients(model, loss, stacked, train, probes, {"weight": 0, "bias": 0}, batch_size=4)
    (x, y), (u, v) = stacked(train), stacked(probes)
    with torch.no_grad():
        link = torch.sigmoid if kind == "logistic" else lambda out: out
        r, s = link(model(x)[:, 0]) - y, link(model(u)[:, 0]) - v
    torch.testing.assert_close(dot[0], torch.outer(r, s) * (x @ u.T + 1))
    torch.testing.assert_close(norm[0], r.abs() * (x.square().sum(1) + 1).sqrt())
    torch.testing.assert_close(probe_norm[0], s.abs() * (u.square().sum(1) + 1).sqrt())
