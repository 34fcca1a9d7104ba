"""Languages as people's data hold them, and what is said where train samples and probes name them differently."""

from __future__ import annotations

import enum
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

from lightning_tracin import TracInCallback, TracInError
from lightning_tracin.attribution.dataset_columns import read_table
from lightning_tracin.attribution.language_names import mismatch
from lightning_tracin.config import SampleColumns
from tests.support.fits import Classifier, loaders, trainer


class Language(enum.Enum):
    GERMAN = "de"
    NAN = "nan"


class Number(enum.Enum):
    de = 1
    nan = 2


class Coded(bytes, enum.Enum):
    GERMAN = b"de"
    NAN = b"nan"


class WithAttribute:
    """Samples whose dataset holds their languages."""

    def __init__(self, languages: Any) -> None:
        self.languages = languages

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, float]:
        return {"x": float(index)}


def languages_of(values: Any) -> tuple[str, ...]:
    count = len(values)
    return read_table([{"x": 1.0}] * count, SampleColumns(), "train samples", values).language


@pytest.mark.parametrize(
    "values",
    [
        ["de", "nan"],
        ("de ", "\u200bnan"),
        pd.Series(["de", "nan"], index=[5, 9]),
        pd.Series(["de", "nan"]).astype("category"),
        np.array(["de", "nan"]),
        pa.array(["de", "nan"]),
        [Language.GERMAN, Language.NAN],
        [Number.de, Number.nan],
        [Coded.GERMAN, Coded.NAN],
        np.array([b"de", b"nan"]),
        [bytearray(b"de"), memoryview(b"nan")],
        pa.array([b"de", b"nan"]),
        pa.array(["de", "nan"]).dictionary_encode(),
        pa.chunked_array([pa.array(["de"]).dictionary_encode(), pa.array(["nan"]).dictionary_encode()]),
        pd.Categorical(["de", "nan"]),
        pd.CategoricalIndex(["de", "nan"]),
        pd.Series(["de", "nan"], dtype="string[pyarrow]"),
        pd.Series(pd.array(["de", "nan"], dtype=pd.ArrowDtype(pa.dictionary(pa.int32(), pa.string())))),
        [np.array("de"), np.str_("nan")],
        Dataset.from_dict({"language": ["de", "nan"]})["language"],
    ],
    ids=lambda value: type(value).__name__,
)
def test_languages_from_any_kind_of_list(values: Any) -> None:
    assert languages_of(values) == ("de", "nan")


@pytest.mark.parametrize("name", ["nan", "no", "on", "null", "None", "NA", "none", "true"])
def test_words_that_look_like_missing_values_are_languages(name: str) -> None:
    assert languages_of([name, "de"]) == (name, "de")


@pytest.mark.parametrize(
    "missing",
    [
        None,
        float("nan"),
        np.nan,
        np.float32("nan"),
        pd.NA,
        pd.NaT,
        "",
        "  ",
        "\u200b",
        torch.tensor(float("nan")),
        Decimal("NaN"),
    ],
)
def test_a_missing_language_is_named(missing: Any) -> None:
    with pytest.raises(TracInError, match=r"Sample 1 of the train samples has no language \(and 1 more\)"):
        languages_of(["de", missing, missing])


@pytest.mark.parametrize("value", [False, np.False_])
def test_what_yaml_makes_of_no_is_refused(value: Any) -> None:
    with pytest.raises(TracInError, match=r'A language is False: YAML reads `no`, .* quote it, as in "no"'):
        languages_of(["de", value])


