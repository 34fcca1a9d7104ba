"""The comparison that tests of gradients make: a pass as the package does it against the loop of `autograd.grad`."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_tracin.gradients import Capture, Coverage, HeldBlock, ProbeBank, plan_coverage, verify_gradients
from tests.support.oracles import gradient_loop, ingredients_loop


def ingredients(
    model: nn.Module,
    loss: Callable[[Any], Tensor],
    collate: Callable[[list[Any]], Any],
    train: Sequence[Any],
    probes: Sequence[Any],
    groups: dict[str, int],
    batch_size: int,
    probe_batch_size: int = 4,
    most_bytes: int = 20_000,
    coverage: Coverage | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What the package computes: dot, train norms, probe norms. Batches leave nothing in memory."""
    count = max(groups.values()) + 1
    left: list[weakref.ref[Received]] = []
    bank = ProbeBank(len(probes), groups, count)
    with Capture(model, coverage or plan_coverage(model, frozenset(groups))) as capture:
        for at in range(0, len(probes), probe_batch_size):
            chunk = list(probes[at : at + probe_batch_size])
            left.append(run(capture, loss, collate, chunk, lambda name, forms: bank.collect(name, forms, at)))
        bank.seal()
        dot = bank.squared_norms.new_zeros(count, len(train), len(probes))
        squared = bank.squared_norms.new_zeros(count, len(train))
        held, start = HeldBlock(most_bytes), 0
        for at in range(0, len(train), batch_size):
            chunk = list(train[at : at + batch_size])
            left.append(run(capture, loss, collate, chunk, held.add))
            held.end_batch(len(chunk))
            if held.is_complete or at + batch_size >= len(train):
                stop = at + len(chunk)
                held.contract(bank, dot[:, start:stop], squared[:, start:stop])
                start = stop
    if any(received() for received in left):  # it may wait for the collector, which takes longer than the pass
        gc.collect()
    assert not any(received() for received in left), "a batch's graph is still in memory"
    return dot, squared.sqrt(), bank.squared_norms.sqrt()


class Received:
    """A consumer that lives as long as the graph of its batch, whose hooks refer to it."""

    def __init__(self, consumer: Callable[[str, Any], None]) -> None:
        self.consumer = consumer

    def __call__(self, name: str, forms: Any) -> None:
        self.consumer(name, forms)


def run(
    capture: Capture,
    loss: Callable[[Any], Tensor],
    collate: Callable[[list[Any]], Any],
    samples: list[Any],
    consumer: Callable[[str, Any], None],
) -> weakref.ref[Received]:
    """One batch, as a pass runs it: with the losses of its samples where they are known, and with each sample alone."""
    found, received = [], Received(consumer)

    def total() -> Tensor:
        found.append(loss(collate(samples)))
        return found[-1].sum()

    def alone(position: int) -> Tensor:
        return one_loss(loss, collate, samples[position])

    decisions = capture.coverage.decisions
    is_verified = bool(decisions.verified or decisions.one_by_one)
    capture.run(total, len(samples), received, lambda: own_of(found), alone if is_verified else None)
    return weakref.ref(received)


def own_of(found: list[Tensor]) -> Tensor | None:
    """The losses of the last batch, unless a loss is a sum already."""
    return found[-1] if found and found[-1].ndim else None


def assert_exact(
    model: nn.Module,
    loss: Callable[[Any], Tensor],
    collate: Callable[[list[Any]], Any],
    train: Sequence[Any],
    probes: Sequence[Any],
    batch_size: int,
    verified: bool = False,
    coverage: Coverage | None = None,
) -> Coverage:
    """Dots and norms equal those of the loop; `verified` looks at a batch first, as the package does before a fit."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = {name: i % 2 for i, name in enumerate(names)} if len(names) > 1 else dict.fromkeys(names, 0)
    if verified:
        coverage = verified_coverage(model, loss, collate, train[:5], names, coverage)
    coverage = coverage or plan_coverage(model, frozenset(names))
    got = ingredients(model, loss, collate, train, probes, groups, batch_size, coverage=coverage)
    one_by_one = [gradient_loop(model, lambda one: one_loss(loss, collate, one), samples, names) for samples in (train, probes)]
    want = ingredients_loop(*one_by_one, groups, max(groups.values()) + 1)
    scale = want[1][:, :, None] * want[2][:, None, :]
    assert torch.all((got[0] - want[0]).abs() <= 1e-5 * scale), ((got[0] - want[0]).abs() / scale).max()
    torch.testing.assert_close(got[1].double(), want[1], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(got[2].double(), want[2], rtol=1e-5, atol=1e-7)
    return coverage


def verified_coverage(
    model: nn.Module,
    loss: Callable[[Any], Tensor],
    collate: Callable[[list[Any]], Any],
    samples: Sequence[Any],
    names: Sequence[str],
    coverage: Coverage | None = None,
) -> Coverage:
    """A coverage that has looked at a batch, as the package does before a fit."""
    coverage = coverage or plan_coverage(model, frozenset(names))
    first, found = list(samples), list[Tensor]()

    def total() -> Tensor:
        found.append(loss(collate(first)))
        return found[-1].sum()

    alone = [partial(one_loss, loss, collate, one) for one in first]
    verify_gradients(model, coverage, total, alone, lambda: own_of(found))
    return coverage


def one_loss(loss: Callable[[Any], Tensor], collate: Callable[[list[Any]], Any], sample: Any) -> Tensor:
    return loss(collate([sample])).sum()
