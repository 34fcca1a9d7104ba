"""Long products by oneDNN against the same in double precision."""

from __future__ import annotations

import pytest
import torch

from lightning_tracin.gradients.onednn import onednn_product, suits_onednn
from lightning_tracin.gradients.products import add_product


@pytest.mark.parametrize("probes", [10, 32, 64])
def test_a_long_product_is_added_to_what_was_there(probes: int) -> None:
    generator = torch.Generator().manual_seed(probes)
    left = torch.randn(32, 8192, generator=generator)
    table = torch.randn(probes, 3 * 8192, generator=generator)
    right = table[:, 8192 : 2 * 8192].T  # strided lines, as a tile of a bank's matrix has them
    wide = torch.randn(32, 2 * probes, generator=generator)
    expected = wide[:, :probes].double() + left.double() @ right.double()
    add_product(wide[:, :probes], left, right)
    torch.testing.assert_close(wide[:, :probes].double(), expected, rtol=1e-5, atol=1e-3)


def test_onednn_itself_is_right_where_torch_has_it() -> None:
    left, right = torch.arange(32.0 * 5000).view(32, 5000) / 5000, torch.ones(5000, 40)
    if not suits_onednn(left, right):
        pytest.skip("this build of torch has no oneDNN")
    torch.testing.assert_close(onednn_product(left, right), left.sum(1, keepdim=True).expand(32, 40), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_left_to_torch(dtype: torch.dtype) -> None:
    left, right = torch.ones(64, 9000, dtype=dtype), torch.ones(9000, 64, dtype=dtype)
    assert not suits_onednn(left, right)


def test_a_short_or_narrow_product_is_left_to_torch() -> None:
    assert not suits_onednn(torch.ones(64, 100), torch.ones(100, 64))
    assert not suits_onednn(torch.ones(10, 9000), torch.ones(9000, 64))
