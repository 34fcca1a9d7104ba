"""Products of many samples with many probes work with the memory that is announced, and are what they are in one piece.

Each case takes several times as much if its products are made in one piece.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_tracin.gradients import Dense, ProbeBank
from lightning_tracin.gradients.forms import Form, Outer, Rows, coalesced, samples_of, to_dense
from lightning_tracin.gradients.holding import working_bytes
from lightning_tracin.gradients.owners import marks, owners_of
from lightning_tracin.gradients.products import dots, squared_norms
from tests.support.allocations import peak_bytes


def rows(samples: int, tokens: int, table: int, width: int) -> Rows:
    generator = torch.Generator().manual_seed(samples)
    row = torch.randint(table, (samples * tokens,), generator=generator)
    sample = torch.arange(samples).repeat_interleave(tokens)
    return coalesced(sample, row, torch.randn(samples * tokens, width, generator=generator), samples, table)


def outer(samples: int, positions: int, height: int, width: int) -> Outer:
    generator = torch.Generator().manual_seed(samples)
    left, right = (torch.randn(samples, positions, size, generator=generator) for size in (height, width))
    return Outer(left, right)


def dense(samples: int, elements: int) -> Dense:
    return Dense(torch.randn(samples, elements, generator=torch.Generator().manual_seed(samples)))


def in_full(form: Form) -> Tensor:
    return to_dense(form).double()


PAIRS: dict[str, tuple[Callable[[], Form], Callable[[], Form]]] = {
    "rows that few samples share": (lambda: rows(256, 32, 500, 16), lambda: rows(1000, 32, 500, 16)),
    "rows that many samples share": (lambda: rows(256, 48, 100, 256), lambda: rows(700, 48, 100, 256)),
    "outer products": (lambda: outer(64, 40, 32, 32), lambda: outer(400, 40, 32, 32)),
    "outer products of long samples": (lambda: outer(2, 400, 8, 8), lambda: outer(400, 100, 8, 8)),
    "rows and outer products": (lambda: rows(32, 64, 200, 32), lambda: outer(200, 60, 200, 32)),
    "dense and rows": (lambda: dense(2, 100 * 256), lambda: rows(1000, 48, 100, 256)),
    "dense and outer products": (lambda: dense(2, 8 * 256), lambda: outer(700, 64, 8, 256)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_products_stay_within_the_memory_that_is_announced(name: str) -> None:
    one, other = (make() for make in PAIRS[name])
    expected = in_full(one) @ in_full(other).T
    size = float(expected.abs().max())
    assert float((dots((one,), (other,)) - expected).abs().max()) < 1e-5 * size
    allowed = working_bytes(samples_of(one), samples_of(other), like=torch.ones(1))
    assert peak_bytes(lambda: dots((one,), (other,))) <= allowed


def test_norms_of_a_tied_table_stay_within_the_memory_that_is_announced() -> None:
    forms = rows(32, 32, 100, 128), outer(32, 200, 100, 128)
    expected = (in_full(forms[0]) + in_full(forms[1])).square().sum(1)
    torch.testing.assert_close(squared_norms(forms).double(), expected, rtol=1e-5, atol=0)
    assert peak_bytes(lambda: squared_norms(forms)) <= working_bytes(samples=32, probes=0, like=torch.ones(1))


def test_few_long_lines_are_multiplied_with_many_probes_in_pieces() -> None:
    probes, train = dense(200, 200_000), dense(64, 200_000)
    bank = ProbeBank(probes=200, parts={"weight": 0}, part_count=1)
    bank.collect("weight", (probes,), at=0)
    bank.seal()
    dot, squared = torch.zeros(1, 64, 200), torch.zeros(1, 64)
    peak = peak_bytes(lambda: bank.contract("weight", [(0, (train,))], dot, squared))
    expected = train.values[:2].double() @ probes.values.double().T
    assert float((dot[0, :2] - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    assert peak <= working_bytes(samples=64, probes=200, like=torch.ones(1))


def test_owners_of_many_lines_are_found_without_a_matrix_of_all_lines_and_samples() -> None:
    weights, owners = marks(256, torch.ones(1)), torch.arange(20_000) % 256
    gradient = dense(20_000, 4).values
    marked = weights[owners, None] * gradient
    found = owners_of(gradient, marked, weights)
    assert found is not None
    assert torch.equal(found, owners)
    assert peak_bytes(lambda: owners_of(gradient, marked, weights)) < 20_000 * 256 * 8
