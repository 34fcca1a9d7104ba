"""Reads language, item, text and label of samples from the dataset behind a loader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from lightning_tracin.attribution.language_names import language_name
from lightning_tracin.config import SampleColumns
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.sample_table import SampleTable


def read_table(dataset: Any, columns: SampleColumns, role: str, languages: Sequence[Any] | None) -> SampleTable:
    """Read language, item, text and label of all samples of a map-style dataset.

    Args:
        dataset: the dataset.
        columns: which columns to read.
        role: "train samples" or "probes", for messages.
        languages: each sample's language, instead of a column.

    Raises:
        TracInError: a column is missing or incomplete; the message lists the existing columns.

    Example:
        >>> rows = [{"language": "de", "text": "ja", "id": 7}, {"language": "en", "text": "yes", "id": 7}]
        >>> table = read_table(rows, SampleColumns(item_column="id"), "probes", languages=None)
        >>> table.language, table.item, table.text
        (('de', 'en'), ('7', '7'), ('ja', 'yes'))
        >>> pairs = [{"source": "en", "target": "de", "text": "yes"}, {"source": "sw", "target": "de", "text": "ndiyo"}]
        >>> read_table(pairs, SampleColumns(language_column=("source", "target")), "probes", languages=None).language
        ('en>de', 'sw>de')
    """
    count = len(dataset)
    if languages is None:
        languages = _languages(dataset, columns.language_column, role)
    elif len(languages) != count:
        raise TracInError(f"{len(languages)} languages were given for {count} {role}; give one for each, in the dataset's order.")
    names = [language_of(_plain(language)) for language in languages]
    unknown = [index for index, name in enumerate(names) if name is None]
    if unknown:
        raise TracInError(f"Sample {unknown[0]} of the {role} has no language (and {len(unknown) - 1} more); name one for each.")
    items: Sequence[Any] | None = None
    if columns.item_column is not None:
        items = read_column(dataset, columns.item_column)
        if items is None:
            raise TracInError(
                f"The {role} have no column {columns.item_column!r} (columns: {listed_columns(dataset)}); name the one whose "
                "value translations share with `item_column=...`, or leave it out."
            )
    return SampleTable(
        language=tuple(name for name in names if name is not None),
        item=(None,) * count if items is None else in_words(dataset, str(columns.item_column), items),
        text=_text(dataset, columns),
        label=_label(dataset, columns, role),
    )


def _languages(dataset: Any, column: str | tuple[str, ...], role: str) -> list[Any]:
    """One language per sample, or a tuple of languages where there are several columns."""
    each = []
    for name in (column,) if isinstance(column, str) else column:
        found = read_column(dataset, name)
        if found is None:
            raise TracInError(
                f"The {role} have no column or attribute {name!r} with their languages (columns: "
                f"{listed_columns(dataset)}). Name the right one with `language_column=...`, or give one language per sample "
                "(`languages=[...]` for the train samples, `languages_of_probes=[...]` for the probes)."
            )
        each.append(known_values(dataset, name, found))
    return each[0] if isinstance(column, str) else list(zip(*each, strict=True))


def language_of(value: Any) -> str | None:
    """A language's name; of a pair (source and target of a translation) both names.

    Example:
        >>> language_of(" de"), language_of(("en", "de")), language_of(None)
        ('de', 'en>de', None)
    """
    if not isinstance(value, tuple) or len(value) < 2:
        return language_name(value)
    names = [language_name(one) for one in value]
    return ">".join(name for name in names if name is not None) if names and None not in names else None


def _text(dataset: Any, columns: SampleColumns) -> tuple[str, ...]:
    languages = [columns.language_column] if isinstance(columns.language_column, str) else columns.language_column
    used = {*languages, columns.item_column, columns.label_column, "label", "labels"}
    names = columns.text_columns
    if names is None:
        names = tuple(name for name, value in _first(dataset).items() if isinstance(value, str) and name not in used)
    texts: list[list[str]] = []
    for name in names:
        column = read_column(dataset, name)
        if column is None:
            raise TracInError(
                f"There is no text column {name!r} (columns: {listed_columns(dataset)}); name others with `text_columns=[...]`."
            )
        texts.append([str(value) for value in column])
    if not texts:
        return ("",) * len(dataset)
    return tuple(" | ".join(parts) for parts in zip(*texts, strict=True))


def _first(dataset: Any) -> Mapping[str, Any]:
    """The first sample with all its columns, including hidden ones; empty if samples are not mappings."""
    if parts := _parts(dataset):
        return {name: value for name, value in _first(parts[0]).items() if name in column_names(dataset)}
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
        raise TracInError(f"The {role} have no label column {name!r} (columns: {listed_columns(dataset)}).")
    return in_words(dataset, name, column)


def in_words(dataset: Any, name: str, values: Sequence[Any]) -> tuple[str | None, ...]:
    """A column's values as strings: class names instead of class numbers; what is missing (None, NaN) is None.

    Example:
        >>> in_words([{"label": 1}, {"label": None}], "label", [1, None])
        ('1', None)
    """
    return tuple(None if value is None or value != value else str(value) for value in named_values(dataset, name, values))


def named_values(dataset: Any, name: str, values: Sequence[Any]) -> list[Any]:
    """A column's values as Python has them, and class names instead of class numbers.

    Example:
        >>> named_values([], "label", [np.int64(3), "x"])
        [3, 'x']
    """
    names = _class_names(dataset, name)
    return [names[value] if isinstance(value, int) and 0 <= value < len(names) else value for value in map(_plain, values)]


def known_values(dataset: Any, name: str, values: Sequence[Any]) -> list[Any]:
    """As `named_values`, with None for the class of a sample whose class is not told (-1)."""
    hidden = -1 if _class_names(dataset, name) else None
    return [None if value == hidden else value for value in named_values(dataset, name, values)]


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor | np.ndarray | np.generic) else value


def _class_names(dataset: Any, name: str) -> Sequence[str]:
    """The names of a column's classes, if the dataset knows them (`datasets.ClassLabel`); else empty."""
    if parts := _parts(dataset):
        each = [_class_names(part, name) for part in parts]
        return each[0] if all(names == each[0] for names in each) else ()
    features = getattr(dataset, "features", None)
    feature = features.get(name) if isinstance(features, Mapping) else None
    return getattr(feature, "names", None) or ()


