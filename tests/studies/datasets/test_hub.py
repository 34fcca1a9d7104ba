import dataclasses
from pathlib import Path

import datasets
import huggingface_hub.constants
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets import Columns, hub, load_hub
from tests.support.rows import dropped, items, labels, texts, write, write_jsonl


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def data_set(folder: Path, **configurations: Dataset) -> str:
    """A folder laid out as on the hub: a configuration each, whose one split is `test`."""
    lines = ["---", "configs:"]
    for name, rows in configurations.items():
        (folder / name).mkdir(parents=True)
        rows.to_parquet(folder / name / "test.parquet")
        lines += [f"- config_name: {name}", "  data_files:", "  - split: test", f"    path: {name}/test.parquet"]
    write(folder / "README.md", "\n".join([*lines, "---", ""]))
    return str(folder)


def nli(*rows: tuple[str, str, int]) -> Dataset:
    features = Features(
        premise=Value("string"),
        hypothesis=Value("string"),
        label=ClassLabel(names=["entailment", "neutral", "contradiction"]),
    )
    columns = dict(zip(("premise", "hypothesis", "label"), map(list, zip(*rows, strict=True)), strict=True))
    return Dataset.from_dict(columns, features=features)


@pytest.fixture
def xnli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A miniature of XNLI's layout in place of the one on the hub."""
    path = data_set(
        tmp_path / "xnli",
        en=nli(("It rains.", "It is wet.", 0), ("A dog.", "A cat.", 2), ("He ate.", "He ate fish.", 1)),
        de=nli(("Es regnet.", "Es ist nass.", 0), ("Ein Hund.", "Eine Katze.", 2), ("Er aß.", "Er aß Fisch.", 1)),
    )
    monkeypatch.setitem(hub.RECIPES, "xnli", dataclasses.replace(hub.RECIPES["xnli"], path=path))  # type: ignore[arg-type]


@pytest.mark.usefixtures("xnli")
def test_xnli_labels_are_merged_as_in_the_study() -> None:
    dataset = load_hub("xnli", ["en", "de"], split="test").dataset
    assert labels(dataset) == ["entailment", "not-entailment", "not-entailment"] * 2


@pytest.mark.usefixtures("xnli")
def test_xnli_labels_can_stay_three() -> None:
    dataset = load_hub("xnli", ["en"], split="test", merge_labels={}).dataset
    assert labels(dataset) == ["entailment", "contradiction", "neutral"]


@pytest.mark.usefixtures("xnli")
def test_xnli_translations_share_their_row_number() -> None:
    dataset = load_hub("xnli", ["de", "en"], split="test").dataset
    pairs = {(row["language"], row["item"]): (row["text"], row["text_pair"]) for row in dataset}
    assert pairs["de", "1"] == ("Ein Hund.", "Eine Katze.")
    assert pairs["en", "1"] == ("A dog.", "A cat.")


def test_pawsx_rows_are_joined_by_id_and_placeholders_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = Features(
        id=Value("int32"), sentence1=Value("string"), sentence2=Value("string"), label=ClassLabel(names=["0", "1"])
    )
    en = {"id": [1, 2, 3, 4], "sentence1": ["a", "b", "c", "d"], "sentence2": ["A", "B", "C", "D"], "label": [0, 1, 1, -1]}
    ko = {"id": [3, 1, 2, 4], "sentence1": ["다", "가", "NS", "라"], "sentence2": ["C", "A", "B", "D"], "label": [1, 0, 1, 0]}
    path = data_set(tmp_path / "paws-x", en=Dataset.from_dict(en, features=features), ko=Dataset.from_dict(ko, features=features))
    recipe = dataclasses.replace(hub.RECIPES["paws-x"], path=path)
    monkeypatch.setitem(hub.RECIPES, "paws-x", recipe)  # type: ignore[arg-type]
    corpus = load_hub("paws-x", ["en", "ko"], split="test")
    assert dict(zip(items(corpus.dataset, "en"), texts(corpus.dataset, "en"), strict=True)) == {"1": "a", "3": "c"}
    assert dict(zip(items(corpus.dataset, "ko"), texts(corpus.dataset, "ko"), strict=True)) == {"1": "가", "3": "다"}
    assert dropped(corpus) == {
        ("ko", "with a placeholder for a text"): 1,
        ("en", "without a label"): 1,
        ("en", "missing in another language"): 1,
        ("ko", "missing in another language"): 1,
    }


def test_a_slice_of_a_split(tmp_path: Path) -> None:
    path = data_set(tmp_path / "x", en=Dataset.from_dict({"text": ["a", "b", "c"], "label": ["x", "y", "x"]}))
    assert load_hub(path, ["en"], split="test[:2]").dataset["text"][:] == ["a", "b"]


