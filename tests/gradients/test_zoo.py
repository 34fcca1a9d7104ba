"""Exact on every family of models: tiny, random, ragged batches."""

from __future__ import annotations

import pytest

from tests.support.exactness import assert_exact
from tests.support.models import padded, ragged_samples
from tests.support.zoo import MODELS


@pytest.mark.parametrize("family", MODELS)
def test_family_is_exact(family: str) -> None:
    model, loss = MODELS[family]()
    samples = ragged_samples(13, seed=11, longest=9)
    coverage = assert_exact(model, loss, padded, samples[:9], samples[9:], batch_size=4, verified=True)
    assert sum(counted.elements for counted in coverage.by_rule.values()) == coverage.total
