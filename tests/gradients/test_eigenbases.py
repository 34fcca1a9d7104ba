"""Coordinates in other bases and their second moments, in every form, against the products written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_tracin.gradients import Dense, Outer, Rows
from lightning_tracin.gradients.eigenbases import Covariances, Eigenbasis, eigenvectors
from lightning_tracin.gradients.forms import to_dense
from lightning_tracin.gradients.second_moments import DAMPINGS, SecondMoments, chosen_damping, damped_scale, held_out_loss

ROWS, COLUMNS = 6, 4


def forms_of(kind: str) -> tuple[Any, ...]:
    torch.manual_seed(1)
    outer = Outer(torch.randn(5, 3, ROWS, dtype=torch.float64), torch.randn(5, 3, COLUMNS, dtype=torch.float64))
    rows = Rows(torch.tensor([0, 0, 3, 4]), torch.tensor([1, 5, 1, 2]), torch.randn(4, COLUMNS, dtype=torch.float64), 5, ROWS)
    dense = Dense(torch.randn(5, ROWS * COLUMNS, dtype=torch.float64))
    return {"outer": (outer,), "rows": (rows,), "dense": (dense,), "rows twice": (rows, rows), "all": (outer, rows, dense)}[kind]


def basis_of(left: bool, right: bool) -> Eigenbasis:
    torch.manual_seed(2)
    drawn = [torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q for size in (ROWS, COLUMNS)]
    return Eigenbasis(drawn[0] if left else None, drawn[1] if right else None)


def written_out(basis: Eigenbasis) -> Tensor:
    left = torch.eye(ROWS).double() if basis.left is None else basis.left
    right = torch.eye(COLUMNS).double() if basis.right is None else basis.right
    return torch.kron(left.contiguous(), right.contiguous())


@pytest.mark.parametrize(("left", "right"), [(True, True), (False, True), (True, False), (False, False)])
@pytest.mark.parametrize("kind", ["outer", "rows", "dense", "rows twice", "all"])
def test_coordinates_are_the_gradients_times_the_kronecker_product(kind: str, left: bool, right: bool) -> None:
    forms, basis = forms_of(kind), basis_of(left, right)
    gradients = sum(map(to_dense, forms))
    want = gradients @ written_out(basis)
    torch.testing.assert_close(sum(map(to_dense, basis.forms(forms))), want)
    single = basis.gradient(gradients[0].view(ROWS, COLUMNS))
    torch.testing.assert_close(single.flatten(), want[0])
    sparse = basis.gradient(gradients[0].view(ROWS, COLUMNS).to_sparse(1))
    torch.testing.assert_close(sparse.to_dense().flatten(), want[0])


@pytest.mark.parametrize("block", [1, 64_000_000])
@pytest.mark.parametrize("kind", ["outer", "rows", "dense", "rows twice", "all"])
def test_squares_are_added_up_by_half(kind: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_tracin.gradients.second_moments.BLOCK", block)
    forms, halves = forms_of(kind), torch.tensor([0, 1, 1, 0, 1])
    moments = SecondMoments()
    for _ in range(2):
        moments.add("weight", ROWS * COLUMNS, forms, halves)
    squares = 2 * sum(map(to_dense, forms)).square()
    want = torch.stack([squares[halves == half].sum(0) for half in (0, 1)])
    torch.testing.assert_close(moments.of("weight", ROWS * COLUMNS), want)


def test_covariances_leave_out_positions_without_output_gradient() -> None:
    (form,) = forms_of("outer")
    form.left[0, 1] = 0
    covariances = Covariances({"weight": (ROWS, COLUMNS)})
    covariances.add("weight", (form,))
    lines = [(i, t) for i in range(5) for t in range(3) if (i, t) != (0, 1)]
    for side, factor in enumerate((form.left, form.right)):
        want = sum(torch.outer(factor[i, t], factor[i, t]) for i, t in lines)
        torch.testing.assert_close(covariances.of("weight", side), want)


def test_long_sides_have_no_covariance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_tracin.gradients.eigenbases.LARGEST_SIDE", 5)
    covariances = Covariances({"weight": (ROWS, COLUMNS)})
    covariances.add("weight", forms_of("outer"))
    assert covariances.of("weight", 0) is None
    assert covariances.of("weight", 1) is not None


def test_eigenvectors_make_a_covariance_diagonal() -> None:
    drawn = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    covariance = drawn.T @ drawn
    vectors = eigenvectors(covariance)
    rotated = vectors.T @ covariance @ vectors
    torch.testing.assert_close(rotated, torch.diag(rotated.diagonal()))
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(4, dtype=torch.float64))


def test_a_coordinate_that_one_half_lacks_asks_for_damping() -> None:
    torch.manual_seed(0)
    agreed = torch.rand(1, 500).expand(2, 500) + 0.1
    lacking = agreed.clone()
    lacking[0, :100] = 0
    assert chosen_damping(agreed) == DAMPINGS[0]
    assert chosen_damping(lacking) > 0.01


def test_the_chosen_damping_is_the_best_of_the_grid_on_noisy_halves() -> None:
    torch.manual_seed(0)
    variance = torch.rand(2000).double() ** 4 + 1e-4
    moments = torch.stack([torch.randn(20, 2000).double().square().mean(0) * variance for _ in range(2)])
    chosen = chosen_damping(moments)
    assert all(held_out_loss(moments, chosen) <= held_out_loss(moments, other) for other in DAMPINGS)
    assert DAMPINGS[0] < chosen < DAMPINGS[-1]  # few samples: some damping, not all of it


def test_coordinates_without_gradient_have_no_say_and_no_scale() -> None:
    moments = torch.tensor([[1.0, 2.0, 3.0], [1.5, 2.5, 2.0]]).double()
    padded = torch.cat([moments, torch.zeros(2, 1000), torch.full((2, 1000), 1e-13)], 1)
    assert chosen_damping(padded) == chosen_damping(moments)
    scale = damped_scale(padded, 0.5, (4, 4))
    torch.testing.assert_close(scale[:3], damped_scale(moments, 0.5, (4, 4)))
    assert not scale[3:].any()
    assert not damped_scale(torch.zeros(2, 3), 0.5, (4, 4)).any()
    assert not damped_scale(moments, 0.5, (4, 4), whole=1e13 * float(moments.sum())).any()  # a parameter that is all rounding
