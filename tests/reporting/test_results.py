"""The curves of a run as numbers under keys."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from lightning_tracin.reporting import results as module
from lightning_tracin.reporting.language_keys import language_keys
from tests.support.study_tables import LANGUAGES, ZERO_SHOT, results


def test_the_keys_of_a_point_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Collection[str]] = []

    def counted(names: Collection[str]) -> dict[str, str]:
        asked.append(names)
        return language_keys(names)

    monkeypatch.setattr(module, "language_keys", counted)
    values = results().final().scalars
    assert asked == [{*LANGUAGES, ZERO_SHOT}]
    pairs = len(LANGUAGES) * (len(LANGUAGES) + 1)
    assert len([name for name in values if name.count("/") == 3]) == 5 * pairs
    assert len([name for name in values if name.count("/") == 2]) == 2 * (len(LANGUAGES) + 2)  # each language, and the mean
