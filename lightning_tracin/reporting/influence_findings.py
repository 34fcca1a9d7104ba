"""The influence of languages in sentences: the headline of a run."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lightning_tracin.analysis.reliance_by_snapshot import NATS
from lightning_tracin.analysis.tables import own_language
from lightning_tracin.reporting.sentences import bounded, joined, number

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
    for language, statements in _by_language(sums, means):
        first, *others = statements
        yield " ".join([f"{language}: {first.text}", *(f"{one.text[0].upper()}{one.text[1:]}" for one in others)])
    yield note_of_influence(sums)


def ranked_findings(sums: pd.DataFrame, means: pd.DataFrame) -> list[str]:
    """The same as single sentences, those with the largest effect beyond their null first.

    An effect is how far the value that a sentence names first is from what it would be if languages were shuffled (0 for a
    contrast), in halves of its 95 % interval. Sentences without an interval follow, by the size of the value; those that find
    nothing come last.

    Args:
        sums: as in `findings_of_influence`.
        means: as in `findings_of_influence`.

    Example:
        >>> cells = {"train_language": ["en"], "value": [0.5], "low": [0.4], "high": [0.6], "null": [0.3]}
        >>> contrast = {"contrast": 0.0, "contrast_low": 0.0, "contrast_high": 0.0}
        >>> table = pd.DataFrame({"probe_language": "de", **cells, **contrast, "unit": NATS})
        >>> wide = table.assign(probe_language="fr", low=0.1, high=0.9)
        >>> both = pd.concat([wide, table], ignore_index=True)
        >>> ranked_findings(both, both)
        ['de: lowered most by en (0.5 nats [0.4, 0.6]).', 'fr: lowered most by en (0.5 nats [0.1, 0.9]).']
    """
    each = [(statement, language) for language, statements in _by_language(sums, means) for statement in statements]
    return [f"{language}: {statement.text}" for statement, language in sorted(each, key=lambda one: one[0].rank)]


def note_of_influence(sums: pd.DataFrame) -> str:
    """What the numbers of the findings are, and what their intervals are over."""
    intervals = (
        " Intervals [95 %] are each for a single cell, over train samples and probes." if sums["low"].notna().any() else ""
    )
    if sums["unit"].iloc[0] == NATS:
        return (
            "Nats are to first order: what each language's samples took off the loss in the fit, as if the loss were straight "
            "along every step. Where steps are large they add up to more than the loss fell by (contributions measure that), and "
            f"what other languages would make up for if one were left out is not subtracted.{intervals}"
        )
    return f"Numbers are in units of the score.{intervals}"


@dataclass(frozen=True)
class _Statement:
    """What is said of a probe language.

    Attributes:
        text: a sentence without the probe language, which stands before it.
        line: the cell that it names first; None if it names none.
        what: the column of this cell that it is about.
    """

    text: str
    line: Mapping[Hashable, Any] | None = None
    what: str = "value"

    @property
    def rank(self) -> tuple[int, float]:
        """Smallest for the largest effect."""
        if self.line is None:
            return 2, 0.0
        low, high, value = self.line[_LOW[self.what]], self.line[_HIGH[self.what]], self.line[self.what]
        if math.isnan(low):
            return 1, -abs(value)
        null = self.line.get("null", 0.0) if self.what == "value" else 0.0
        effect = abs(value - (0.0 if math.isnan(null) else null))
        half = (high - low) / 2
        return 0, -(effect / half if half > 0 else math.inf if effect > 0 else 0.0)


#: Column -> the columns of its interval.
_LOW, _HIGH = {"value": "low", "contrast": "contrast_low"}, {"value": "high", "contrast": "contrast_high"}


def _by_language(sums: pd.DataFrame, means: pd.DataFrame) -> Iterator[tuple[str, list[_Statement]]]:
    own = set(own_language(sums).index)
    for language, lines in sums.groupby("probe_language"):
        said = _statements(lines.to_dict("index"), own)
        yield str(language), [*said, *_worth(means[means["probe_language"] == language], lines)]


def _statements(lines: Mapping[Hashable, Mapping[Hashable, Any]], own: set[Hashable]) -> Iterator[_Statement]:
    valued = [index for index in lines if not math.isnan(lines[index]["value"])]  # NaN cannot be sorted
    by_value = sorted(valued, key=lambda index: -lines[index]["value"])
    helpful = [index for index in by_value if lines[index]["low"] > 0]
    harmful = [index for index in reversed(by_value) if lines[index]["high"] < 0]

    def about(chosen: list[Hashable], what: str, said: str, interval: bool = True) -> _Statement:
        cells = [_cell(lines[index], what, index in own, interval) for index in chosen[:_NAMED]]
        return _Statement(f"{said} {joined(cells)}.", lines[chosen[0]], what)

    if not by_value:
        yield _Statement("no influence is known.")
    elif all(math.isnan(lines[index]["low"]) for index in by_value):
        values = "values are" if len(by_value) > 1 else "value is"
        yield about(by_value, "value", f"no interval is known; the largest {values}", interval=False)
    elif helpful:
        yield about(helpful, "value", "lowered most by")
    else:
        yield _Statement("no train language clearly lowered its loss.")
    if harmful:
        yield about(harmful, "value", "raised by")
    known = [index for index in lines if index not in own and not math.isnan(lines[index]["contrast"])]
    by_contrast = sorted(known, key=lambda index: -lines[index]["contrast"])
    more = [index for index in by_contrast if lines[index]["contrast_low"] > 0]
    less = [index for index in reversed(by_contrast) if lines[index]["contrast_high"] < 0]
    if more:
        yield about(more, "contrast", "in particular, it gets more than other probe languages do from")
    if less:
        yield about(less, "contrast", "it gets less than other probe languages do from")


def _worth(means: pd.DataFrame, sums: pd.DataFrame) -> Iterator[_Statement]:
    """Which language's samples are worth most, where sizes make that another language than the one with the largest sum."""
    if means.empty or not means["value"].notna().any():
        return
    best, largest = (table.sort_values("value", ascending=False).to_dict("records")[0] for table in (means, sums))
    if best["train_language"] != largest["train_language"] and best["low"] > 0:
        yield _Statement(f"sample by sample, {_cell(best, 'value', False)} is worth most.", best)


def _cell(line: Mapping[Hashable, Any], what: str, is_own: bool, interval: bool = True) -> str:
    low, high = _LOW[what], _HIGH[what]
    unit = " nats" if line["unit"] == NATS else ""
    own = "own language; " if is_own else ""
    value = bounded(line[what], line[low], line[high], unit) if interval else f"{number(line[what])}{unit}"
    return f"{line['train_language']} ({own}{value})"
