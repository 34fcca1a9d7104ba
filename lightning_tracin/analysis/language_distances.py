"""How far languages are from each other: in the family tree, on the map, and in script."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from lightning_tracin.analysis.language_facts import LanguageFacts, facts_of, family_of
from lightning_tracin.analysis.tables import own_cells, table_from
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.languages import meaning

Floats = npt.NDArray[np.float64]

#: What is known of a pair.
DISTANCES = ("genealogical", "kilometres", "same_family", "same_script")
COLUMNS = ("probe_language", "train_language", *DISTANCES)

#: The earth's mean radius, and the way to its other side, in kilometres.
_RADIUS = 6371.0
FARTHEST = _RADIUS * np.pi


def distance_table(probe_languages: Sequence[str], train_languages: Sequence[str]) -> pd.DataFrame:
    """The distances of each probe language from each train language: a row a pair, with `COLUMNS`.

    - `genealogical`: 1 - 2 s / (a + b), for languages that are a and b steps below the root of all families in Glottolog's tree,
      of which they share the first s; 0 for a language and itself, 1 for languages of two families. Families differ in depth, so
      it is coarse.
    - `kilometres`: on a great circle, between the places that Glottolog gives the languages.
    - `same_family`, `same_script`: 1 or 0.

    What is not known of a pair is NaN; `language_facts.without_facts` names the languages.

    Raises:
        MissingPackageError: qwanqwa is not installed.

    Example:
        >>> table = distance_table(["sv"], ["da", "ko"])
        >>> table[["train_language", "same_family", "same_script"]].values.tolist()
        [['da', 1.0, 1.0], ['ko', 0.0, 0.0]]
        >>> table["genealogical"].tolist()[0] < 0.5, table["genealogical"].tolist()[1]
        (True, 1.0)
    """
    facts = facts_of([*probe_languages, *train_languages])
    own = own_cells(pd.DataFrame(index=list(probe_languages), columns=list(train_languages)))
    rows = []
    for row, probe in enumerate(probe_languages):
        for column, train in enumerate(train_languages):
            pair = (0.0, 0.0, 1.0, 1.0) if own[row, column] else _distances(probe, train, facts[probe], facts[train])
            rows.append((probe, train, *pair))
    return table_from(rows, COLUMNS)


def _distances(one: str, other: str, mine: LanguageFacts | None, yours: LanguageFacts | None) -> tuple[float, ...]:
    scripts = [known.script for known in map(meaning, (one, other)) if known is not None and known.script]
    same_script = float(scripts[0] == scripts[1]) if len(scripts) == 2 else np.nan
    if mine is None or yours is None:
        return np.nan, np.nan, np.nan, same_script
    shared = next((depth for depth, (a, b) in enumerate(zip(mine.path, yours.path, strict=False)) if a != b), None)
    steps = min(len(mine.path), len(yours.path)) if shared is None else shared
    apart = 1 - 2 * steps / (len(mine.path) + len(yours.path))
    return apart, kilometres(mine, yours), float(family_of(mine, one) == family_of(yours, other) or steps > 0), same_script


def kilometres(one: LanguageFacts, other: LanguageFacts) -> float:
    """On a great circle; NaN if a place is unknown.

    Example:
        >>> at = lambda latitude, longitude: LanguageFacts((), ("x",), None, latitude, longitude)
        >>> round(kilometres(at(0.0, 0.0), at(0.0, 90.0))), round(kilometres(at(90.0, 0.0), at(-90.0, 7.0)))
        (10008, 20015)
    """
    places = (one.latitude, one.longitude, other.latitude, other.longitude)
    if any(place is None for place in places):
        return float("nan")
    north, east, far_north, far_east = np.radians(np.asarray(places, dtype=np.float64))
    half = np.sin((far_north - north) / 2) ** 2 + np.cos(north) * np.cos(far_north) * np.sin((far_east - east) / 2) ** 2
    return float(2 * _RADIUS * np.arcsin(np.sqrt(min(1.0, half))))


def typology_table(probe_languages: Sequence[str], train_languages: Sequence[str]) -> Floats:
    """A baseline that knows the languages alone: how close they are in the family tree, on the map and in script, from 0 to 1.

    Returns:
        The sum of the three, from 0 to 3: [probe languages, train languages].

    Raises:
        TracInError: a distance is not known; the message names the languages.
        MissingPackageError: qwanqwa is not installed.

    Example:
        >>> typology_table(["sv"], ["sv", "da", "ko"]).round(1).tolist()
        [[3.0, 2.6, 0.6]]
    """
    table = distance_table(probe_languages, train_languages)
    unknown = unknown_languages(table)
    if unknown:
        raise TracInError(
            f"The family or place of {', '.join(map(repr, unknown))} is not known; leave the comparison with typology out, or "
            "name the languages by their codes."
        )
    close = 1 - table["genealogical"] + 1 - table["kilometres"] / FARTHEST + table["same_script"]
    cells: Floats = close.to_numpy(np.float64).reshape(len(probe_languages), len(train_languages))
    return cells


def unknown_languages(table: pd.DataFrame) -> list[str]:
    """The languages of a table of distances that have a distance to no other language, in alphabetical order.

    Example:
        >>> unknown_languages(distance_table(["sv", "klingon-x"], ["sv", "da"]))
        ['klingon-x']
    """
    whole = table[list(DISTANCES)].notna().all(axis=1)
    apart = table["probe_language"] != table["train_language"]
    names = {*table["probe_language"], *table["train_language"]}
    known = {*table.loc[whole & apart, "probe_language"], *table.loc[whole & apart, "train_language"]}
    return sorted(names - known)
