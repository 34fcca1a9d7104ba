"""The inner product of whitened features, against its formula with plain inverses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_tracin.analysis.damped_inverse import InverseByFeatures, InverseBySamples
from lightning_tracin.analysis.fisher import whitener_of
from lightning_tracin.errors import TracInError

BLOCKS = {"whole": [[0, 1, 2, 3, 4, 5]], "two": [[0, 1, 4], [2, 3, 5]]}


def drawn(count: int, seed: int, dim: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(dim, dim, generator=generator)
    return torch.randn(count, dim, generator=generator) @ mixed


def by_formula(train: Tensor, blocks: list[list[int]], damping: float, rates: Tensor) -> tuple[Tensor, Tensor]:
    """M, and N: (F + c R^-1)^-1 in each block; a rate of 0 is a very small one."""
    train, rates = train.double(), rates.double().clamp(min=1e-12)
    moment = train.T @ train / len(train)
    whole, alone = torch.zeros(6, 6, dtype=torch.float64), torch.zeros(6, 6, dtype=torch.float64)
    for block in blocks:
        mine = moment[block][:, block]
        mean = (rates[block] * mine.diagonal()).sum() / mine.trace()
        inverse = torch.linalg.inv(mine + damping * moment.trace() * torch.diag(mean / rates[block]))
        alone[torch.tensor(block)[:, None], torch.tensor(block)] = inverse
        whole[torch.tensor(block)[:, None], torch.tensor(block)] = mean * inverse
    return whole, alone


@pytest.mark.parametrize("blocks", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("damping", [0.003, 0.3])
@pytest.mark.parametrize(
    "rates",
    [[1.0] * 6, [0.3] * 6, [0.5, 0.5, 0.5, 0.01, 0.01, 0.01], [2.0, 0.0, 0.1, 0.1, 0.0, 3.0]],
    ids=["uniform", "one rate", "two rates", "some do not move"],
)
def test_weights_enter_before_the_whitening(blocks: list[list[int]], damping: float, rates: list[float]) -> None:
    train, probes = drawn(40, 0), drawn(9, 1)
    whitener = whitener_of([train[:25], train[25:]], 40, [torch.tensor(block) for block in blocks], damping, torch.tensor(rates))
    metric, alone = by_formula(train, blocks, damping, torch.tensor(rates))
    got, want = whitener.dual(probes).double(), probes.double() @ metric
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
    norms = torch.einsum("nd,de,ne->n", probes.double(), alone, probes.double())
    torch.testing.assert_close(whitener.squared_norms(probes).sum(0).double(), norms, rtol=1e-4, atol=1e-6)


def test_one_rate_is_a_factor_of_the_plain_whitening() -> None:
    train, probes, block = drawn(40, 0), drawn(9, 1), [torch.arange(6)]
    plain = whitener_of([train], 40, block, 0.01, torch.ones(6))
    slow = whitener_of([train], 40, block, 0.01, torch.full((6,), 0.25))
    torch.testing.assert_close(slow.dual(probes), 0.25 * plain.dual(probes), rtol=0, atol=0)
    torch.testing.assert_close(slow.squared_norms(probes), plain.squared_norms(probes), rtol=0, atol=0)


def test_large_ridge_leaves_the_weights_of_tracin() -> None:
    train, probes, rates = drawn(40, 0), drawn(9, 1), torch.tensor([1.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    whitener = whitener_of([train], 40, [torch.arange(6)], 1e5, rates)
    ridge = 1e5 * float(train.square().sum(1).mean())
    torch.testing.assert_close(ridge * whitener.dual(probes), probes * rates, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rates", [[0.0] * 6, [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]], ids=["no rate", "a rate without gradients"])
def test_fit_that_does_not_move_has_no_influence(rates: list[float]) -> None:
    train = drawn(40, 0)
    train[:, 5] = 0
    whitener = whitener_of([train], 40, [torch.arange(6)], 0.01, torch.tensor(rates))
    assert not (train @ whitener.dual(drawn(9, 1)).T).any()
    assert bool((whitener.squared_norms(train) > 0).all())


@pytest.mark.parametrize("rates", [[0.3] * 6, [2.0, 0.01, 0.1, 0.1, 0.5, 3.0]], ids=["one rate", "several"])
def test_ridge_of_the_fits_own_steps(rates: list[float]) -> None:
    train, probes, steps = drawn(40, 0), drawn(9, 1), 7.5
    whitener = whitener_of([train], 40, [torch.arange(6)], 0.01, torch.tensor(rates), steps)
    moment = (train.T @ train).double() / len(train)
    metric = torch.linalg.inv(moment + torch.diag(1 / (steps * torch.tensor(rates).double()))) / steps
    torch.testing.assert_close(whitener.dual(probes).double(), probes.double() @ metric, rtol=1e-4, atol=1e-6)


def test_norms_with_the_fits_own_ridge_are_plain_ones_where_the_loss_is_flat() -> None:
    """So that a cosine weights snapshots by nothing, and a step without a rate counts for nothing."""
    train, probes = 1e-3 * drawn(40, 0), drawn(9, 1)
    whitener = whitener_of([train], 40, [torch.arange(6)], 0.01, torch.full((6,), 0.2), steps=10.0)
    torch.testing.assert_close(whitener.squared_norms(probes)[0], probes.square().sum(1), rtol=1e-3, atol=1e-6)
    still = whitener_of([train], 40, [torch.arange(6)], 0.01, torch.zeros(6), steps=10.0)
    assert not still.dual(probes).any()
    torch.testing.assert_close(still.squared_norms(probes)[0], probes.square().sum(1))


def test_slow_steps_on_a_flat_loss_are_those_of_tracin() -> None:
    train, probes, rates = 1e-3 * drawn(40, 0), drawn(9, 1), torch.tensor([0.1, 0.1, 0.2, 0.3, 0.4, 0.5])
    whitener = whitener_of([train], 40, [torch.arange(6)], 0.01, rates, steps=10.0)
    torch.testing.assert_close(whitener.dual(probes), probes * rates, rtol=1e-3, atol=1e-6)


def test_ridge_follows_what_gradient_flow_leaves_of_a_push() -> None:
    """Plain gradient descent on a quadratic loss, pushed by one sample at every step: the answer of its end, step by step."""
    train, push = drawn(40, 0).double(), drawn(1, 1).double()[0]
    curvature, rate, steps = train.T @ train / len(train), 0.02, 60
    answer = torch.zeros(6, dtype=torch.float64)
    for _ in range(steps):
        answer += rate * (push - curvature @ answer)
    whitener = whitener_of([train.float()], 40, [torch.arange(6)], 0.01, torch.full((6,), rate), steps)
    found = steps * whitener.dual(push.float()[None])[0].double()
    cosine = float(found @ answer / found.norm() / answer.norm())
    plain = float(push @ answer / push.norm() / answer.norm())
    assert cosine > 0.99
    assert cosine > plain
    assert 0.7 < float(found.norm() / answer.norm()) < 1.0


def dense(train: Tensor, blocks: list[list[int]], damping: float, rates: Tensor, steps: float | None) -> tuple[Tensor, Tensor]:
    """M, and N = sqrt(R) (sqrt(R) F sqrt(R) + c)^-1 sqrt(R), both [features, features], as they are defined."""
    train, rates = train.double(), rates.double()
    moment = train.T @ train / len(train)
    whole, alone = torch.zeros_like(moment), torch.zeros_like(moment)
    for block in blocks:
        mine = moment[block][:, block]
        mean = float((rates[block] * mine.diagonal()).sum() / mine.trace())
        roots = torch.diag((rates[block] / mean).sqrt()) if mean else torch.eye(len(block), dtype=torch.float64)
        scaled = roots @ mine @ roots
        eye = torch.eye(len(block), dtype=torch.float64)
        damped = scaled + damping * moment.trace() * eye if steps is None else steps * mean * scaled + eye
        inverse = roots @ torch.linalg.inv(damped) @ roots
        alone[torch.tensor(block)[:, None], torch.tensor(block)] = inverse
        whole[torch.tensor(block)[:, None], torch.tensor(block)] = mean * inverse
    return whole, alone


#: Of 3 samples, 8 features are many and 2 are few.
FEW = {"whole": [[*range(12)]], "by layer": [[0, 2, 4, 5, 6, 8, 9, 11], [1, 3], [7, 10]]}
RATES = {
    "one rate": [0.3] * 12,
    "groups": [0.5, 0.01, 2.0] * 4,
    "one does not move": [0.5, 0.0, 2.0] * 4,
    "none moves": [0.0] * 12,
}


@pytest.mark.parametrize("steps", [None, 7.5], ids=["damping", "steps"])
@pytest.mark.parametrize("damping", [1e-4, 0.3])
@pytest.mark.parametrize("rates", RATES.values(), ids=RATES)
@pytest.mark.parametrize("blocks", FEW.values(), ids=FEW)
def test_few_samples_give_what_the_definition_gives(
    blocks: list[list[int]], rates: list[float], damping: float, steps: float | None
) -> None:
    train, probes = drawn(3, 0, 12), drawn(9, 1, 12)
    shards = iter([train[:2], train[2:]])
    whitener = whitener_of(shards, 3, [torch.tensor(block) for block in blocks], damping, torch.tensor(rates), steps)
    metric, alone = dense(train, blocks, damping, torch.tensor(rates), steps)
    for features in (probes, train):
        want = features.double() @ metric
        torch.testing.assert_close(whitener.dual(features).double(), want, rtol=1e-4, atol=1e-6 * float(want.abs().max()))
        got = whitener.squared_norms(features).double()
        for norms, block in zip(got, blocks, strict=True):
            mine = features[:, block].double()
            torch.testing.assert_close(norms, torch.einsum("nd,de,ne->n", mine, alone[block][:, block], mine), rtol=1e-4, atol=0)


def test_each_block_takes_the_form_that_is_smaller() -> None:
    blocks = [torch.tensor(block) for block in FEW["by layer"]]
    whitener = whitener_of([drawn(3, 0, 12)], 3, blocks, 0.01, torch.ones(12))
    assert [type(inverse) for inverse in whitener.inverses] == [InverseBySamples, InverseByFeatures, InverseByFeatures]


@pytest.mark.parametrize("damping", [1e-7, 1e-10, 1e-13])
def test_tiny_ridge_leaves_norms_of_train_samples_exact(damping: float) -> None:
    """Without a ridge, whitened train samples that are independent have the norm sqrt(n), and are orthogonal."""
    train = drawn(300, 0, 1000) * torch.logspace(-2, 2, 300)[:, None]
    whitener = whitener_of([train], 300, [torch.arange(1000)], damping, torch.ones(1000))
    values = torch.linalg.svdvals(train.double()).square() / 300
    ridge = damping * float(values.sum())
    norms = whitener.squared_norms(train)[0]
    assert bool((norms > 0).all())
    assert float(norms.double().sum()) == pytest.approx(300 * float((values / (values + ridge)).sum()), rel=1e-5)


@pytest.mark.parametrize(("count", "samples"), [(4, "4 train samples, but only 3 are"), (2, "2 train samples, but more are")])
def test_other_samples_than_the_runs_are_refused(count: int, samples: str) -> None:
    with pytest.raises(TracInError, match=rf"needs the features of {samples} stored; run the attribution again"):
        whitener_of([drawn(2, 0), drawn(1, 1)], count, [torch.arange(6)], 0.01, torch.ones(6))


def test_no_ridge_and_few_samples_have_no_inverse() -> None:
    with pytest.raises(TracInError, match=r"6 features of 5 train samples has no inverse; take a `damping` above 0"):
        whitener_of([drawn(5, 0)], 5, [torch.arange(6)], 0.0, torch.ones(6))


def test_features_that_are_all_zero_are_refused() -> None:
    with pytest.raises(TracInError, match="features of the train samples are zero"):
        whitener_of([torch.zeros(2, 6)], 2, [torch.arange(6)], 0.01, torch.ones(6))
