"""Layers as wide as those of real models, with short and long samples in one bank, against the loop.

What a bank holds of a parameter depends on how wide the layer is and how long the samples are, so narrow test models never
reach most of it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_tracin.gradients import Capture, HeldBlock, ProbeBank, QueryBank, Sketch, plan_coverage
from lightning_tracin.gradients.forms import Dense
from tests.support.models import PAD, padded
from tests.support.oracles import gradient_loop

VOCABULARY = 40


class Encoder(nn.Module):
    """A table, a layer that sees every token, and a head that sees the first one: as much of an encoder as needs width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(width)
        self.words = nn.Embedding(VOCABULARY, width, padding_idx=PAD)
        self.mixed = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, ids: Tensor) -> Tensor:
        seen = (ids != PAD)[..., None].to(self.head.weight.dtype)
        hidden = torch.tanh(self.mixed(self.words(ids)))
        mean = (hidden * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True)
        hidden = self.norm(hidden * mean.sigmoid() + hidden)  # every token's output depends on all of them
        pooled = (hidden * seen).sum(1) / seen.sum(1).sqrt()
        return self.head(torch.tanh(self.first(hidden[:, 0])) + pooled)


def loss_of(model: nn.Module) -> Callable[[dict[str, Tensor]], Tensor]:
    return lambda batch: nn.functional.cross_entropy(model(batch["input_ids"]), batch["labels"], reduction="sum")


def samples_of(lengths: Sequence[int], seed: int) -> list[dict[str, Any]]:
    generator = random.Random(seed)
    return [
        {"input_ids": [generator.randrange(2, VOCABULARY) for _ in range(length)], "labels": generator.randrange(3)}
        for length in lengths
    ]


def collect(model: nn.Module, batches: Sequence[list[Any]], consumer: Callable[..., None]) -> None:
    """Run batches, and hand on each parameter's gradients with the first sample of its batch."""
    loss, at = loss_of(model), 0
    with Capture(model, plan_coverage(model, frozenset(dict(model.named_parameters())))) as capture:
        for batch in batches:
            capture.run(lambda: loss(padded(batch)), len(batch), lambda name, forms: consumer(name, forms, at))
            at += len(batch)


def products(model: nn.Module, bank: ProbeBank, batches: Sequence[list[Any]]) -> tuple[Tensor, Tensor]:
    """Inner products [train, probes] and squared norms [train] of batches of train samples."""
    held, count = HeldBlock(10**9), sum(map(len, batches))
    dot, squared = torch.zeros(1, count, bank.probes), torch.zeros(1, count)
    loss = loss_of(model)
    with Capture(model, plan_coverage(model, frozenset(dict(model.named_parameters())))) as capture:
        for batch in batches:
            capture.run(lambda: loss(padded(batch)), len(batch), held.add)
            held.end_batch(len(batch))
    held.contract(bank, dot, squared)
    return dot[0], squared[0]


def whole_gradients(model: nn.Module, batches: Sequence[list[Any]], scales: dict[str, Tensor] | None = None) -> Tensor:
    """The loop's gradients of all samples: [samples, elements]."""
    loss, names = loss_of(model), list(dict(model.named_parameters()))
    samples = [sample for batch in batches for sample in batch]
    found = gradient_loop(model, lambda one: loss(padded([one])), samples, names)
    return torch.cat([found[name] * (1 if scales is None else scales[name].flatten()) for name in names], 1)


def assert_products(dot: Tensor, squared: Tensor, bank: ProbeBank, z: Tensor, q: Tensor) -> None:
    norms = z.norm(dim=1)[:, None] * q.norm(dim=1)
    assert float(((dot - z @ q.T).abs() / norms).max()) <= 1e-5
    torch.testing.assert_close(squared.double().sqrt(), z.norm(dim=1), rtol=1e-5, atol=0)
    torch.testing.assert_close(bank.squared_norms[0].double().sqrt(), q.norm(dim=1), rtol=1e-5, atol=0)


PROBE_LENGTHS = ([190, 150], [40, 22, 21, 20], [9, 5, 3, 1])
TRAIN_LENGTHS = ([190], [60, 12, 5], [3, 4])


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("width", [256, 768])
def test_probes_of_every_length_in_every_order(width: int, order: tuple[int, ...]) -> None:
    model = Encoder(width).eval()
    probes = [samples_of(PROBE_LENGTHS[i], seed=i) for i in order]
    train = [samples_of(TRAIN_LENGTHS[i], seed=10 + i) for i in order]
    bank = ProbeBank(10, dict.fromkeys(dict(model.named_parameters()), 0), 1)
    collect(model, probes, bank.collect)
    bank.seal()
    dot, squared = products(model, bank, train)
    assert_products(dot, squared, bank, whole_gradients(model, train), whole_gradients(model, probes))