@pytest.mark.parametrize(
    "values",
    [
        pd.Series(["de", "nan"], index=[5, 9]),
        pd.Categorical(["de", "nan"]),
        pa.array(["de", "nan"]),
        pa.chunked_array([["de"], ["nan"]]),
        np.array([b"de", b"nan"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_languages_from_any_kind_of_attribute(values: Any) -> None:
    assert read_table(WithAttribute(values), SampleColumns(), "train samples", None).language == ("de", "nan")


@pytest.mark.parametrize(
    "column", [pa.array(["de", "nan"]).dictionary_encode(), pa.array([b"de", b"nan"])], ids=["coded", "bytes"]
)
@pytest.mark.parametrize("shown_as", [None, "numpy", "pandas", "arrow"])
def test_languages_from_columns_of_arrow(column: Any, shown_as: str | None) -> None:
    rows = Dataset(pa.table({"language": column, "x": [1.0, 2.0]})).with_format(shown_as)
    assert read_table(rows, SampleColumns(), "train samples", None).language == ("de", "nan")


@pytest.mark.parametrize("value", [["de"], ("de",), {"name": "de"}, {"de"}], ids=lambda value: type(value).__name__)
def test_a_collection_is_no_language(value: Any) -> None:
    with pytest.raises(TracInError, match="but should be a word; give one language for each sample"):
        languages_of(["de", value])


def test_bytes_of_another_encoding_are_refused() -> None:
    with pytest.raises(TracInError, match="is no UTF-8; give languages as strings"):
        languages_of(["de", "fran\u00e7ais".encode("latin-1")])


@pytest.mark.parametrize("given", [{"de", "nan"}, {"de": 0, "nan": 1}], ids=lambda value: type(value).__name__)
def test_languages_without_an_order_are_refused(given: Any) -> None:
    with pytest.raises(TracInError, match=r"languages should be a list of strings, but is .*, which has no order"):
        TracInCallback(languages=given)


def test_a_hidden_class_is_a_missing_language() -> None:
    features = Features({"language": ClassLabel(names=["de", "nan"])})
    rows = Dataset.from_dict({"language": [0, -1]}, features=features)
    with pytest.raises(TracInError, match=r"Sample 1 of the train samples has no language"):
        read_table(rows, SampleColumns(), "train samples", None)


def test_composed_and_decomposed_letters_are_one_language() -> None:
    assert len(set(languages_of(["Fran\u00e7ais", "Franc\u0327ais"]))) == 1


def test_classes_of_a_dataset_are_named() -> None:
    features = Features({"language": ClassLabel(names=["de", "nan"]), "x": Value("float32")})
    rows = Dataset.from_dict({"language": [0, 1, 1], "x": [1.0, 2.0, 3.0]}, features=features)
    assert read_table(rows, SampleColumns(), "train samples", None).language == ("de", "nan", "nan")


def test_missing_items_are_shared_by_nobody() -> None:
    rows = [{"language": "de", "item": item} for item in (1, float("nan"), None, 0)]
    assert read_table(rows, SampleColumns(item_column="item"), "train samples", None).item == ("1", None, None, "0")


@pytest.mark.parametrize(
    ("train", "probes", "said"),
    [
        ({"en", "de"}, {"en", "fr"}, None),
        ({"en", "de"}, {"english", "german"}, None),
        ({"zh", "de"}, {"zh-Hans", "de"}, None),
        ({"pt_BR", "de"}, {"pt-br", "de"}, None),
        ({"EN", "DE"}, {"en", "de"}, None),
        ({"zh", "zh-Hant"}, {"zh-Hans"}, "Are these the same: 'zh-Hans' and 'zh'?"),
        ({"en", "de"}, {"en-US", "de"}, "'en-US' and 'en'? They count as different"),
        ({"zh", "de"}, {"cmn", "de"}, "'cmn' and 'zh'? They count as different"),
        ({"Lang1", "de"}, {"lang1", "de"}, "'lang1' and 'Lang1'? They count as different"),
        ({"en", "english", "de"}, {"de"}, "Some languages of the train samples mean the same ('en', 'english')"),
        ({"en", "de"}, {"eng", "en"}, "Some languages of the probes mean the same ('en', 'eng')"),
        ({"en", "de"}, {"sw", "yo"}, "every one is zero-shot. If names differ"),
        ({"zh", "zh-Hant"}, {"zh", "zh-Hans"}, None),
        ({"de"}, {"de", "en"}, "All train samples are in 'de', so every share is 1"),
    ],
)
def test_languages_that_do_not_match_are_told(train: set[str], probes: set[str], said: str | None) -> None:
    message = mismatch(train, probes)
    assert message is None if said is None else said in str(message)


def test_a_fit_warns_where_no_language_matches(tmp_path: Path) -> None:
    callback = TracInCallback(tmp_path / "run", top_k=5, languages=["pidgin", "creole", "argot"] * 10, when="never")
    with pytest.warns(UserWarning, match="No probe language .* every one is zero-shot"):
        trainer(tmp_path, [callback], max_epochs=1).fit(Classifier(), *loaders())
