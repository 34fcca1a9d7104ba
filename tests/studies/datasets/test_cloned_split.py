"""The user's data in words that are shared by none or by all."""

from __future__ import annotations

import re

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets import Split, SplitPlan, load_cldr, split_by_item
from lightning_tracin.studies.datasets.cloned_split import cloned
from lightning_tracin.studies.datasets.clones import words


def names() -> Split:
    plan = SplitPlan(["de", "en", "ko"], ["de", "en", "ko", "fr"], 30, 5, test_per_language=6, extra_per_language=3)
    return split_by_item(load_cldr(["de", "en", "ko", "fr"]).dataset, plan)


def of(rows: list[tuple[str, str, int, str]]) -> Dataset:
    columns = dict(zip(("text", "language", "label", "item"), map(list, zip(*rows, strict=True)), strict=True))
    features = Features({**dict.fromkeys(("text", "language", "item"), Value("string")), "label": ClassLabel(names=["a", "b"])})
    return Dataset.from_dict(columns, features=features)


PARTS = ("train", "probes", "test", "extra")


@pytest.mark.parametrize("shared", [0, 1])
def test_nothing_changes_but_texts(shared: int) -> None:
    before = names()
    after = cloned(before, shared)  # type: ignore[arg-type]
    for part in PARTS:
        old, new = getattr(before, part), getattr(after, part)
        assert new.column_names == old.column_names
        assert new.features == old.features
        for column in ("label", "language", "item"):
            assert new[column][:] == old[column][:]


def test_languages_without_a_shared_word() -> None:
    before = names()
    after = cloned(before, 0)
    used: dict[str, set[str]] = {}
    for part in PARTS:
        old, new = getattr(before, part), getattr(after, part)
        for language, text, changed in zip(old["language"], old["text"], new["text"], strict=True):
            used.setdefault(language, set()).update(words(changed))
            assert re.sub(r"\S", "", changed) == re.sub(r"\S", "", text)
    assert len(used) == 4
    assert all(not used[one] & used[other] for one in used for other in used if one != other)
    german = {word for part in PARTS for word in of_language(getattr(before, part), "de")}
    assert sum(word.isalnum() for word in used["de"]) == sum(word.isalnum() for word in german)


def of_language(part: Dataset, language: str) -> list[str]:
    rows = zip(part["language"], part["text"], strict=True)
    return [word for name, text in rows if name == language for word in words(text)]


def test_all_languages_are_the_first_train_language() -> None:
    before = names()
    after = cloned(before, 1)
    german = {item: text for part in PARTS for text, item in in_german(getattr(before, part))}
    for part in PARTS:
        new = getattr(after, part)
        assert new["text"][:] == [german[item] for item in new["item"]]


def in_german(part: Dataset) -> list[tuple[str, str]]:
    rows = zip(part["language"], part["text"], part["item"], strict=True)
    return [(text, item) for name, text, item in rows if name == "de"]


def test_texts_without_translations_are_dealt_out_by_label() -> None:
    part = of(
        [
            ("Hund", "de", 0, "1"),
            ("Katze", "de", 0, "2"),
            ("Stuhl", "de", 1, "3"),
            *((f"word {number}", "en", int(number == 1), f"en {number}") for number in range(4)),
        ]
    )
    found = cloned(Split(part, part, part), 1).train
    assert found["text"][3:] == ["Hund", "Stuhl", "Katze", "Hund"]


def test_a_language_by_another_name_keeps_its_words() -> None:
    train, probes = of([("Hund", "de", 0, "1"), ("dog", "en", 0, "1")]), of([("Hund", "german", 0, "2"), ("dog", "en", 0, "2")])
    found = cloned(Split(train, probes, probes), 0)
    assert found.probes["text"][0] == found.train["text"][0]
    assert cloned(Split(train, probes, probes), 1).probes["text"][:] == ["Hund", "Hund"]


def test_a_label_that_the_first_language_does_not_have() -> None:
    part = of([("Hund", "de", 0, "1"), ("chair", "en", 1, "2")])
    with pytest.raises(TracInError, match=r"'de' has no text among its train samples with the label of sample 1 \('en'\)"):
        cloned(Split(part, part, part), 1)