def test_a_configuration_name_with_the_language_in_it(tmp_path: Path) -> None:
    path = data_set(tmp_path / "x", task_en=Dataset.from_dict({"text": ["a"], "label": ["x"]}))
    assert texts(load_hub(path, ["en"], split="test", config="task_{language}").dataset, "en") == ["a"]


def test_a_language_column(tmp_path: Path) -> None:
    rows = [
        {"lang": "en", "key": "k1", "review": "good", "stars": 5},
        {"lang": "de", "key": "k2", "review": "mies", "stars": 1},
        {"lang": "fr", "key": "k3", "review": "bof", "stars": 3},
    ]
    write_jsonl(tmp_path / "reviews" / "train.jsonl", rows)
    columns = Columns(text="review", label="stars", language="lang", item="key")
    dataset = load_hub(str(tmp_path / "reviews"), ["de", "en"], split="train", columns=columns, parallel=False).dataset
    assert list(zip(dataset["language"], dataset["item"], dataset["text"], labels(dataset), strict=True)) == [
        ("de", "k2", "mies", "1"),
        ("en", "k1", "good", "5"),
    ]


def test_label_names_of_other_data_fix_the_numbers(tmp_path: Path) -> None:
    path = data_set(tmp_path / "x", en=Dataset.from_dict({"text": ["a"], "label": ["y"]}))
    assert load_hub(path, ["en"], split="test", label_names=["x", "y"]).dataset["label"][:] == [1]


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("name", "path"), [("xnli", "facebook/xnli"), ("paws-x", "google-research-datasets/paws-x")])
def test_without_a_network_the_message_says_what_to_do(name: str, path: str) -> None:
    with pytest.raises(TracInError) as caught:
        load_hub(name, ["en"], split="test")
    message = str(caught.value)
    assert message.startswith(f"The data set '{path}', configuration 'en', split 'test' cannot be fetched from the Hugging")
    for remedy in (
        "check the network connection",
        "copy the folder and give its path",
        "local CSV, TSV or JSON-lines files",
        "CLDR",
    ):
        assert remedy in message


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    path = data_set(tmp_path / "x", en=Dataset.from_dict({"text": ["a"], "label": ["x"]}))
    with pytest.raises(TracInError, match=r"configuration 'tlh', split 'test' cannot be loaded: .*'tlh'.*\['en'\]"):
        load_hub(path, ["tlh"], split="test")


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    path = data_set(tmp_path / "x", en=Dataset.from_dict({"text": ["a"], "label": ["x"]}))
    with pytest.raises(TracInError, match=r'split \'train\' cannot be loaded: Unknown split "train"\. Should be one of'):
        load_hub(path, ["en"], split="train")


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = data_set(tmp_path / "x", en=Dataset.from_dict({"sentence": ["a"], "label": ["x"]}))
    with pytest.raises(TracInError, match=r"x has no column 'text' for the text; its columns are \['sentence', 'label'\]"):
        load_hub(path, ["en"], split="test")


def test_a_missing_language_is_named(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "x" / "train.jsonl", [{"lang": "en", "id": 1, "text": "a", "label": "x"}])
    with pytest.raises(TracInError, match=r"has no language 'de'; it has \['en'\]: name only these"):
        load_hub(str(tmp_path / "x"), ["de"], split="train", columns=Columns(language="lang", item="id"))


def test_translations_in_one_table_need_an_item_column(tmp_path: Path) -> None:
    with pytest.raises(TracInError, match="row numbers cannot tell which samples are translations: name a column as item"):
        load_hub(str(tmp_path), ["en"], split="train", columns=Columns(language="lang"))


def test_no_language_at_all_is_an_error() -> None:
    with pytest.raises(TracInError, match="No language of facebook/xnli is named: name at least one"):
        load_hub("xnli", [], split="test")


def test_a_data_set_that_is_a_script_is_named(tmp_path: Path) -> None:
    write(tmp_path / "x" / "x.py", "import datasets\n")
    with pytest.raises(TracInError, match=r"split 'train' cannot be loaded: Dataset scripts are no longer supported"):
        load_hub(str(tmp_path / "x"), ["en"], split="train")


def test_a_missing_number_makes_no_fractions_of_the_others(tmp_path: Path) -> None:
    en = Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, None, 1], "id": [1, 2, 3]})
    de = Dataset.from_dict({"text": ["A", "B", "C"], "label": [0, 1, 1], "id": [1, 2, 3]})
    path = data_set(tmp_path / "x", en=en, de=de)
    corpus = load_hub(path, ["en", "de"], split="test", columns=Columns(item="id"))
    assert corpus.dataset.features["label"].names == ["0", "1"]
    assert corpus.dataset["text"][:] == ["a", "c", "A", "C"]
    assert dropped(corpus) == {("en", "without a label"): 1, ("de", "missing in another language"): 1}