def _parts(dataset: Any) -> Sequence[Any]:
    """The datasets inside a `Subset` or `ConcatDataset`; empty for any other dataset."""
    return dataset.datasets if isinstance(dataset, ConcatDataset) else [dataset.dataset] if isinstance(dataset, Subset) else []


def listed_columns(dataset: Any) -> str:
    """The columns of a dataset in words, for messages."""
    return ", ".join(map(repr, column_names(dataset))) or "none"


def column_names(dataset: Any) -> list[str]:
    """The names of a dataset's columns, as far as they are known."""
    if parts := _parts(dataset):
        each = [column_names(part) for part in parts]
        return [name for name in each[0] if all(name in other for other in each)]
    names = getattr(dataset, "column_names", None)
    if isinstance(names, list):
        return [str(name) for name in names]
    if len(dataset) > 0 and isinstance(dataset[0], Mapping):
        return [str(name) for name in dataset[0]]
    return []


def read_column(dataset: Any, name: str) -> list[Any] | None:
    """One value per sample, in dataset order; None if the dataset has no such column or attribute.

    See `stored_column`; of a dataset without such a column, the entry of that name in each sample is taken.

    Example:
        >>> read_column(Subset([{"language": one} for one in ("de", "en", "sw")], [2, 0]), "language")
        ['sw', 'de']
    """
    return _column(dataset, name, from_samples=True)


def stored_column(dataset: Any, name: str) -> list[Any] | None:
    """One value per sample as the dataset itself has them, in its order; None if it has no such column or attribute.

    Looks inside `Subset` and `ConcatDataset`, and reads columns of Hugging Face datasets even if `set_format` hides them. Of
    other datasets it takes an attribute of that name (or its plural). No sample is fetched.

    Example:
        >>> stored_column([{"language": "de"}], "language") is None
        True
    """
    return _column(dataset, name, from_samples=False)


def _column(dataset: Any, name: str, from_samples: bool) -> list[Any] | None:
    if isinstance(dataset, Subset):
        whole = _column(dataset.dataset, name, from_samples)
        return None if whole is None else [whole[i] for i in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [_column(part, name, from_samples) for part in dataset.datasets]
        return None if any(part is None for part in parts) else [value for part in parts for value in part or ()]
    if hasattr(dataset, "column_names") and hasattr(dataset, "with_format"):
        return list(dataset.with_format(None)[name]) if name in dataset.column_names else None
    for attribute in (name, f"{name}s"):
        values: Any = getattr(dataset, attribute, None)
        if isinstance(values, str | bytes | Mapping | Set) or not (hasattr(values, "__len__") and hasattr(values, "__iter__")):
            continue
        if len(values) == len(dataset):
            return list(values)
    if from_samples and len(dataset) > 0 and isinstance(dataset[0], Mapping) and name in dataset[0]:
        return [dataset[i][name] for i in range(len(dataset))]
    return None
