"""Data sets from the Hugging Face hub, or from local folders with the same layout, through `datasets.load_dataset`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import pandas as pd

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets.cells import cell_text
from lightning_tracin.studies.datasets.column_roles import (
    Columns,
    check_columns,
    rows_of_monolingual_tables,
    rows_of_multilingual_table,
)
from lightning_tracin.studies.datasets.corpus import Cleaning, Corpus, build_corpus

if TYPE_CHECKING:
    from typing_extensions import Unpack

# The task is whether a premise entails a hypothesis: Choenni et al. (EMNLP 2023), arXiv 2305.13286.
ENTAILMENT_OR_NOT = {"neutral": "not-entailment", "contradiction": "not-entailment"}


@dataclass(frozen=True)
class Recipe:
    """The layout of a well-known data set on the hub."""

    path: str
    columns: Columns
    drop_texts: tuple[str, ...] = ()
    merge_labels: Mapping[str, str | None] = field(default_factory=dict)


# XNLI's translations have the same row number in every language; PAWS-X's have the same id.
RECIPES: Mapping[str, Recipe] = {
    "xnli": Recipe("facebook/xnli", Columns(text="premise", text_pair="hypothesis"), merge_labels=ENTAILMENT_OR_NOT),
    "paws-x": Recipe(
        "google-research-datasets/paws-x",
        Columns(text="sentence1", text_pair="sentence2", item="id"),
        drop_texts=("NS",),
    ),
}


def load_hub(
    name: str,
    languages: Sequence[str],
    *,
    split: str,
    columns: Columns | None = None,
    config: str | None = None,
    parallel: bool = True,
    item_prefix: str = "",
    **cleaning: Unpack[Cleaning],
) -> Corpus:
    """Load samples of a data set from the hub, or from a local folder that `datasets` can read.

    ``xnli`` and ``paws-x`` need only languages and a split: `RECIPES` fills in whatever is None.

    Args:
        name: ``xnli``, ``paws-x``, any name on the hub, or a folder; a local copy of ``xnli`` or ``paws-x`` is recognised.
        languages: the languages, in order.
        split: as in `datasets`: ``train``, or ``train[:20000]`` for the first 20,000 rows of every language.
        columns: the columns to read. Without a language column, each language is a configuration of the data set, or has columns
            of its own in the configuration named as `config`: ``{language}`` in a name is replaced by the language.
        config: the configuration to load; ``{language}`` in it is replaced by the language.
        parallel: whether samples with the same item are translations; then only items that every language has are kept.
        item_prefix: prefix of row numbers used as items; give unrelated splits different ones.
        **cleaning: see `Cleaning`. An empty `merge_labels` keeps XNLI's three labels.

    Raises:
        TracInError: the data set, configuration, split or a column cannot be loaded, or the samples are invalid.
    """
    recipe = _recipe(name)
    path, columns = recipe.path, columns or recipe.columns
    columns.check()
    if not languages:
        raise TracInError(f"No language of {path} is named: name at least one.")
    if columns.language is None:
        configs = {language: (config or "{language}").replace("{language}", language) for language in languages}
        of_each = {language: columns.of_language(language) for language in languages}
        tables = ((one, f"{path} ({one})", _table(path, configs[one], split, of_each[one])) for one in languages)
        rows = rows_of_monolingual_tables(tables, columns, parallel, item_prefix)
    else:
        table = partial(_table, path, config, split, columns)
        rows = rows_of_multilingual_table(table, columns, languages, parallel, path, item_prefix)
    if cleaning.get("drop_texts") is None:
        cleaning["drop_texts"] = recipe.drop_texts
    if cleaning.get("merge_labels") is None:
        cleaning["merge_labels"] = recipe.merge_labels
    return build_corpus(rows, source=path, parallel=parallel, **cleaning)


def _recipe(name: str) -> Recipe:
    """The recipe of a data set, by its short name, its name on the hub, or a folder with the short name."""
    for known, recipe in RECIPES.items():
        if name in {known, recipe.path}:
            return recipe
        if Path(name).name == known and Path(name).is_dir():
            return replace(recipe, path=name)
    return Recipe(name, Columns())


def _table(path: str, config: str | None, split: str, columns: Columns) -> pd.DataFrame:
    """Load one configuration as a table of strings; a class number becomes the class's name, a missing one ''."""
    loaded = _load(path, config, split)
    check_columns(loaded.column_names, columns, path)
    values = {
        name: loaded[name][:] for name in columns.named.values()
    }  # not with pandas, which turns 1 into 1.0 if a value is missing
    feature = loaded.features.get(columns.label)
    if isinstance(feature, datasets.ClassLabel):
        names = dict(enumerate(feature.names))
        values[columns.label] = [names.get(number, "") for number in values[columns.label]]
    texts = {
        name: [cell_text(value, columns.roles[name], f"{path}, row {i}, column {name!r},") for i, value in enumerate(column)]
        for name, column in values.items()
    }
    table: pd.DataFrame = pd.DataFrame(texts, dtype=str)
    return table


def _load(path: str, config: str | None, split: str) -> datasets.Dataset:
    what = f"{path!r}" + (f", configuration {config!r}," if config else "") + f" split {split!r}"
    try:
        return datasets.load_dataset(path, config, split=split)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise TracInError(
            f"There is no data set {path!r} on the Hugging Face hub, and no folder with that name: correct the name."
        ) from error
    except ConnectionError as error:
        raise TracInError(
            f"The data set {what} cannot be fetched from the Hugging Face hub, and is not in the cache: check the network "
            "connection; without one, download the data set elsewhere, copy the folder and give its path, use local CSV, TSV or "
            "JSON-lines files, or use the names in CLDR, which need no network."
        ) from error
    except (ValueError, FileNotFoundError, RuntimeError) as error:  # no such configuration or split; no data; a script
        raise TracInError(f"The data set {what} cannot be loaded: {error}") from error