def both_sides(width: int) -> tuple[nn.Module, list[list[Any]], list[list[Any]], dict[str, int]]:
    model = Encoder(width).eval()
    probes = [samples_of(lengths, seed=i) for i, lengths in enumerate(PROBE_LENGTHS)]
    train = [samples_of(lengths, seed=10 + i) for i, lengths in enumerate(TRAIN_LENGTHS)]
    return model, train, probes, dict.fromkeys(dict(model.named_parameters()), 0)


def outer(drawn: Tensor) -> Tensor:
    """The outer product of the first row and the first column."""
    if drawn.dim() < 2:
        return drawn
    matrix = drawn.flatten(1) + 0.1
    return torch.outer(matrix[:, 0], matrix[0]).view_as(drawn)


def some_scales(model: nn.Module, way: str) -> dict[str, Tensor] | None:
    """Nothing, what Adam's second moments scale with (also factored), or a mask."""
    generator = torch.Generator().manual_seed(3)
    drawn = {name: torch.rand(p.shape, generator=generator) for name, p in model.named_parameters()}
    scales = {
        "adam": {name: one + 0.1 for name, one in drawn.items()},
        "factored": {n: outer(one) for n, one in drawn.items()},
        "mask": {n: (one < 0.3).float() for n, one in drawn.items()},
    }
    return scales.get(way)


@pytest.mark.parametrize("way", ["exact", "adam", "factored", "mask"])
@pytest.mark.parametrize("width", [16, 128, 256, 768, 1024])
def test_products_at_every_width(width: int, way: str) -> None:
    model, train, probes, parts = both_sides(width)
    scales = some_scales(model, way)
    bank = ProbeBank(10, parts, 1, scales)
    collect(model, probes, bank.collect)
    bank.seal()
    dot, squared = products(model, bank, train)
    assert_products(dot, squared, bank, *(whole_gradients(model, side, scales) for side in (train, probes)))


@pytest.mark.parametrize("width", [16, 128, 256, 768, 1024])
def test_means_at_every_width(width: int) -> None:
    model, train, probes, parts = both_sides(width)
    weights = torch.rand(10, 3, generator=torch.Generator().manual_seed(4))
    bank = QueryBank(weights, parts, 1)
    collect(model, probes, bank.collect)
    bank.seal()
    dot, squared = products(model, bank, train)
    z, q = (whole_gradients(model, side) for side in (train, probes))
    assert (
        float(((dot - z @ q.T @ weights.double()).abs() / (z.norm(dim=1)[:, None] * (q.norm(dim=1) @ weights.double()))).max())
        <= 1e-5
    )
    torch.testing.assert_close(squared.double().sqrt(), z.norm(dim=1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("width", [16, 128, 256, 768, 1024])
def test_features_at_every_width(width: int) -> None:
    """The features of a batch are those of the loop's gradients, whatever they estimate."""
    model, train, _, parts = both_sides(width)
    coverage = plan_coverage(model, frozenset(parts))
    sketch = Sketch.plan(coverage, {}, 2000)
    features = torch.zeros(6, sketch.dim)

    def consume(name: str, forms: Any, at: int) -> None:
        found = sketch.features(name, forms)
        features[at : at + len(found), sketch.layout[name]] = found

    collect(model, train, consume)
    loss = loss_of(model)
    samples = [sample for batch in train for sample in batch]
    found = gradient_loop(model, lambda one: loss(padded([one])), samples, list(parts))
    want = torch.cat([sketch.parts[name](Dense(found[name])) for name in sketch.parts], 1)
    assert float(((features - want).norm(dim=1) / want.norm(dim=1)).max()) <= 1e-5


def test_products_in_bfloat16_are_added_up_in_single_precision() -> None:
    """A sum over many tiles or parameters in half precision would lose most of its terms."""
    _, train, probes, parts = both_sides(768)
    half = Encoder(768).bfloat16().eval()
    bank = ProbeBank(10, parts, 1)
    collect(half, probes, bank.collect)
    bank.seal()
    dot, squared = products(half, bank, train)
    assert bank.squared_norms.dtype == torch.float32
    z, q = (whole_gradients(half, side) for side in (train, probes))
    assert float(((dot - z @ q.T).abs() / (z.norm(dim=1)[:, None] * q.norm(dim=1))).max()) <= 0.02
    torch.testing.assert_close(squared.double().sqrt(), z.norm(dim=1), rtol=0.02, atol=0)
