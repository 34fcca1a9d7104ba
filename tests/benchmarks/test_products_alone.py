"""Products are counted by hand: rows x inner x columns."""

from __future__ import annotations

import torch

from benchmarks.products_alone import Recorder, products_alone


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
