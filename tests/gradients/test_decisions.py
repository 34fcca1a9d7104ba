"""What is decided on one batch holds on the next: shorter, longer, of one sample, with as many positions as samples."""

from __future__ import annotations

import pytest

from tests.support.exactness import assert_exact
from tests.support.models import padded, ragged_samples
from tests.support.zoo import MODELS

SHAPES = {
    "as many positions as samples, first": [(5, 5, 5), (4, 3, 9), (1, 7, 7)],
    "as many positions as samples, last": [(3, 3, 9), (1, 4, 4), (4, 4, 4)],
    "one sample first": [(1, 6, 6), (5, 3, 8), (2, 3, 3)],
    "twice as many positions as samples": [(4, 8, 8), (8, 4, 4), (3, 9, 9)],
}


@pytest.mark.parametrize("family", list(MODELS))
@pytest.mark.parametrize("shapes", list(SHAPES))
def test_batches_of_other_shapes(family: str, shapes: str) -> None:
    model, loss = MODELS[family]()
    batches = [ragged_samples(count, 7 + i, low, high) for i, (count, low, high) in enumerate(SHAPES[shapes])]
    sizes = [len(batch) for batch in batches]
    samples = [sample for batch in batches for sample in batch]
    assert_exact(model, loss, padded, samples, samples[::-1], sizes[0], verified=True)