def test_a_slice_without_rows_is_named(tmp_path: Path) -> None:
    path = data_set(tmp_path / "x", en=Dataset.from_dict({"text": ["a"], "label": ["x"]}))
    with pytest.raises(TracInError, match=r"split 'test\[:0\]' cannot be loaded: .*corresponds to no data"):
        load_hub(path, ["en"], split="test[:0]")


def test_a_row_without_an_item_is_counted(tmp_path: Path) -> None:
    path = data_set(tmp_path / "x", en=Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"], "id": [None, "2"]}))
    with pytest.raises(TracInError, match=r"x \(en\) has 1 rows without a value in column 'id', the item: fill it in"):
        load_hub(path, ["en"], split="test", columns=Columns(item="id"))


def test_differing_labels_of_configurations(tmp_path: Path) -> None:
    en = Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"]})
    de = Dataset.from_dict({"text": ["A", "B"], "label": ["x", "x"]})
    path = data_set(tmp_path / "x", en=en, de=de)
    with pytest.raises(TracInError, match=r"item '1': 'y' in language 'en', 'x' in language 'de'; correct the labels"):
        load_hub(path, ["en", "de"], split="test")
    assert load_hub(path, ["en", "de"], split="test", differing_labels="drop").dataset["text"][:] == ["a", "A"]


@pytest.mark.usefixtures("xnli")
def test_a_copy_of_a_well_known_data_set_is_read_like_it(tmp_path: Path) -> None:
    dataset = load_hub(str(tmp_path / "xnli"), ["en"], split="test").dataset
    assert labels(dataset) == ["entailment", "not-entailment", "not-entailment"]
    assert dataset["text_pair"][:] == ["It is wet.", "A cat.", "He ate fish."]


def test_the_hubs_name_of_a_well_known_data_set_is_read_like_the_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = data_set(tmp_path / "long-name", en=nli(("A dog.", "A cat.", 2), ("It rains.", "It is wet.", 0)))
    monkeypatch.setitem(hub.RECIPES, "xnli", dataclasses.replace(hub.RECIPES["xnli"], path=path))  # type: ignore[arg-type]
    assert labels(load_hub(path, ["en"], split="test").dataset) == ["not-entailment", "entailment"]


def test_typed_values_of_parquet_files(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "text": pd.Categorical(["nan", "b", "c", "d"]),
            "label": [1.0, 2.0, float("nan"), 2.0],
            "id": [0.0, 1.0, 2.0, 3.0],
            "lang": pd.Categorical(["nan", "NA", "NA", "null"]),
            "score": [float("inf")] * 4,
        }
    )
    path = data_set(tmp_path / "typed", all=Dataset.from_pandas(frame))
    columns = Columns(item="id", language="lang")
    corpus = load_hub(path, ["nan", "NA", "null"], split="test", columns=columns, config="all", parallel=False)
    rows = zip(corpus.dataset["language"], corpus.dataset["item"], corpus.dataset["text"], labels(corpus.dataset), strict=True)
    assert list(rows) == [("nan", "0", "nan", "1"), ("NA", "1", "b", "2"), ("null", "3", "d", "2")]
    assert dropped(corpus) == {("NA", "without a label"): 1}


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("label", [1.0, float("inf")], r"row 1, column 'label', is inf, an infinite number"),
        ("text", [True, False], r"row 0, column 'text', is true without quotes"),
        ("text", [["a"], ["b"]], r"row 0, column 'text', is \['a'\], of type list"),
    ],
)
def test_a_value_that_means_nothing_is_refused(tmp_path: Path, column: str, values: list[object], reason: str) -> None:
    path = data_set(tmp_path / "typed", en=Dataset.from_dict({"text": ["a", "b"], "label": [1, 2], column: values}))
    with pytest.raises(TracInError, match=reason):
        load_hub(path, ["en"], split="test")


def test_a_column_for_each_language_in_one_configuration(tmp_path: Path) -> None:
    path = data_set(tmp_path / "wide", all=Dataset.from_dict({"de_review": ["a"], "en_review": ["b"], "label": [1]}))
    dataset = load_hub(path, ["en", "de"], split="test", config="all", columns=Columns(text="{language}_review")).dataset
    assert list(zip(dataset["language"], dataset["text"], strict=True)) == [("en", "b"), ("de", "a")]
