"""The ready options of `examples/configs`, for data in the layout that each of them documents."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from jsonargparse import ArgumentParser

from lightning_tracin.studies.data import load_split
from lightning_tracin.studies.datasets import Split, hub
from lightning_tracin.studies.settings import FitSettings
from tests.studies.datasets.test_hub import data_set
from tests.support.rows import labels, real_data, write, write_jsonl

CONFIGS = Path(__file__).parents[2] / "examples" / "configs"
STUDIES = ("cldr", "local", "marc", "paws_x", "sib200", "xnli", "xsid")
SMALL = {"train_per_language": 4, "probes_per_language": 2, "test_per_language": 2}


def study(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text("utf-8"))
    return loaded


def options(name: str, **changes: object) -> FitSettings:
    """The options of a file's `fit`, read as a command line reads them."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(FitSettings, "fit")
    read = parser.parse_object({"fit": study(name)["fit"]}).fit.as_dict()
    return FitSettings(**{**read, **changes})


def load_small(name: str, folder: Path, **changes: object) -> tuple[Split, str]:
    return load_split(options(name, data_dir=str(folder), **SMALL, **changes))


def csv_text(rows: list[dict[str, object]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def test_every_study_has_its_file() -> None:
    files = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in CONFIGS.glob("*.yaml")}
    assert set(files) == set(STUDIES)


@pytest.mark.parametrize("name", STUDIES)
def test_every_option_of_a_file_is_known_and_a_file_is_named_as_its_study(name: str) -> None:
    asked = study(name)["fit"]
    read = dataclasses.asdict(options(name))
    assert {option: read[option] for option in asked} == asked
    assert study(name)["name"] == name


@pytest.mark.parametrize(
    ("name", "rate", "languages"),
    [
        ("xnli", 2e-5, {"en", "fr", "de", "ru", "es"}),
        ("paws_x", 9e-6, {"en", "fr", "de", "ko", "es"}),
        ("marc", 2e-5, {"zh", "en", "fr", "de", "es"}),
    ],
)
def test_the_set_up_is_the_studys(name: str, rate: float, languages: set[str]) -> None:
    read = options(name)
    assert (read.model, read.epochs, read.learning_rate) == ("xlm-roberta-base", 10, rate)
    assert read.train_per_language * len(read.train_languages or ()) == 10_000
    assert set(read.train_languages or ()) == languages


def test_cldr_needs_nothing_but_the_package() -> None:
    read = options("cldr")
    split, _ = load_split(read, extra=200)  # as many again, for the experiment on imbalance
    assert Counter(split.train["language"]) == Counter(split.extra["language"]) == dict.fromkeys(read.train_languages or (), 200)
    assert Counter(split.probes["language"]) == dict.fromkeys(read.train_languages or (), 30)
    assert Counter(split.test["language"]) == dict.fromkeys(read.train_languages or (), 200)


def reviews(part: str, language: str) -> list[dict[str, object]]:
    """Twenty reviews in one language, four for each number of stars, in the layout of the Multilingual Amazon Reviews Corpus."""
    return [
        {
            "review_id": f"{language}_{part}_{i}",
            "product_id": f"product_{language}_{i % 3}",
            "reviewer_id": f"reviewer_{language}_{i}",
            "stars": i % 5 + 1,
            "review_body": f'{language} {part} {i % 5 + 1} stars, "{i}"\nand more',
            "review_title": f"title {i}",
            "language": language,
            "product_category": "book",
        }
        for i in range(20)
    ]


MARC_LANGUAGES = ("de", "en", "es", "fr", "ja", "zh")


def check_reviews(split: Split, account: str) -> None:
    expected = {"1": "negative", "2": "negative", "4": "positive", "5": "positive"}
    for part in (split.train, split.probes, split.test):
        assert labels(part) == [expected[text.split()[2]] for text in part["text"]]
    assert {text.split()[1] for text in split.train["text"]} == {"train"}
    assert {text.split()[1] for text in [*split.probes["text"], *split.test["text"]]} == {"test"}
    assert Counter(split.train["language"]) == dict.fromkeys(("zh", "en", "fr", "de", "es"), 4)
    assert split.train[0]["item"].startswith(f"{split.train[0]['language']}_train_")
    assert account.count("16 samples; dropped 4 with a label that is left out") == 10  # five languages, to train on and to probe


def test_marc_as_one_table_of_all_languages(tmp_path: Path) -> None:
    for part in ("train", "test"):
        rows = [row for language in MARC_LANGUAGES for row in reviews(part, language)]
        write(tmp_path / "marc" / f"{part}.csv", csv_text([{"": i, **row} for i, row in enumerate(rows)]))
    check_reviews(*load_small("marc", tmp_path))


def test_marc_as_a_file_per_language(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for language in MARC_LANGUAGES:
            write_jsonl(tmp_path / "marc" / f"dataset_{language}_{part}.jsonl", reviews(part, language))
    lines = (CONFIGS / "marc.yaml").read_text("utf-8").splitlines()
    paths = dict(line.strip(" #").split(": ") for line in lines if "{language}" in line)  # as the comment says
    assert set(paths) == {"data", "probe_data"}
    check_reviews(*load_small("marc", tmp_path, language_column=None, **paths))


def test_a_review_without_a_text_is_dropped_and_counted(tmp_path: Path) -> None:
    for part in ("train", "test"):
        rows = [row for language in MARC_LANGUAGES for row in reviews(part, language)]
        write(tmp_path / "marc" / f"{part}.csv", csv_text([{**rows[0], "review_id": "blank", "review_body": " "}, *rows]))
    _, account = load_small("marc", tmp_path)
    assert account.count("de: 16 samples; dropped 1 with a placeholder for a text, 4 with a label that is left out") == 2


def own_rows() -> list[dict[str, object]]:
    return [
        {"text": f"{language} {i}", "label": "yes" if i % 2 else "no", "language": language, "item": f"item{i}", "source": "me"}
        for language in ("en", "sw")
        for i in range(12)
    ]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_a_local_file(tmp_path: Path, suffix: str) -> None:
    if suffix == "jsonl":
        write_jsonl(tmp_path / "data.jsonl", own_rows())
    else:
        text = csv_text(own_rows())
        write(tmp_path / f"data.{suffix}", text if suffix == "csv" else text.replace(",", "\t"))
    split, _ = load_small("local", tmp_path, data=f"data.{suffix}")
    assert Counter(split.train["language"]) == {"en": 4, "sw": 4}
    assert Counter(split.train["item"]) == dict.fromkeys(split.train["item"], 2)
    assert labels(split.train) == ["yes" if int(item.removeprefix("item")) % 2 else "no" for item in split.train["item"]]


def test_the_default_name_of_a_local_file(tmp_path: Path) -> None:
    write(tmp_path / "data.csv", csv_text(own_rows()))
    split, _ = load_small("local", tmp_path)
    assert set(split.probes["language"]) == {"en", "sw"}


def test_a_local_folder_laid_out_as_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_jsonl(tmp_path / "mine" / "train.jsonl", own_rows())
    split, _ = load_small("local", tmp_path, data="mine", train_languages=["en", "sw"])
    assert Counter(split.train["language"]) == {"en": 4, "sw": 4}


def paraphrases(language: str, label_of_5: int) -> datasets.Dataset:
    """Items 1 to 20; the sentence of item 3 is a placeholder, and its label means nothing."""
    features = datasets.Features(
        id=datasets.Value("int32"),
        sentence1=datasets.Value("string"),
        sentence2=datasets.Value("string"),
        label=datasets.ClassLabel(names=["0", "1"]),
    )
    rows = {
        "id": list(range(1, 21)),
        "sentence1": ["NS" if i == 3 else f"{language} {i}" for i in range(1, 21)],
        "sentence2": [f"{language} {i} again" for i in range(1, 21)],
        "label": [label_of_5 if i == 5 else int(i == 3 and language == "ko") for i in range(1, 21)],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def test_paws_x_drops_placeholders_and_labels_that_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    tables = {language: paraphrases(language, int(language == "de")) for language in ("en", "fr", "de", "ko", "es")}
    path = data_set(tmp_path / "somewhere", **tables)
    monkeypatch.setitem(hub.RECIPES, "paws-x", dataclasses.replace(hub.RECIPES["paws-x"], path=path))  # type: ignore[arg-type]
    split, account = load_small("paws_x", tmp_path, train_split="test")
    reasons = "dropped 1 with a placeholder for a text, 1 with labels that differ between translations"
    assert account.count(f"18 samples; {reasons}") == 10  # five languages, to train on and to probe
    assert {"3", "5"}.isdisjoint([*split.train["item"], *split.probes["item"], *split.test["item"]])


SIB_TOPICS = ("entertainment", "geography", "health", "politics", "science/technology", "sports", "travel")


def sib_table(language: str, part: str, count: int) -> str:
    rows = "".join(f"{part}{i}\t{SIB_TOPICS[i % 7]}\t{language} {part} {i}\n" for i in range(count))
    return f"index_id\tcategory\ttext\n{rows}"


@pytest.mark.parametrize("real", [False, True])
def test_sib200_trains_each_language_on_sentences_of_its_own(tmp_path: Path, real: bool) -> None:
    read = options("sib200")
    if not real:
        for language in read.probe_languages or ():
            for part, count in (("train", 320), ("test", 204)):
                write(tmp_path / "sib200" / language / f"{part}.tsv", sib_table(language, part, count))
    split, account = load_split(dataclasses.replace(read, data_dir=str(real_data("sib200").parent if real else tmp_path)))
    assert len(set(split.train["item"])) == len(split.train) == 5 * 60
    assert split.train.features["label"].names == list(SIB_TOPICS)
    assert Counter(split.probes["language"]) == dict.fromkeys(read.probe_languages or (), 40)
    assert Counter(split.test["language"]) == dict.fromkeys(read.probe_languages or (), 150)
    assert "fewer" not in account


INTENTS = ("weather/find", "PlayMusic", "alarm/set_alarm", "alarm/modify_alarm")


def commands(language: str, part: str, count: int) -> str:
    """As published: English without numbers and with a line of slots, the others with the English text."""
    blocks = []
    for i in range(count):
        text, intent = f"{language} {part} {i}", INTENTS[i % 4]
        own = f"# text = {text}\n# intent = {intent}\n"
        comments = f"{own}# slots: 0:2:thing\n" if language == "en" else f"# id = {i + 1}\n# text-en = en {part} {i}\n{own}"
        words = "".join(f"{n}\t{word}\t{intent}\tO\n" for n, word in enumerate(text.split(), start=1))
        blocks.append(comments + words)
    return "\n".join(blocks) + "\n"


def test_xsid_is_read_as_published(tmp_path: Path) -> None:
    read = options("xsid", data_dir=str(tmp_path), test_per_language=20)
    for language in read.probe_languages or ():
        for part, count in (("valid", 400), ("test", 80)):
            write(tmp_path / "xsid-0.7" / f"{language}.{part}.conll", commands(language, part, count))
    split, account = load_split(read)
    assert account.count("300 samples; dropped 100 with a label that is left out") == 6
    assert len({text.split()[2] for text in split.train["text"]}) == len(split.train) == 6 * 49
    for part, name in ((split.train, "valid"), (split.probes, "test"), (split.test, "test")):
        assert [text.split()[:2] for text in part["text"]] == [[language, name] for language in part["language"]]
        assert labels(part) == [INTENTS[int(text.split()[2]) % 4] for text in part["text"]]
    assert set(split.probes["item"]).isdisjoint([*split.train["item"], *split.test["item"]])


def test_xsid_as_it_is() -> None:
    split, account = load_split(options("xsid", data_dir=str(real_data("xsid-0.7").parent)))
    assert Counter(split.train["language"]) == dict.fromkeys(("en", "de", "it", "nl", "tr", "zh"), 49)
    assert len(split.train.features["label"].names) == 13
    assert account.count("297 samples; dropped 3 with a label that is left out") == 6
    assert "fewer" not in account
