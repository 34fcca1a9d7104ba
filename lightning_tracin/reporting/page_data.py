"""The data that a page's charts and explorer read, packed into text: compressed JSON in base64.

Base64 holds no letter that ends a script or an attribute, so no text of a data set can break out of the page.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Hashable, Iterable, Sequence
from itertools import count
from typing import Any

import pandas as pd

from lightning_tracin.analysis.language_order import ordered
from lightning_tracin.analysis.reliance_by_snapshot import PART
from lightning_tracin.analysis.tables import own_language
from lightning_tracin.reporting.explorer import Explorer, Strong
from lightning_tracin.reporting.page_languages import html_language
from lightning_tracin.reporting.results import Results
from lightning_tracin.storage.display_names import display_names
from lightning_tracin.storage.sample_table import SampleTable

#: Columns of a cell of the heat map; those that a measure does not have are left out.
CELL_COLUMNS = ("value", "low", "high", "contrast", "contrast_low", "contrast_high", "null", "lift")

#: Characters of the explorer's data; a page has room for them beside its scripts, tables and pictures.
MOST_OF_EXPLORER = 2_500_000

#: Values of curves in a page; a run with more of them shows every second snapshot, every third, and so on.
MOST_OF_CURVES = 60_000


def packed(content: Any) -> str:
    """Compressed JSON in base64, which a browser's `DecompressionStream("deflate")` reads.

    Example:
        >>> "<" in packed({"text": "</script>"})
        False
    """
    written = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # a lone surrogate becomes a JSON escape
    return base64.b64encode(zlib.compress(written.encode("utf-8", "backslashreplace"), 6)).decode()


def unpacked(text: str) -> Any:
    r"""What `packed` was given.

    Example:
        >>> unpacked(packed({"half a letter": "\ud800"})) == {"half a letter": "\ud800"}
        True
    """
    return json.loads(zlib.decompress(base64.b64decode(text)))


def rounded(value: float) -> float | None:
    """Three significant digits; None for what is not finite.

    Example:
        >>> rounded(0.0123456), rounded(float("nan"))
        (0.0123, None)
    """
    return float(f"{value:.3g}") if math.isfinite(value) else None


def cut(text: str, characters: int) -> str:
    """A text of at most this many characters; three dots stand for the rest.

    Example:
        >>> cut("Donau", 3), cut("Donau", 5)
        ('Don…', 'Donau')
    """
    return text if len(text) <= characters else f"{text[:characters]}…"


def chart_data(results: Results) -> dict[str, Any]:
    """The cells and curves of every pair of languages.

    Returns:
        `languages`, in the order of figures, and how each is written; `pairs`, the probe and train language of each cell, and
        whether they are one; `measures`, for each measure its unit and, column by column, its cells; `curves`, the snapshots and,
        for each measure, a list of values for each of them.
    """
    final = results.final().tables
    pairs = final["sum"][["probe_language", "train_language"]].reset_index(drop=True)
    own = set(own_language(pairs).index)
    points = results.points()
    step = -(-len(points) * len(pairs) // MOST_OF_CURVES)
    kept = points[::-1][:: max(1, step)][::-1]  # with the last
    names = display_names(ordered({*pairs["probe_language"], *pairs["train_language"]}))
    return {
        "languages": {name: {"shown": shown, "tag": html_language(name)} for name, shown in names.items()},
        "pairs": [
            [probe, train, int(index in own)] for index, (probe, train) in enumerate(pairs.itertuples(index=False, name=None))
        ],
        "measures": {
            measure: {"unit": "" if table["unit"].iloc[0] == PART else table["unit"].iloc[0], "cells": _cells(table, pairs)}
            for measure, table in final.items()
        },
        "curves": {
            "snapshots": [[point.epoch, point.step] for point in kept],
            "left_out": len(points) - len(kept),
            "values": {
                measure: [_cells(point.tables[measure], pairs).get("value", [None] * len(pairs)) for point in kept]
                for measure in final
                if all(measure in point.tables for point in kept)
            },
        },
    }


def _cells(table: pd.DataFrame, pairs: pd.DataFrame) -> dict[str, list[float | None]]:
    """The table's columns, in the order of the pairs."""
    ordered = pairs.merge(table, how="left", on=["probe_language", "train_language"])
    columns = {name: [rounded(value) for value in ordered[name]] for name in CELL_COLUMNS if name in ordered}
    return {name: values for name, values in columns.items() if any(value is not None for value in values)}


def explorer_data(explorer: Explorer) -> dict[str, Any]:
    """What the page's explorer reads.

    Returns:
        `probes` and `train`, tables of samples, column by column, with the lists of each; a list has the positions of samples in
        the other table, and their scores. `links`, the carriers of each pair of languages. Equal numbers in `item` are of
        translations.
    """
    probes, train = list(explorer.probes), list(explorer.train)
    place, probe_place = ({index: position for position, index in enumerate(each)} for each in (train, probes))
    numbers = _Numbers()
    sums = explorer.sums.T
    return {
        "probes": {
            **_table(explorer.queries.take(probes), probes, explorer.bounds.characters, numbers),
            "helped_by": [_list(one, place) for one, _ in explorer.probes.values()],
            "harmed_by": [_list(one, place) for _, one in explorer.probes.values()],
            "sums": [[rounded(value) for value in row] for row in sums.tolist()],
        },
        "train_languages": sorted(set(explorer.samples.language)),
        "train": {
            **_table(explorer.samples.take(train), train, explorer.bounds.characters, numbers),
            "helps": [_list(one, probe_place) for one, _ in explorer.train.values()],
            "harms": [_list(one, probe_place) for _, one in explorer.train.values()],
        },
        "links": [
            [*pair, rounded(one.mass), _list(one.helping, place), _list(one.harming, place)]
            for pair, one in explorer.links.items()
        ],
    }


def packed_explorer(explorer: Explorer, most: int = MOST_OF_EXPLORER) -> tuple[str, str]:
    """What an explorer shows, in a sentence, and its data; both within smaller bounds if the data are too long.

    Args:
        explorer: of a run.
        most: characters of the data.
    """
    while True:
        data, bounds = packed(explorer_data(explorer)), explorer.bounds
        if len(data) <= most or bounds.smaller() == bounds:
            return explorer.shown, data
        for _ in range(max(1, round(4 * math.log2(len(data) / most)))):  # a step saves about a tenth; packing takes seconds
            bounds = bounds.smaller()
        explorer = explorer.within(bounds)


class _Numbers:
    """Numbers the items as they come; None is -1."""

    def __init__(self) -> None:
        self._known: dict[Hashable, int] = {None: -1}
        self._next = count()

    def of(self, items: Iterable[Hashable]) -> list[int]:
        return [self._known[item] if item in self._known else self._known.setdefault(item, next(self._next)) for item in items]


def _table(samples: SampleTable, indices: Sequence[int], characters: int, items: _Numbers) -> dict[str, list[Any]]:
    return {
        "index": list(indices),
        "language": list(samples.language),
        "item": items.of(samples.item),
        "label": list(samples.label),
        "text": [cut(text or "", characters) for text in samples.text],
    }


def _list(strong: Strong, place: dict[int, int]) -> list[Any]:
    return [[place[sample] for sample in strong.samples], [rounded(score) for score in strong.scores]]
