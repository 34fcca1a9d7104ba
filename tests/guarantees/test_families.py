"""What people fine-tune, from an ordinary `training_step` to scores: exact by family, and computed from whole batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support import adapted, decoders, encoders, own_losses, translators
from tests.support.step_exactness import Case, assert_step_exact

#: They take more than two seconds each on a quiet machine.
SLOW = {"Switch", "Switch, capacity of 2"}

CASES = {**encoders.CASES, **decoders.CASES, **translators.CASES, **adapted.CASES, **own_losses.CASES}


def marked() -> Iterator[object]:
    for name, build in CASES.items():
        yield pytest.param(build, id=name, marks=[pytest.mark.slow] if name in SLOW else [])


@pytest.mark.parametrize("build", marked())
def test_scores_of_a_plain_step_equal_the_loop(build: Callable[[], Case]) -> None:
    assert_step_exact(build())
