"""Which languages have a line of their own."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lightning_tracin.reporting.line_choice import strongest


def test_the_largest_have_lines_and_the_others_keep_their_order() -> None:
    sizes = pd.Series({"a": 3.0, "b": 1.0, "c": np.nan, "d": 2.0, "e": 5.0})
    assert strongest(sizes, 2) == (["e", "a"], ["d", "b", "c"])
    assert strongest(sizes, 2, always=["c", "b"]) == (["b", "c"], ["e", "a", "d"])


def test_one_language_alone_is_no_others() -> None:
    sizes = pd.Series({"a": 3.0, "b": 1.0, "c": 2.0})
    assert strongest(sizes, 2) == (["a", "c", "b"], [])
    assert strongest(sizes, 1) == (["a"], ["c", "b"])
