"""Small helpers that build and join tables."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from lightning_tracin.storage.languages import own_languages


def table_from(rows: Sequence[Any], columns: Sequence[str]) -> pd.DataFrame:
    """A table with these columns, even if there are no rows.

    Example:
        >>> list(table_from([], ["language", "share"]))
        ['language', 'share']
    """
    table: pd.DataFrame = pd.DataFrame(rows, columns=list(columns))
    return table


def as_csv(table: pd.DataFrame) -> str:
    r"""A table as CSV. Texts are quoted if one contains a carriage return, which would otherwise end its row.

    Example:
        >>> as_csv(pd.DataFrame({"text": ["a\rb"], "score": [0.5]}))
        '"text","score"\n"a\rb",0.5\n'
    """
    written = str(table.to_csv(index=False))
    return str(table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)) if "\r" in written else written


def stacked(tables: Mapping[Any, pd.DataFrame], *names: str) -> pd.DataFrame:
    """Join tables one below the other, with the key of each in new first columns.

    Args:
        tables: key -> table; with several names, a key is a tuple.
        names: names of the new columns.

    Example:
        >>> tables = {"cosine": pd.DataFrame({"share": [0.5, 0.25]}), "dot": pd.DataFrame({"share": [1.0]})}
        >>> stacked(tables, "score").values.tolist()
        [['cosine', 0.5], ['cosine', 0.25], ['dot', 1.0]]
    """
    table: pd.DataFrame = pd.concat(tables, names=list(names)).reset_index(level=list(names)).reset_index(drop=True)
    return table


def with_seeds(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Join the tables of seeds 0, 1, ..., with a new last column `seed`.

    Example:
        >>> with_seeds([pd.DataFrame({"share": [0.5]}), pd.DataFrame({"share": [0.25]})]).values.tolist()
        [[0.5, 0.0], [0.25, 1.0]]
    """
    table: pd.DataFrame = pd.concat([one.assign(seed=seed) for seed, one in enumerate(tables)], ignore_index=True)
    return table


def own_language(table: pd.DataFrame) -> pd.DataFrame:
    """The rows in which probe language and train language are the same, by whatever names (`languages.own_languages`).

    Example:
        >>> table = pd.DataFrame({"probe_language": ["de", "de"], "train_language": ["de", "en"], "share": [0.75, 0.25]})
        >>> own_language(table)["share"].tolist()
        [0.75]
        >>> own_language(table.assign(probe_language="german"))["share"].tolist()
        [0.75]
    """
    mine = own_languages(list(table["probe_language"].unique()), list(table["train_language"].unique()))
    own: pd.DataFrame = table[table["probe_language"].map(mine) == table["train_language"]]
    return own


def own_row_of(table: pd.DataFrame, language: str) -> pd.DataFrame:
    """The rows of a language as probe and train language, given by either name; several, if the table has several.

    Example:
        >>> table = pd.DataFrame({"probe_language": ["english"] * 2, "train_language": ["en", "de"], "share": [0.75, 0.25]})
        >>> [own_row_of(table, name)["share"].tolist() for name in ("en", "english", "de")]
        [[0.75], [0.75], []]
    """
    own = own_language(table)
    trained = own_languages([language], list(own["train_language"].unique())).get(language)
    rows: pd.DataFrame = own[own["train_language"] == trained]
    exact: pd.DataFrame = rows[rows["probe_language"] == language]
    return rows if exact.empty else exact


def own_cells(grid: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Which cells are of a probe language (row) and its own train language (column): [rows, columns].

    Example:
        >>> own_cells(pd.DataFrame(index=["de", "english"], columns=["de", "en"])).tolist()
        [[True, False], [False, True]]
    """
    own = own_languages(list(grid.index), list(grid.columns))
    return np.asarray([[own.get(probe) == train for train in grid.columns] for probe in grid.index], dtype=bool)
