"""Damped inverses of second moments in both forms, against fractions."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from lightning_tracin.analysis.damped_inverse import (
    DampedInverse,
    GatheredMoment,
    GatheredRows,
    InverseByFeatures,
    InverseBySamples,
    gathering,
)
from lightning_tracin.errors import TracInError


def drawn(count: int, seed: int, dim: int = 8) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def solved_exactly(features: Tensor, ridge: float, vector: Tensor) -> list[Fraction]:
    """``(X'X + c)^-1 v`` by Gaussian elimination in fractions: no rounding at all."""
    rows = [[Fraction(value) for value in row] for row in features.tolist()]
    dim = len(vector)
    matrix = [[sum((row[i] * row[j] for row in rows), Fraction(0)) for j in range(dim)] for i in range(dim)]
    for i, value in enumerate(vector.tolist()):
        matrix[i][i] += Fraction(ridge)
        matrix[i].append(Fraction(value))
    for i in range(dim):  # the matrix is positive definite, so no pivot is 0
        matrix[i] = [value / matrix[i][i] for value in matrix[i]]
        for j in range(dim):
            if j != i:
                matrix[j] = [a - matrix[j][i] * b for a, b in zip(matrix[j], matrix[i], strict=True)]
    return [row[-1] for row in matrix]


def exact(features: Tensor, ridge: float, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Solutions, [vectors, features], and squared norms, [vectors]."""
    solved = [solved_exactly(features, ridge, vector) for vector in vectors]
    norms = [
        float(sum((Fraction(a) * b for a, b in zip(vector.tolist(), line, strict=True)), Fraction(0)))
        for vector, line in zip(vectors, solved, strict=True)
    ]
    values = [[float(value) for value in line] for line in solved]
    return torch.tensor(values, dtype=torch.float64), torch.tensor(norms, dtype=torch.float64)


def vectors_for(features: Tensor) -> Tensor:
    """Vectors in the span of the features, outside of it, and zero."""
    return torch.cat([features, drawn(2, 1), torch.zeros(1, 8)]).double()


@pytest.mark.parametrize("ridge", [1e3, 1.0, 1e-3, 1e-6, 1e-9, 1e-12])
def test_rounding_of_the_inverse_by_samples(ridge: float) -> None:
    """Of a squared norm, none to speak of; of a solution, what double precision leaves of a vector, over the ridge."""
    features = drawn(3, 0)
    vectors = vectors_for(features)
    inverse = InverseBySamples.of(features, torch.ones(8), ridge)
    solutions, norms = exact(features, ridge, vectors)
    torch.testing.assert_close(inverse.squared_norms(vectors), norms, rtol=1e-12, atol=0)
    errors = (inverse.solve(vectors) - solutions).norm(dim=1)
    assert bool((ridge * errors <= 1e-14 * vectors.norm(dim=1)).all())


@pytest.mark.parametrize("ridge", [1e-12, 1e-14, 1e-15])
@pytest.mark.parametrize("twice", [False, True], ids=["independent", "the same sample twice"])
def test_squared_norms_are_never_negative(ridge: float, twice: bool) -> None:
    features = 100 * drawn(300, 0, 1000)
    if twice:
        features[1] = features[0]
    ridge *= float(features.square().sum())
    norms = InverseBySamples.of(features, torch.ones(1000), ridge).squared_norms(features)
    assert bool((norms > 0).all())
    assert float(norms.max()) < 1.001


@pytest.mark.parametrize("count", [3, 20])
@pytest.mark.parametrize("form", [GatheredRows, GatheredMoment])
@pytest.mark.parametrize("scale", [[1.0] * 8, [0.1, 1.0, 0.0, 3.0] * 2], ids=["no scale", "scales"])
def test_both_forms_gather_shard_by_shard(form: type[GatheredRows | GatheredMoment], count: int, scale: list[float]) -> None:
    features, ridge, by = drawn(count, 0), 0.25, torch.tensor(scale).double()
    vectors = vectors_for(features[:3])
    gathered = form(count, 8)
    for shard in features.split(2):
        gathered.add(shard)
    torch.testing.assert_close(gathered.energy(), features.double().square().mean(0))
    inverse: DampedInverse = gathered.inverse(by, ridge)
    solutions, norms = exact(features.double() * by / count**0.5, ridge, vectors)
    torch.testing.assert_close(inverse.solve(vectors).double(), solutions, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(inverse.squared_norms(vectors).double(), norms, rtol=1e-5, atol=0)


def test_more_rows_than_are_in_double_precision_at_a_time() -> None:
    features, vectors = drawn(2500, 0, 40).double(), drawn(5, 1, 40).double()
    scale = torch.linspace(0.5, 2, 40).double()
    inverse = InverseBySamples.of(features.float(), scale, 0.5)
    scaled = features.float().double() * scale
    want = vectors @ torch.linalg.inv(scaled.T @ scaled + 0.5 * torch.eye(40))
    torch.testing.assert_close(inverse.solve(vectors), want, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(inverse.squared_norms(vectors), (vectors * want).sum(1), rtol=1e-9, atol=0)


def test_precision_is_that_of_the_vectors_and_inputs_stay_as_they_are() -> None:
    rows, vectors = drawn(3, 0).double(), drawn(2, 1)
    kept = rows.clone(), vectors.clone()
    inverse = InverseBySamples.of(rows, torch.full((8,), 2.0), 0.5)
    found = inverse.solve(vectors), inverse.squared_norms(vectors)
    assert {one.dtype for one in found} == {torch.float32}
    assert {one.dtype for one in (inverse.solve(vectors.double()), inverse.squared_norms(vectors.double()))} == {torch.float64}
    assert torch.equal(rows, kept[0])
    assert torch.equal(vectors, kept[1])


@pytest.mark.parametrize(
    ("count", "dim", "form"),
    [(300, 8192, GatheredRows), (4096, 8192, GatheredRows), (4097, 8192, GatheredMoment), (10**9, 16_384, GatheredMoment)],
)
def test_the_form_that_holds_fewer_bytes_is_taken(
    count: int, dim: int, form: type[GatheredRows | GatheredMoment], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "zeros", lambda *size, **_: None)  # nothing is added, so no memory is needed
    assert type(gathering(count, dim)) is form


def test_few_samples_may_have_more_features() -> None:
    assert isinstance(gathering(100, 100_000), GatheredRows)


@pytest.mark.parametrize(
    ("count", "dim", "message"),
    [
        (10**6, 20_000, r"Whitening 20,000 features of 1,000,000 train samples together holds 1.6 GB in memory; use blocks='la"),
        (10**6, 16_385, r"or a `projection_dim` of at most 16,384\."),
        (2048, 200_000, r"200,000 features of 2,048 train samples together holds 1.7 GB .* of at most 126,976\."),
    ],
)
def test_what_is_too_large_is_refused_by_its_memory(count: int, dim: int, message: str) -> None:
    with pytest.raises(TracInError, match=message):
        gathering(count, dim)


@pytest.mark.parametrize(("count", "most"), [(10**6, 16_384), (8192, 16_384), (2048, 126_976)])
def test_the_remedy_of_what_is_too_large_is_enough(count: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "zeros", lambda *size, **_: None)
    monkeypatch.setattr(torch, "empty", lambda *size, **_: None)
    gathering(count, most)
    with pytest.raises(TracInError, match=r"holds 1\.1 GB in memory"):
        gathering(count, most + 1)


def test_ridge_below_rounding_is_refused_by_both_forms() -> None:
    features = drawn(4, 0)
    message = r"A ridge of 1e-25 is too small to invert a second moment with a trace of .*; take a larger `damping`"
    with pytest.raises(TracInError, match=message):
        InverseBySamples.of(features, torch.ones(8), 1e-25)
    with pytest.raises(TracInError, match=message):
        InverseByFeatures.of(features.T @ features, 1e-25)
