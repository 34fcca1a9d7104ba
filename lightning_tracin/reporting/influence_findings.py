"""The influence of languages in sentences: the headline of a run."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import pandas as pd

from lightning_tracin.analysis.reliance_by_snapshot import NATS
from lightning_tracin.analysis.tables import own_language

#: Names of at most this many languages are in a sentence.
_NAMED = 3


def findings_of_influence(sums: pd.DataFrame, means: pd.DataFrame) -> Iterator[str]:
    """State what each probe language gets from the train languages.

    Args:
        sums: the influence of each language, of the whole run; see `reliance_by_snapshot`.
        means: the influence of one of its samples.

    Yields:
        For each probe language: the languages that lowered its loss most, those that raised it, and those that it gets more or
        less from than other probe languages do. Only cells whose interval excludes 0 are named. Where no interval is known
        (with fewer than two probes, or with language means), the largest values are.

    Example:
        >>> cells = {"train_language": ["de", "en"], "value": [0.5, 0.2], "low": [0.4, 0.1], "high": [0.6, 0.3]}
        >>> contrast = {"contrast": 0.0, "contrast_low": 0.0, "contrast_high": 0.0}
        >>> table = pd.DataFrame({"probe_language": "de", **cells, **contrast, "unit": NATS})
        >>> next(findings_of_influence(table, table))
        'de: lowered most by de (own language; 0.5 nats [0.4, 0.6]) and en (0.2 nats [0.1, 0.3]).'
    """
    own = set(own_language(sums).index)
    for language, lines in sums.groupby("probe_language"):
        said = _sentences(str(language), lines.to_dict("index"), own)
        worth = _worth(means[means["probe_language"] == language], lines)
        yield " ".join([*said, *worth])
    intervals = (
        " Intervals [95 %] are each for a single cell, over train samples and probes." if sums["low"].notna().any() else ""
    )
    if sums["unit"].iloc[0] == NATS:
        yield (
            "Nats are to first order: what each language's samples took off the loss in the fit, as if the loss were straight "
            "along every step. Where steps are large they add up to more than the loss fell by (contributions measure that), and "
            f"what other languages would make up for if one were left out is not subtracted.{intervals}"
        )
    else:
        yield f"Numbers are in units of the score.{intervals}"


def _sentences(language: str, lines: Mapping[Hashable, Mapping[Hashable, Any]], own: set[Hashable]) -> Iterator[str]:
    valued = [index for index in lines if not math.isnan(lines[index]["value"])]  # NaN cannot be sorted
    by_value = sorted(valued, key=lambda index: -lines[index]["value"])
    helpful = [index for index in by_value if lines[index]["low"] > 0]
    harmful = [index for index in reversed(by_value) if lines[index]["high"] < 0]

    def listed(chosen: list[Hashable], what: str) -> str:
        return _and([_cell(lines[index], what, index in own) for index in chosen[:_NAMED]])

    if not by_value:
        yield f"{language}: no influence is known."
    elif all(math.isnan(lines[index]["low"]) for index in by_value):
        largest = by_value[:_NAMED]
        named = _and([_cell(lines[index], "value", index in own, interval=False) for index in largest])
        yield f"{language}: no interval is known; the largest {'values are' if len(largest) > 1 else 'value is'} {named}."
    elif helpful:
        yield f"{language}: lowered most by {listed(helpful, 'value')}."
    else:
        yield f"{language}: no train language clearly lowered its loss."
    if harmful:
        yield f"Raised by {listed(harmful, 'value')}."
    known = [index for index in lines if index not in own and not math.isnan(lines[index]["contrast"])]
    by_contrast = sorted(known, key=lambda index: -lines[index]["contrast"])
    more = [index for index in by_contrast if lines[index]["contrast_low"] > 0]
    less = [index for index in reversed(by_contrast) if lines[index]["contrast_high"] < 0]
    if more:
        yield f"In particular, it gets more than other probe languages do from {listed(more, 'contrast')}."
    if less:
        yield f"It gets less than they do from {listed(less, 'contrast')}."


def _worth(means: pd.DataFrame, sums: pd.DataFrame) -> Iterator[str]:
    """Which language's samples are worth most, where sizes make that another language than the one with the largest sum."""
    if means.empty or not means["value"].notna().any():
        return
    best, largest = (table.sort_values("value", ascending=False).to_dict("records")[0] for table in (means, sums))
    if best["train_language"] != largest["train_language"] and best["low"] > 0:
        yield f"Sample by sample, {_cell(best, 'value', False)} is worth most."


def _cell(line: Mapping[Hashable, Any], what: str, is_own: bool, interval: bool = True) -> str:
    low, high = ("low", "high") if what == "value" else ("contrast_low", "contrast_high")
    unit = " nats" if line["unit"] == NATS else ""
    own = "own language; " if is_own else ""
    bounds = f" [{_number(line[low])}, {_number(line[high])}]" if interval else ""
    return f"{line['train_language']} ({own}{_number(line[what])}{unit}{bounds})"


def _number(value: float) -> str:
    return f"{value:.2g}"


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
