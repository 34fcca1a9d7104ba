"""Products are counted by hand: rows x inner x columns."""

from __future__ import annotations

import torch

from benchmarks.products_alone import Recorder, products_alone
from lightning_tracin.gradients.onednn import suits_onednn
from lightning_tracin.gradients.products import add_product


def test_products_are_counted_with_their_layouts_forward_backward_and_in_place() -> None:
    left, right = torch.rand(3, 5, requires_grad=True), torch.rand(7, 5).T

    def work() -> None:
        (left @ right).sum().backward()  # 3 x 5 x 7, and as many for the gradient of `left`
        with torch.no_grad():
            torch.zeros(3, 7).addmm_(left, right)
            torch.bmm(torch.rand(2, 3, 4), torch.rand(2, 4, 6))

    with Recorder() as recorder:
        work()
        work()
    assert sum(one.calls * one.multiplications for one in recorder.products.values()) == 2 * (3 * 105 + 2 * 3 * 4 * 6)
    assert {one.calls for one in recorder.products.values()} == {2}
    (product,) = (one for one in recorder.products.values() if "addmm_" in str(one.operation))
    assert [one.stride for one in product.arguments[0]] == [(7, 1), (5, 1), (1, 5)]
    alone = products_alone(work)
    assert alone.multiplications == 3 * 105 + 144
    assert alone.seconds > 0


def test_a_long_product_is_counted_whichever_library_multiplies() -> None:
    out = torch.zeros(40, 32)
    suits_onednn(torch.ones(40, 9000), torch.ones(9000, 32))  # tries a small product, once in a process
    with Recorder() as recorder, torch.no_grad():
        add_product(out, torch.ones(40, 9000), torch.ones(32, 9000).T)
    assert out.tolist() == [[9000.0] * 32] * 40
    assert sum(one.calls * one.multiplications for one in recorder.products.values()) == 40 * 9000 * 32
    (product,) = recorder.products.values()
    assert product.moved >= 4 * (40 * 9000 + 9000 * 32 + 40 * 32)
