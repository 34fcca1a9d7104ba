"""Scaled gradients and language means equal what a loop over single samples gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_tracin.gradients import Capture, HeldBlock, ProbeBank, ProbeNorms, QueryBank, plan_coverage
from lightning_tracin.gradients.forms import Dense, Outer, coalesced, to_dense
from lightning_tracin.gradients.holding import Factored, Tiled, Written, hold
from tests.gradients.test_exact import Tied
from tests.support.models import padded, ragged_samples, tiny_xlmr
from tests.support.oracles import gradient_loop


def xlmr() -> tuple[nn.Module, Callable[[Any], Tensor]]:
    model = tiny_xlmr().eval()
    return model, lambda batch: model(**batch).loss * len(batch["labels"])


def tied() -> tuple[nn.Module, Callable[[Any], Tensor]]:
    model = Tied()
    return model, lambda batch: model(batch["input_ids"])


def wide() -> tuple[nn.Module, Callable[[Any], Tensor]]:
    """A tied table with more columns than rows."""
    model = Tied()
    model.words = nn.Embedding(6, 8)
    model.head = nn.Linear(8, 6)
    model.head.weight = model.words.weight
    return model, lambda batch: model(batch["input_ids"] % 6)


def run(model: nn.Module, loss: Any, samples: list[Any], size: int, consumer: Callable[..., None]) -> None:
    with Capture(model, plan_coverage(model, frozenset(name for name, _ in model.named_parameters()))) as capture:
        for at in range(0, len(samples), size):
            batch = samples[at : at + size]
            capture.run(lambda: loss(padded(batch)), len(batch), lambda name, forms: consumer(name, forms, at))


def contracted(model: nn.Module, loss: Any, bank: ProbeBank, train: list[Any], size: int) -> tuple[Tensor, Tensor]:
    dot, squared = torch.zeros(2, len(train), bank.probes), torch.zeros(2, len(train))
    held = HeldBlock(most_bytes=10**9)
    with Capture(model, plan_coverage(model, frozenset(name for name, _ in model.named_parameters()))) as capture:
        for at in range(0, len(train), size):
            batch = train[at : at + size]
            capture.run(lambda: loss(padded(batch)), len(batch), held.add)
            held.end_batch(len(batch))
    held.contract(bank, dot, squared)
    return dot, squared.sqrt()


def by_part(gradients: dict[str, Tensor], parts: dict[str, int], part: int) -> Tensor:
    return torch.cat([gradients[name] for name in gradients if parts[name] == part], 1)


def parts_of(model: nn.Module) -> dict[str, int]:
    return {name: i % 2 for i, (name, _) in enumerate(model.named_parameters())}


def assert_equal(bank: ProbeBank, dot: Tensor, norm: Tensor, gradients: list[dict[str, Tensor]], parts: dict[str, int]) -> None:
    """Products and norms equal those of whole gradients of train samples and probes."""
    for part in range(2):
        z, q = (by_part(side, parts, part) for side in gradients)
        assert torch.all((dot[part] - z @ q.T).abs() <= 1e-5 * z.norm(dim=1)[:, None] * q.norm(dim=1))
        torch.testing.assert_close(norm[part].double(), z.norm(dim=1), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(bank.squared_norms[part].sqrt().double(), q.norm(dim=1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("make", [xlmr, tied, wide])
def test_scaled_gradients_on_both_sides(make: Any) -> None:
    model, loss = make()
    train, probes, parts = ragged_samples(11, 1), ragged_samples(5, 2), parts_of(model)
    generator = torch.Generator().manual_seed(0)
    scales = {name: torch.rand(p.shape, generator=generator) + 0.1 for name, p in model.named_parameters()}
    bank = ProbeBank(len(probes), parts, 2, scales)
    run(model, loss, probes, 2, bank.collect)
    bank.seal()
    dot, norm = contracted(model, loss, bank, train, 4)
    one_by_one = [gradient_loop(model, lambda one: loss(padded([one])), samples, list(parts)) for samples in (train, probes)]
    scaled = [{name: g * scales[name].flatten() for name, g in side.items()} for side in one_by_one]
    assert_equal(bank, dot, norm, scaled, parts)


@pytest.mark.parametrize("make", [xlmr, tied, wide])
def test_weighted_sums_of_probes(make: Any) -> None:
    model, loss = make()
    train, probes, parts = ragged_samples(11, 1), ragged_samples(7, 2), parts_of(model)
    weights = torch.rand(7, 3, generator=torch.Generator().manual_seed(0)) * (torch.arange(21).view(7, 3) % 4 > 0)
    norms = ProbeNorms(len(probes), parts, 2)
    run(model, loss, probes, 3, norms.collect)
    bank = QueryBank(weights, parts, 2)
    run(model, loss, probes, 3, bank.collect)
    bank.seal()
    dot, norm = contracted(model, loss, bank, train, 4)
    one_by_one = [gradient_loop(model, lambda one: loss(padded([one])), samples, list(parts)) for samples in (train, probes)]
    for part in range(2):
        z, q = (by_part(side, parts, part) for side in one_by_one)
        torch.testing.assert_close(norms.squared[part].sqrt().double(), q.norm(dim=1), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(norm[part].double(), z.norm(dim=1), rtol=1e-5, atol=1e-7)
        bound = 1e-5 * z.norm(dim=1)[:, None] * (weights.double().T @ q.norm(dim=1))
        assert torch.all((dot[part] - z @ q.T @ weights.double()).abs() <= bound)


@pytest.mark.parametrize("make", [xlmr, tied, wide])
def test_products_and_norms_of_whole_models(make: Any) -> None:
    model, loss = make()
    train, probes, parts = ragged_samples(11, 1), ragged_samples(5, 2), parts_of(model)
    bank = ProbeBank(len(probes), parts, 2)
    run(model, loss, probes, 2, bank.collect)
    bank.seal()
    dot, norm = contracted(model, loss, bank, train, 4)
    one_by_one = [gradient_loop(model, lambda one: loss(padded([one])), samples, list(parts)) for samples in (train, probes)]
    assert_equal(bank, dot, norm, one_by_one, parts)


def outer(samples: int, positions: int, rows: int, columns: int) -> Outer:
    return Outer(torch.randn(samples, positions, rows), torch.randn(samples, positions, columns))


@pytest.mark.parametrize(
    ("lengths", "width", "held"),
    [([1, 1], 768, Factored), ([100, 3], 768, Tiled), ([3, 100], 768, Tiled), ([400, 300], 768, Written), ([9, 30], 16, Written)],
)
def test_how_a_parameter_is_held_follows_from_all_of_its_batches(lengths: list[int], width: int, held: type) -> None:
    pieces = [(4 * number, (outer(4, length, width, width),)) for number, length in enumerate(lengths)]
    assert type(hold(pieces, 8, None)) is held


def test_a_batch_of_one_sample_may_come_whole_where_others_come_as_rows() -> None:
    """A table that is used behind its layer's back: a batch of one needs no way to tell samples apart."""
    table, width = 50, 4
    rows = coalesced(torch.arange(3), torch.tensor([7, 7, 9]), torch.randn(3, width), 3, table)
    alone = Dense(torch.randn(1, table * width))
    bank = ProbeBank(4, {"w": 0}, 1)
    for at, form in ((0, rows), (3, alone)):
        bank.collect("w", (form,), at)
    bank.seal()
    dot, squared = torch.zeros(1, 4, 4), torch.zeros(1, 4)
    bank.contract("w", [(0, (alone,)), (1, (rows,))], dot, squared)
    z = torch.cat([alone.values, to_dense(rows)])
    torch.testing.assert_close(dot[0], z @ torch.cat([to_dense(rows), alone.values]).T)
    torch.testing.assert_close(squared[0], z.square().sum(1))


