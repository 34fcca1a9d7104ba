"""Facts about samples: language, item, text and label, read from the dataset behind a loader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from lightning_tracin.config import SampleColumns
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.sample_table import SampleTable


def read_table(dataset: Any, columns: SampleColumns, role: str, languages: Sequence[Any] | None) -> SampleTable:
    """The facts about all samples of a map-style dataset.

    Args:
        dataset: the dataset.
        columns: where the facts stand.
        role: "train samples" or "probes", for messages.
        languages: each sample's language, given outright.

    Raises:
        TracInError: a column is missing or incomplete; the message names those there are.
    """
    count = len(dataset)
    if languages is None:
        found = read_column(dataset, columns.language_column)
        if found is None:
            available = ", ".join(repr(name) for name in column_names(dataset)) or "none"
            raise TracInError(
                f"The {role} have no column or attribute {columns.language_column!r} that tells their languages (columns: "
                f"{available}). "
                "Name the right one with `language_column=...`, or give the languages outright, one a sample "
                "(`languages=[...]` for the train samples, `languages_of_probes=[...]` for the probes)."
            )
        languages = in_words(dataset, columns.language_column, found)
    elif len(languages) != count:
        raise TracInError(f"{len(languages)} languages were given for {count} {role}; give one for each, in the dataset's order.")
    unknown = [index for index, language in enumerate(languages) if language is None or str(language) in ("", "nan")]
    if unknown:
        raise TracInError(f"Sample {unknown[0]} of the {role} has no language (and {len(unknown) - 1} more); name one for each.")
    items: Sequence[Any] | None = None
    if columns.item_column is not None:
        items = read_column(dataset, columns.item_column)
        if items is None:
            available = ", ".join(repr(name) for name in column_names(dataset)) or "none"
            raise TracInError(
                f"The {role} have no column {columns.item_column!r} (columns: {available}); name the one whose value "
                "translations share with `item_column=...`, or leave it out."
            )
    return SampleTable(
        language=tuple(str(language) for language in languages),
        item=(None,) * count if items is None else in_words(dataset, str(columns.item_column), items),
        text=_text(dataset, columns),
        label=_label(dataset, columns, role),
    )


def _text(dataset: Any, columns: SampleColumns) -> tuple[str, ...]:
    used = {columns.language_column, columns.item_column, columns.label_column, "label", "labels"}
    names = columns.text_columns
    if names is None:
        first = _first(dataset)
        names = tuple(name for name, value in first.items() if isinstance(value, str) and name not in used)
    texts: list[list[str]] = []
    for name in names:
        column = read_column(dataset, name)
        if column is None:
            raise TracInError(
                f"There is no text column {name!r} (columns: {', '.join(column_names(dataset))}); name others with "
                "`text_columns=[...]`."
            )
        texts.append([str(value) for value in column])
    if not texts:
        return ("",) * len(dataset)
    return tuple(" | ".join(parts) for parts in zip(*texts, strict=True))


def _first(dataset: Any) -> Mapping[str, Any]:
    """The first sample with all its columns, hidden ones too; empty where samples are not mappings."""
    if isinstance(dataset, Subset):
        return {name: value for name, value in _first(dataset.dataset).items() if name in column_names(dataset)}
    if isinstance(dataset, ConcatDataset):
        return {name: value for name, value in _first(dataset.datasets[0]).items() if name in column_names(dataset)}
    plain = dataset.with_format(None) if hasattr(dataset, "with_format") else dataset
    first = plain[0]
    return first if isinstance(first, Mapping) else {}


def _label(dataset: Any, columns: SampleColumns, role: str) -> tuple[str | None, ...]:
    name = columns.label_column
    if name is None:
        name = next((usual for usual in ("label", "labels") if read_column(dataset, usual) is not None), None)
    if name is None:
        return (None,) * len(dataset)
    column = read_column(dataset, name)
    if column is None:
        available = ", ".join(repr(other) for other in column_names(dataset)) or "none"
        raise TracInError(f"The {role} have no label column {name!r} (columns: {available}).")
    return in_words(dataset, name, column)


def in_words(dataset: Any, name: str, values: Sequence[Any]) -> tuple[str | None, ...]:
    """A column's values as strings: names of classes for their numbers, None as it is."""
    names = _class_names(dataset, name)
    plain = (value.tolist() if isinstance(value, Tensor | np.ndarray | np.generic) else value for value in values)
    return tuple(
        names[value] if isinstance(value, int) and 0 <= value < len(names) else None if value is None else str(value)
        for value in plain
    )


def _class_names(dataset: Any, name: str) -> Sequence[str]:
    """The names of a column's classes, where the dataset knows them (`datasets.ClassLabel`); empty where it does not."""
    if isinstance(dataset, Subset):
        return _class_names(dataset.dataset, name)
    if isinstance(dataset, ConcatDataset):
        each = [_class_names(part, name) for part in dataset.datasets]
        return each[0] if all(names == each[0] for names in each) else ()
    features = getattr(dataset, "features", None)
    feature = features.get(name) if isinstance(features, Mapping) else None
    return getattr(feature, "names", None) or ()


def column_names(dataset: Any) -> list[str]:
    """The columns that a dataset is known to have."""
    if isinstance(dataset, Subset):
        return column_names(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        each = [column_names(part) for part in dataset.datasets]
        return [name for name in each[0] if all(name in other for other in each)]
    names = getattr(dataset, "column_names", None)
    if isinstance(names, list):
        return [str(name) for name in names]
    if len(dataset) > 0 and isinstance(dataset[0], Mapping):
        return [str(name) for name in dataset[0]]
    return []


def read_column(dataset: Any, name: str) -> list[Any] | None:
    """One value a sample, in the dataset's order; None where the dataset has no such column or attribute.

    Looks through `Subset` and `ConcatDataset`; reads columns of Hugging Face datasets that `set_format` hides; takes an
    attribute of the dataset of that name (or its plural); at last the entry of that name of each sample.
    """
    if isinstance(dataset, Subset):
        whole = read_column(dataset.dataset, name)
        return None if whole is None else [whole[i] for i in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [read_column(part, name) for part in dataset.datasets]
        return None if any(part is None for part in parts) else [value for part in parts for value in part or ()]
    if hasattr(dataset, "column_names") and hasattr(dataset, "with_format"):
        return list(dataset.with_format(None)[name]) if name in dataset.column_names else None
    for attribute in (name, f"{name}s"):
        values = getattr(dataset, attribute, None)
        if isinstance(values, Sequence | Tensor | np.ndarray) and not isinstance(values, str) and len(values) == len(dataset):
            return list(values)
    if len(dataset) > 0 and isinstance(dataset[0], Mapping) and name in dataset[0]:
        return [dataset[i][name] for i in range(len(dataset))]
    return None
