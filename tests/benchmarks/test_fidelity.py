"""What the comparison of projected with exact scores is fitted with."""

from __future__ import annotations

import pytest

from benchmarks.measure_fidelity import FOLDERS, settings_of


@pytest.mark.parametrize("name", FOLDERS)
def test_the_fits_train_the_small_model_that_needs_no_network(name: str) -> None:
    options = settings_of(name)
    assert options.model == "small"
    assert options.learning_rate == 0.0005