def test_a_bank_says_in_which_state_it_is() -> None:
    bank = ProbeBank(2, {"w": 0}, 1)
    with pytest.raises(ValueError, match="collected no gradients"):
        _ = bank.squared_norms
    with pytest.raises(ValueError, match="once it is sealed"):
        bank.contract("w", [(0, (Dense(torch.ones(2, 3)),))], torch.zeros(1, 2, 2), torch.zeros(1, 2))
    for sealed in (bank, QueryBank(torch.ones(2, 1), {"w": 0}, 1)):
        sealed.seal()
        with pytest.raises(ValueError, match="takes no more gradients"):
            sealed.collect("w", (Dense(torch.ones(2, 3)),), 0)


def test_some_probes_do_not_reach_a_layer_that_is_held_as_factors() -> None:
    generator = torch.Generator().manual_seed(0)
    pieces = [
        (at, Outer(torch.randn(2, 3, 40, generator=generator), torch.randn(2, 3, 30, generator=generator))) for at in (2, 6)
    ]
    bank = ProbeBank(100, {"w": 0}, 1)
    for at, form in pieces:
        bank.collect("w", (form,), at)
    bank.seal()
    train = Outer(torch.randn(4, 5, 40, generator=generator), torch.randn(4, 5, 30, generator=generator))
    dot, squared = torch.zeros(1, 6, 100), torch.zeros(1, 6)
    bank.contract("w", [(1, (train,))], dot, squared)
    want = torch.zeros(6, 100)
    for at, form in pieces:
        want[1:5, at : at + 2] = torch.einsum("itr,itc,psr,psc->ip", train.left, train.right, form.left, form.right)
    torch.testing.assert_close(dot[0], want, rtol=1e-4, atol=1e-3)
    assert bool((bank.squared_norms[0] > 0).nonzero().flatten().equal(torch.tensor([2, 3, 6, 7])))


def test_bytes_held_are_those_of_factors_or_of_what_is_written_out() -> None:
    bank = ProbeBank(1000, {}, 1)
    shared = torch.zeros(1, 4, 30)
    held = {"q": (Outer(torch.zeros(1, 4, 40), shared),), "k": (Outer(torch.zeros(1, 4, 40), shared),)}
    assert bank.bytes_held(held) == 4 * (4 * 40 + 4 * 40 + 4 * 30)
    assert bank.bytes_held({"w": (Outer(torch.zeros(1, 20, 40), torch.zeros(1, 20, 30)),)}) == 4 * 40 * 30
    assert bank.bytes_held({"b": (Dense(torch.zeros(2, 7)),)}) == 4 * 2 * 7
