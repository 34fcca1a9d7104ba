"""Languages, items, texts and labels from every kind of dataset, and batches by the loader's own collate function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from lightning_tracin import TracInError
from lightning_tracin.attribution.probes import chosen_probes, some_of_each_language
from lightning_tracin.attribution.samples import SampleSet, from_loader, joined
from lightning_tracin.config import ProbeChoice, SampleColumns
from lightning_tracin.storage.sample_table import SampleTable

ROWS = [
    {"input_ids": [7] * (i + 1), "label": i % 2, "language": "de" if i < 4 else "ru", "item": f"item{i % 4}", "text": f"text {i}"}
    for i in range(8)
]


class Attribute(torch.utils.data.Dataset[Any]):
    def __init__(self) -> None:
        self.language = [row["language"] for row in ROWS]
        self.item = [row["item"] for row in ROWS]

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> Any:
        return ROWS[index]["input_ids"]


class Plural(Attribute):
    def __init__(self) -> None:
        super().__init__()
        self.languages = self.__dict__.pop("language")


class Records(Attribute):
    def __init__(self) -> None:
        pass

    def __getitem__(self, index: int) -> Any:
        return ROWS[index]


def hidden() -> Dataset:
    rows = Dataset.from_list(ROWS)
    rows.set_format("torch", columns=["input_ids", "label"])
    return rows


def collate(rows: list[Any]) -> tuple[str, list[Any]]:
    return "collated", rows


WHOLE = ("de", "de", "de", "de", "ru", "ru", "ru", "ru")


@pytest.mark.parametrize(
    ("build", "languages"),
    [
        (lambda: Dataset.from_list(ROWS), WHOLE),
        (hidden, WHOLE),
        (Attribute, WHOLE),
        (Plural, WHOLE),
        (Records, WHOLE),
        (lambda: list(ROWS), WHOLE),
        (lambda: Subset(hidden(), [6, 1, 3]), ("ru", "de", "de")),
        (lambda: Subset(Subset(Attribute(), [6, 1, 3]), [0, 2]), ("ru", "de")),
        (lambda: ConcatDataset([Subset(hidden(), [0]), hidden(), Attribute()]), ("de", *WHOLE, *WHOLE)),
    ],
)
def test_languages_and_items(build: Callable[[], Any], languages: tuple[str, ...]) -> None:
    samples = from_loader(DataLoader(build(), collate_fn=collate), SampleColumns(item_column="item"), "probes")
    assert samples.table.language == languages
    numbers = {"de": "0123", "ru": "0123"}
    assert all(
        item in {f"item{i}" for i in numbers[language]} for language, item in zip(languages, samples.table.item, strict=True)
    )


def test_text_label_and_items_of_hidden_columns() -> None:
    table = from_loader(DataLoader(hidden(), collate_fn=collate), SampleColumns(item_column="item"), "probes").table
    assert table.text == tuple(f"text {i}" for i in range(8))
    assert table.label == tuple(str(i % 2) for i in range(8))
    assert table.item == ("item0", "item1", "item2", "item3") * 2


def test_class_labels_go_by_their_names() -> None:
    rows = Dataset.from_list(ROWS).cast_column("label", ClassLabel(names=["no", "yes"]))
    for data in (rows, Subset(rows, range(8)), ConcatDataset([rows.select(range(4)), rows.select(range(4, 8))])):
        table = from_loader(DataLoader(data, collate_fn=collate), SampleColumns(), "probes").table
        assert table.label == ("no", "yes") * 4


@pytest.mark.parametrize("values", [torch.tensor([0, 1] * 4), np.array([0, 1] * 4), [0, 1] * 4, np.array(["0", "1"] * 4)])
def test_languages_of_other_types_become_strings(values: Any) -> None:
    data = Attribute()
    data.language = values
    assert from_loader(DataLoader(data, collate_fn=collate), SampleColumns(), "probes").table.language == ("0", "1") * 4


def test_labels_of_several_values_are_shown_as_they_are() -> None:
    data = Attribute()
    data.labels = torch.tensor([[0, 1]] * 8)
    assert from_loader(DataLoader(data, collate_fn=collate), SampleColumns(), "probes").table.label == ("[0, 1]",) * 8


def test_text_of_chosen_columns_is_joined() -> None:
    columns = SampleColumns(text_columns=("text", "item"))
    assert from_loader(DataLoader(hidden(), collate_fn=collate), columns, "probes").table.text[3] == "text 3 | item3"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (SampleColumns(item_column="translation"), "no column 'translation'.*item_column"),
        (SampleColumns(text_columns=("sentence",)), "no text column 'sentence'.*text_columns"),
        (SampleColumns(label_column="gold"), "no label column 'gold'"),
    ],
)
def test_missing_columns_are_named(columns: SampleColumns, message: str) -> None:
    with pytest.raises(TracInError, match=message):
        from_loader(DataLoader(hidden(), collate_fn=collate), columns, "probes")


def test_dataset_without_any_column_takes_languages_outright() -> None:
    data = TensorDataset(torch.arange(8))
    with pytest.raises(TracInError, match=r"no column or attribute 'language'.*\(columns: none\)"):
        from_loader(DataLoader(data), SampleColumns(), "train samples")
    assert from_loader(DataLoader(data), SampleColumns(), "train samples", WHOLE).table.language == WHOLE


def test_empty_dataset() -> None:
    with pytest.raises(TracInError, match="dataset of the probes is empty"):
        from_loader(DataLoader(hidden().select([]), collate_fn=collate), SampleColumns(), "probes")


def test_shuffled_loader_that_drops_its_last_batch_gives_every_sample_in_order() -> None:
    loader = DataLoader(hidden(), batch_size=3, shuffle=True, drop_last=True, collate_fn=collate)
    samples = from_loader(loader, SampleColumns(), "train samples")
    name, rows = samples.batch([5, 2, 7])
    assert name == "collated"
    assert [len(row["input_ids"]) for row in rows] == [6, 3, 8]
    assert samples.sizes == tuple(i + 2 for i in range(8))


def test_samples_of_several_loaders_keep_their_collate_functions() -> None:
    first = from_loader(DataLoader(hidden(), collate_fn=collate), SampleColumns(item_column="item"), "probes")
    other = DataLoader(Records(), collate_fn=lambda rows: ("other", rows))
    second = from_loader(other, SampleColumns(item_column="item"), "probes")
    both = joined([first, second]).take([9, 1, 15])
    assert both.table.text == ("text 1", "text 1", "text 7")
    assert both.batch([0, 2]) == ("other", [ROWS[1], ROWS[7]])
    assert both.batch([1])[0] == "collated"


def table(items: bool) -> SampleTable:
    languages = ("de", "ru", "ko") * 30
    names = tuple(f"item{i // 3}" if items else None for i in range(90))
    return SampleTable(languages, names, ("",) * 90, (None,) * 90)


def test_chosen_probes_are_the_same_items_in_every_language() -> None:
    chosen = some_of_each_language(table(items=True), 5)
    by_language = {language: {i // 3 for i in chosen if i % 3 == at} for at, language in enumerate(("de", "ru", "ko"))}
    assert len(chosen) == 15
    assert by_language["de"] == by_language["ru"] == by_language["ko"]


def test_chosen_probes_without_items_are_so_many_of_each_language() -> None:
    chosen = some_of_each_language(table(items=False), 7)
    assert [sum(i % 3 == at for i in chosen) for at in range(3)] == [7, 7, 7]
    assert chosen == some_of_each_language(table(items=False), 7)
    assert chosen != list(range(21))


def test_probe_languages_limit_the_probes() -> None:
    samples = SampleSet(table(items=True), ([],), (collate,), tuple((0, i) for i in range(90)))
    chosen = chosen_probes(samples, ProbeChoice(probe_languages=("ko", "de"), max_probes_per_language=None))
    assert chosen.table.counts() == {"de": 30, "ko": 30}
    assert chosen.places[0] == (0, 0)
    assert chosen.places[1] == (0, 2)
