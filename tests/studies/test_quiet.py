"""A study is quiet, and leaves the libraries' voices as they were."""

from __future__ import annotations

import logging
import warnings

import datasets
import pytest
from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_warn
from transformers.utils.logging import is_progress_bar_enabled

from lightning_tracin.studies.quiet import quietly


def test_libraries_are_silent_inside_and_speak_as_before_afterwards(caplog: pytest.LogCaptureFixture) -> None:
    def heard() -> str:
        caplog.clear()
        with caplog.at_level("INFO"):
            rank_zero_info("a fit begins")
        return caplog.text

    before = heard(), datasets.are_progress_bars_disabled(), is_progress_bar_enabled()
    assert "a fit begins" in before[0]
    inside = []

    @quietly()
    def interrupted() -> None:
        inside.append((heard(), datasets.are_progress_bars_disabled(), is_progress_bar_enabled()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert inside == [("", True, False)]
    assert (heard(), datasets.are_progress_bars_disabled(), is_progress_bar_enabled()) == before
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        rank_zero_warn("dear user")
    assert [str(one.message) for one in found] == ["dear user"]
    assert logging.getLogger("transformers").level != logging.ERROR
