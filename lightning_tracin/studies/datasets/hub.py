"""Data sets of the Hugging Face hub, or local folders laid out like them, through `datasets.load_dataset`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import datasets
import pandas as pd

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets.column_roles import Columns, check_columns, check_items, pick_columns, select_languages
from lightning_tracin.studies.datasets.corpus import Corpus, DifferingLabels, build_corpus

# The study asks whether a premise entails a hypothesis or not: Choenni et al. (EMNLP 2023), arXiv 2305.13286.
ENTAILMENT_OR_NOT = {"neutral": "not-entailment", "contradiction": "not-entailment"}


@dataclass(frozen=True)
class Recipe:
    """How a well-known data set is laid out on the hub."""

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
    drop_texts: Sequence[str] | None = None,
    merge_labels: Mapping[str, str | None] | None = None,
    differing_labels: DifferingLabels = "error",
    label_names: Sequence[str] | None = None,
    item_prefix: str = "",
) -> Corpus:
    """Load samples of a data set of the hub, or of a local folder that `datasets` can read.

    ``xnli`` and ``paws-x`` need nothing but languages and a split: `RECIPES` fills in whatever is None.

    Args:
        name: ``xnli``, ``paws-x``, any name on the hub, or a folder; a copy of a well-known one is read like it.
        languages: Which languages, in which order.
        split: As `datasets` takes it: ``train``, or ``train[:20000]`` for the first 20,000 rows of every language.
        columns: Which columns hold what. Without a language column, each language is a configuration of the data set.
        config: The configuration to load; ``{language}`` in it stands for the language.
        parallel: Samples with the same item are translations, and only items that every language has are kept.
        drop_texts: Rows with exactly one of these as a text are placeholders; they are dropped and counted.
        merge_labels: New names of labels; None drops the label's rows. An empty mapping keeps XNLI's three labels.
        differing_labels: What to do with items whose translations do not have one label (see `build_corpus`).
        label_names: The labels in the order of their numbers, for instance those of the train data.
        item_prefix: Stands before the row number where that is the item; give unrelated splits different ones.

    Raises:
        TracInError: The data set, configuration, split or a column cannot be had, or the samples are not usable.
    """
    recipe = _recipe(name)
    if not languages:
        raise TracInError(f"No language of {recipe.path} is asked for: name at least one.")
    columns = columns or recipe.columns
    if columns.language is None:
        tables = [
            pick_columns(
                _table(recipe.path, (config or "{language}").replace("{language}", language), split, columns),
                columns,
                source=f"{recipe.path} ({language})",
                language=language,
                item_prefix=item_prefix if parallel else f"{item_prefix}{language}:",
            )
            for language in languages
        ]
        rows = pd.concat(tables, ignore_index=True)
    else:
        rows = _rows_of_one_configuration(recipe.path, config, split, columns, languages, parallel, item_prefix)
    return build_corpus(
        rows,
        source=recipe.path,
        parallel=parallel,
        drop_texts=recipe.drop_texts if drop_texts is None else drop_texts,
        merge_labels=recipe.merge_labels if merge_labels is None else merge_labels,
        differing_labels=differing_labels,
        label_names=label_names,
    )


def _recipe(name: str) -> Recipe:
    """Return the recipe of a well-known data set, under its short name or the hub's, or for a folder that is named like it."""
    for known, recipe in RECIPES.items():
        if name in {known, recipe.path}:
            return recipe
        if Path(name).name == known and Path(name).is_dir():
            return replace(recipe, path=name)
    return Recipe(name, Columns())


def _rows_of_one_configuration(
    path: str,
    config: str | None,
    split: str,
    columns: Columns,
    languages: Sequence[str],
    parallel: bool,
    item_prefix: str,
) -> pd.DataFrame:
    check_items(columns, parallel, path)
    rows = pick_columns(_table(path, config, split, columns), columns, source=path, item_prefix=item_prefix)
    return select_languages(rows, languages, path)


def _table(path: str, config: str | None, split: str, columns: Columns) -> pd.DataFrame:
    """Load one configuration as a table of strings; a class number becomes the class's name, a missing one ''."""
    loaded = _load(path, config, split)
    check_columns(loaded.column_names, columns, path)
    values = {name: loaded[name][:] for name in columns.named.values()}  # not by pandas: a gap would make 1 a 1.0
    feature = loaded.features.get(columns.label)
    if isinstance(feature, datasets.ClassLabel):
        names = dict(enumerate(feature.names))
        values[columns.label] = [names.get(number, "") for number in values[columns.label]]
    texts = {name: ["" if value is None else str(value) for value in column] for name, column in values.items()}
    table: pd.DataFrame = pd.DataFrame(texts, dtype=str)
    return table


def _load(path: str, config: str | None, split: str) -> datasets.Dataset:
    what = f"{path!r}" + (f", configuration {config!r}," if config else "") + f" split {split!r}"
    try:
        return datasets.load_dataset(path, config, split=split)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise TracInError(
            f"There is no data set {path!r} on the Hugging Face hub, nor a folder of that name: correct it."
        ) from error
    except ConnectionError as error:
        raise TracInError(
            f"The data set {what} cannot be fetched from the Hugging Face hub, and is not in the cache: is there a "
            "network? Without one, fetch it where there is one, copy the folder and give its path; or use local CSV, "
            "TSV or JSON-lines files; or the names in CLDR, which need no network."
        ) from error
    except (ValueError, FileNotFoundError, RuntimeError) as error:  # no such configuration or split; no data; a script
        raise TracInError(f"The data set {what} cannot be loaded: {error}") from error
