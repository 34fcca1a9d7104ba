"""A refit without a group, predicted: against gradient descent on quadratic losses, and against refits of a small classifier."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_tracin import TracInError
from lightning_tracin.analysis.predicted_need import Pull, label_weights, predicted_rise

GROUPS = [0, 0, 0, 1, 1, 2, 2, 2]


def shards_of(features: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """In two shards, and not in order."""
    order = torch.arange(len(features)).flip(0)
    for some in order.split(5):
        yield some, features[some]


def slow(features: Tensor, probes: Tensor, pull: Pull) -> Tensor:
    """The formulas of the module's docstring, group by group, with an inverse."""
    owner, found = torch.tensor(GROUPS), []
    roots = pull.rates.sqrt()
    phi, psi = features * roots, probes * roots
    for group in range(3):
        mine, rest = phi[owner == group], phi[owner != group]
        push = pull.now * len(mine) / len(phi) * (mine.mean(0) - rest.mean(0))
        curvature = (pull.weights[owner != group, None] * rest).T @ rest / len(rest)
        left = torch.linalg.inv(torch.eye(len(push), dtype=phi.dtype) + pull.now * pull.later * curvature) @ push
        found.append(psi @ left)
    return torch.stack(found)


@pytest.mark.parametrize("dim", [4, 8, 20])  # fewer features than samples, as many, and more
def test_it_is_the_formula_however_it_is_solved(dim: int) -> None:
    generator = torch.Generator().manual_seed(dim)
    features, probes = (torch.randn(rows, dim, generator=generator, dtype=torch.float64) for rows in (8, 5))
    rates = torch.rand(dim, generator=generator, dtype=torch.float64) / 10
    pull = Pull(rates, now=7, later=2.5, weights=torch.rand(8, generator=generator, dtype=torch.float64) * 3)
    found = predicted_rise(lambda: shards_of(features), probes, GROUPS, pull)
    torch.testing.assert_close(found, slow(features, probes, pull))


def test_many_features_are_solved_for_a_few_groups_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_tracin.analysis.predicted_need.HELD_BYTES", 0)
    generator = torch.Generator().manual_seed(0)
    features, probes = (torch.randn(rows, 3, generator=generator, dtype=torch.float64) for rows in (8, 5))
    pull = Pull(torch.full((3,), 0.1, dtype=torch.float64), now=3, later=1.0, weights=torch.ones(8, dtype=torch.float64))
    found = predicted_rise(lambda: shards_of(features), probes, GROUPS, pull)
    torch.testing.assert_close(found, slow(features, probes, pull))


def test_it_is_what_a_refit_on_quadratic_losses_comes_to() -> None:
    """Least squares: after one step, a fit without a group differs by the push; after many, the pull of the samples that are left
    has brought it to where their loss is least, within 7 %."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    wanted = inputs @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + torch.randn(60, generator=generator) * 0.3
    owner, probe = torch.arange(60) % 3, torch.randn(4, 3, generator=generator, dtype=torch.float64)
    start = torch.linalg.lstsq(inputs, wanted[:, None]).solution[:, 0]  # the fit has ended; the refit goes on from there
    residual = inputs @ start - wanted
    gradients, rate = residual[:, None] * inputs, 0.05
    for steps, later, close in ((1, 0.0, 1e-9), (400, 1.0, 0.07)):
        pull = Pull(torch.full((3,), rate, dtype=torch.float64), now=steps, later=later, weights=1 / residual.square())
        found = predicted_rise(lambda: iter([(torch.arange(60), gradients)]), probe, owner.tolist(), pull)
        for group in range(3):
            rest, weights = owner != group, start.clone()
            for _ in range(steps):
                weights -= rate * (inputs[rest] * (inputs[rest] @ weights - wanted[rest])[:, None]).mean(0)
            measured = probe @ (weights - start)  # a probe whose loss has this gradient
            torch.testing.assert_close(found[group], measured, rtol=0, atol=close * float(measured.abs().max()))


def test_the_weight_of_a_sample_is_its_curvature_for_two_classes() -> None:
    logits = torch.tensor([[0.3, 1.1], [2.0, -1.0]], dtype=torch.float64)
    labels = torch.tensor([1, 1])
    weights = label_weights(F.cross_entropy(logits, labels, reduction="none"))
    for line, label, weight in zip(logits, labels, weights, strict=True):

        def loss(one: Tensor, label: Tensor = label) -> Tensor:
            return F.cross_entropy(one, label)

        hessian = torch.autograd.functional.hessian(loss, line)
        gradient = torch.autograd.functional.jacobian(loss, line)
        torch.testing.assert_close(weight * torch.outer(gradient, gradient), hessian)


def test_a_sample_without_loss_pulls_with_a_finite_weight() -> None:
    assert torch.isfinite(label_weights(torch.zeros(1))).all()


def test_a_language_like_the_others_is_not_missed() -> None:
    features = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64).repeat(3, 1)
    pull = Pull(torch.full((2,), 0.1, dtype=torch.float64), now=5, later=1.0, weights=torch.ones(6, dtype=torch.float64))
    found = predicted_rise(lambda: iter([(torch.arange(6), features)]), torch.ones(1, 2), [0, 0, 1, 1, 2, 2], pull)
    torch.testing.assert_close(found, torch.zeros_like(found), atol=1e-12, rtol=0)


def test_one_language_cannot_be_left_out() -> None:
    pull = Pull(torch.ones(2), now=1, later=1.0, weights=torch.ones(2))
    with pytest.raises(TracInError, match="All train samples are in one language"):
        predicted_rise(lambda: iter([(torch.arange(2), torch.ones(2, 2))]), torch.ones(1, 2), [0, 0], pull)


def test_too_many_features_are_refused() -> None:
    pull = Pull(torch.ones(16_385), now=1, later=1.0, weights=torch.ones(17_000))
    groups = [0, 1] * 8_500
    with pytest.raises(TracInError, match=r"16,385 features needs 2 GB; take a `projection_dim` of at most 16,384"):
        predicted_rise(lambda: iter([(torch.arange(1), torch.ones(1, 16_385))]), torch.ones(1, 16_385), groups, pull)
