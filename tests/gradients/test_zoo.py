"""Exact on every family of models: tiny, random, ragged batches."""

from __future__ import annotations

import pytest

from tests.gradients.exactness import assert_exact
from tests.gradients.zoo import MODELS
from tests.models import padded, ragged_samples


@pytest.mark.parametrize("family", MODELS)
def test_family_is_exact(family: str) -> None:
    model, loss = MODELS[family]()
    samples = ragged_samples(13, seed=11, longest=9)
    coverage = assert_exact(model, loss, padded, samples[:9], samples[9:], batch_size=4, verified=True)
    assert sum(counted.elements for counted in coverage.by_rule.values()) == coverage.total
