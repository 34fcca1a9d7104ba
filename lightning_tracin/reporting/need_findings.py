"""Predicted need in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from lightning_tracin.reporting.sentences import bounded, joined

#: Names of at most this many languages are in a sentence.
_NAMED = 3


def findings_of_need(table: pd.DataFrame) -> Iterator[str]:
    """State what each probe language's loss would be without the train languages.

    Args:
        table: as from `TracInRun.predicted_need`.

    Yields:
        A sentence for each probe language. Only train languages whose interval excludes 0 are named; where none does, it says so.
        With one item among the probes of a language, no interval is known, and the sentence says that.

    Example:
        >>> cells = {"train_language": ["de", "en"], "nats": [0.5, 0.2], "low": [0.4, -0.1], "high": [0.6, 0.3]}
        >>> table = pd.DataFrame({"probe_language": "de", **cells, "is_own": [True, False]})
        >>> [*findings_of_need(table)]
        ['de: its loss would be higher without de (own language; 0.5 nats [0.4, 0.6]).']
    """
    for language, lines in table.groupby("probe_language"):
        yield f"{language}: {'; '.join(_said(lines))}."


def _said(lines: pd.DataFrame) -> Iterator[str]:
    if lines["low"].isna().all():
        yield "no interval is known, because all of its probes are one item"
        return
    higher = lines[lines["low"] > 0].sort_values("nats", ascending=False)
    lower = lines[lines["high"] < 0].sort_values("nats")
    for change, chosen in (("higher", higher), ("lower", lower)):
        if not chosen.empty:
            yield f"its loss would be {change} without {joined([_cell(line) for line in chosen.head(_NAMED).to_dict('records')])}"
    if higher.empty and lower.empty:
        yield "without any one train language, its loss would not clearly change"


def _cell(line: Mapping[Any, Any]) -> str:
    own = "own language; " if line["is_own"] else ""
    return f"{line['train_language']} ({own}{bounded(line['nats'], line['low'], line['high'], ' nats')})"
