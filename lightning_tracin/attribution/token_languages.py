"""Whose language each token of a probe is, where a sample mixes languages (code-switching)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_tracin.attribution.dataset_columns import listed_columns, read_column
from lightning_tracin.attribution.language_names import language_name
from lightning_tracin.attribution.samples import SampleSet
from lightning_tracin.errors import TracInError


def languages_of_tokens(probes: SampleSet, column: str, chosen: Sequence[int]) -> dict[int, list[str]]:
    """The languages in a column that has a list of them for each probe, one for each position of its token ids.

    Args:
        probes: the probes.
        column: of their datasets. A missing value is a token without a language, such as a special token.
        chosen: indices of the probes to read.

    Returns:
        For each chosen probe, by its index, the language of each position; "" where there is none.

    Raises:
        TracInError: there is no such column, or a value is no list of languages.
    """
    columns = []
    for dataset in probes.datasets:
        values = read_column(dataset, column)
        if values is None:
            raise TracInError(
                f"The probes have no column {column!r} with the languages of their tokens (columns: {listed_columns(dataset)}); "
                "name the right one with `token_language_column=...`."
            )
        columns.append(values)
    places = {index: probes.places[index] for index in chosen}
    return {index: _names(columns[source][place], column, index) for index, (source, place) in places.items()}


def _names(values: Any, column: str, probe: int) -> list[str]:
    values = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(values, list | tuple):
        raise TracInError(
            f"The column {column!r} of probe {probe} is {values!r}; it should be a list with a language for each of its token "
            "ids."
        )
    return [language_name(value) or "" for value in values]


def language_at(languages: Sequence[str], position: int, probe: int, column: str) -> str:
    """The language of a probe's token.

    Args:
        languages: of the probe's positions.
        position: of the token in the probe's token ids; below 0 for a term that belongs to the whole sample.
        probe: index of the probe, for messages.
        column: that the languages come from, for messages.

    Raises:
        TracInError: there is no language for the position.

    Example:
        >>> language_at(["en", "hi"], 1, probe=0, column="languages"), language_at(["en", "hi"], -1, probe=0, column="languages")
        ('hi', '')
    """
    if position >= len(languages):
        raise TracInError(
            f"Probe {probe} has {len(languages)} languages in {column!r}, but a token at position {position} (from 0): give one "
            "for each of its token ids, special tokens and padding among them."
        )
    return languages[position] if position >= 0 else ""
