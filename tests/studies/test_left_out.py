"""What the section on leaving languages out counts."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_tracin.analysis.leave_one_out import Changes, singles
from lightning_tracin.studies.experiments.refit_leave_one_out import compared


@pytest.mark.parametrize(
    ("probed", "expected"),
    [
        ("abcd", 12),  # 16 cells, 4 of them of the own language
        ("abcdx", 16),  # one language more, without train samples
        ("ab", 4),  # the only other cell of column a, and of b, says nothing beside its column effect
    ],
)
def test_only_cells_with_a_contrast_are_compared(probed: str, expected: int) -> None:
    left = tuple(singles(list("abcd")))
    changes = Changes(np.zeros((1, len(probed), 4)), tuple(probed), left, (5,) * len(probed))
    assert compared(changes) == expected
