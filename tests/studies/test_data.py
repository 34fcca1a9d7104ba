from pathlib import Path

import pytest

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.data import load_split
from lightning_tracin.studies.settings import FitSettings
from tests.studies.datasets.test_hub import data_set, nli
from tests.support.rows import items, write, write_jsonl

SIZES = {"train_per_language": 4, "probes_per_language": 2, "test_per_language": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for language in ("en", "de", "fr"):
        for part in ("train", "dev"):
            rows = "".join(f"{language} {part} {i}\t{i % 2}\n" for i in range(10))
            write(tmp_path / part / f"{language}.tsv", f"sentence\tclass\n{rows}")
    return tmp_path


def file_options(folder: Path, **changes: object) -> FitSettings:
    options = {"data": "train/{language}.tsv", "data_dir": str(folder), "text_column": "sentence", "label_column": "class"}
    return FitSettings(**{**options, **SIZES, **changes})  # type: ignore[arg-type]


def test_the_default_is_cldr_with_zero_shot_languages() -> None:
    split, account = load_split(FitSettings(**SIZES))  # type: ignore[arg-type]
    assert set(split.train["language"]) == {"en", "de", "es", "ru", "ko"}
    assert set(split.probes["language"]) - set(split.train["language"]) == {"nl", "fr", "uk"}
    assert account.startswith("cldr\nen: ")


def test_chosen_languages_replace_the_default_ones() -> None:
    split, _ = load_split(FitSettings(train_languages=["it", "pl"], **SIZES))  # type: ignore[arg-type]
    assert set(split.train["language"]) == set(split.probes["language"]) == {"it", "pl"}


def test_files_are_found_and_divided(folder: Path) -> None:
    split, _ = load_split(file_options(folder, train_languages=["en", "de"], probe_languages=["de", "fr"]))
    assert set(split.train["language"]) == {"en", "de"}
    assert set(split.probes["language"]) == {"de", "fr"}
    assert set(split.probes["item"]).isdisjoint(split.train["item"])


def test_all_languages_that_are_there_are_the_default(folder: Path) -> None:
    split, _ = load_split(file_options(folder))
    assert set(split.train["language"]) == {"en", "de", "fr"}


def test_probes_from_files_of_their_own(folder: Path) -> None:
    split, account = load_split(file_options(folder, probe_data="dev/{language}.tsv", probe_languages=["fr"]))
    assert {text.split()[1] for text in split.train["text"]} == {"train"}
    assert {text.split()[1] for text in [*split.probes["text"], *split.test["text"]]} == {"dev"}
    assert "dev/{language}.tsv (to probe and test on)\nfr: 10 samples" in account


def test_row_numbers_of_unrelated_files_are_different_items(folder: Path) -> None:
    split, _ = load_split(file_options(folder, probe_data="dev/{language}.tsv", train_per_language=10))
    assert len(items(split.train, "en")) == 10  # all rows: none is held for a translation of a probe


def test_one_file_with_a_language_column(tmp_path: Path) -> None:
    rows = [{"lang": language, "id": i, "text": f"{language}{i}", "label": i % 2} for i in range(9) for language in ("en", "de")]
    write_jsonl(tmp_path / "all.jsonl", rows)
    options = FitSettings(data="all.jsonl", data_dir=str(tmp_path), language_column="lang", item_column="id", **SIZES)  # type: ignore[arg-type]
    assert set(load_split(options)[0].train["language"]) == {"en", "de"}


def test_a_folder_is_loaded_as_the_hub_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"lang": language, "id": i, "text": f"{language}{i}", "label": i % 2} for i in range(9) for language in ("en", "de")]
    write_jsonl(tmp_path / "reviews" / "train.jsonl", rows)
    options = {"data": "reviews", "data_dir": str(tmp_path), "language_column": "lang", "item_column": "id"}
    split, _ = load_split(FitSettings(**options, train_languages=["en"], **SIZES))  # type: ignore[arg-type]
    assert set(split.train["text"]) <= {f"en{i}" for i in range(9)}


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("xnli", "'facebook/xnli', configuration 'en', split 'train'"),
        ("paws-x", "'google-research-datasets/paws-x', configuration 'en', split 'train'"),
    ],
)
def test_known_hub_data_without_a_network(name: str, what: str) -> None:
    with pytest.raises(TracInError, match=f"The data set {what} cannot be fetched from the Hugging Face hub"):
        load_split(FitSettings(data=name))


def test_other_hub_data_need_their_languages_named() -> None:
    with pytest.raises(TracInError, match=r"The languages of 'someone/reviews' are not known .*: name them as --train_languages"):
        load_split(FitSettings(data="someone/reviews"))


def test_extra_train_samples(folder: Path) -> None:
    options = file_options(folder, train_languages=["en", "de"], probe_languages=["de", "fr"])
    without, split = load_split(options)[0], load_split(options, extra=2)[0]
    assert (split.train["text"][:], split.probes["text"][:]) == (without.train["text"][:], without.probes["text"][:])
    assert items(split.extra, "en") == items(split.extra, "de")
    assert len(set(items(split.extra, "en"))) == 2


def test_extra_train_samples_beside_probes_of_their_own(folder: Path) -> None:
    split, _ = load_split(file_options(folder, probe_data="dev/{language}.tsv"), extra=6)
    assert {text.split()[1] for text in split.extra["text"]} == {"train"}
    assert len(items(split.extra, "fr")) == 6


def test_fewer_test_samples_than_asked_for_are_counted(folder: Path) -> None:
    said = "languages with fewer than 5 test samples: en 4, de 4, fr 4"
    assert load_split(file_options(folder, train_languages=["en", "de", "fr"], test_per_language=5))[1].endswith(said)
    assert "fewer test samples" not in load_split(file_options(folder, test_per_language=4))[1]


def test_probes_with_the_text_of_a_train_sample_are_counted(folder: Path) -> None:
    said = "probes whose text is also that of a train sample with another item: "
    assert f"{said}none" in load_split(file_options(folder))[1]
    write(folder / "dev" / "de.tsv", "sentence\tclass\n" + "".join(f"de train {i}\t{i % 2}\n" for i in range(10)))
    split, account = load_split(file_options(folder, probe_data="dev/{language}.tsv", train_per_language=10))
    assert f"{said}de 2 of 2" in account
    assert len(items(split.probes, "de")) == 2


def test_an_item_missing_in_a_language_to_probe_is_counted(folder: Path) -> None:
    write(folder / "dev" / "de.tsv", "sentence\tclass\n" + "".join(f"de dev {i}\t{i % 2}\n" for i in range(9)))
    split, account = load_split(file_options(folder, probe_data="dev/{language}.tsv"))
    assert "(to probe and test on)\nde: 9 samples; dropped none\nen: 9 samples; dropped 1 missing in another language" in account
    assert "probe:9" not in [*split.probes["item"], *split.test["item"]]


def test_differing_labels_are_for_the_options_to_say(folder: Path) -> None:
    write(
        folder / "train" / "de.tsv", "sentence\tclass\n" + "".join(f"de train {i}\t{1 if i == 4 else i % 2}\n" for i in range(10))
    )
    with pytest.raises(TracInError, match=r"the first is item '4': '1' in language 'de', '0' in language 'en'"):
        load_split(file_options(folder))
    account = load_split(file_options(folder, differing_labels="drop"))[1]
    assert "de: 9 samples; dropped 1 with labels that differ between translations" in account
    assert load_split(file_options(folder, differing_labels="keep"))[1].count("10 samples; dropped none") == 3


def test_a_copy_of_a_well_known_data_set_is_told_from_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data_set(tmp_path / "xnli", en=nli(*((f"premise {i}", f"hypothesis {i}", i % 3) for i in range(12))))
    monkeypatch.chdir(tmp_path)
    split, _ = load_split(FitSettings(data="./xnli", train_split="test", train_languages=["en"], **SIZES))  # type: ignore[arg-type]
    assert split.train.features["label"].names == ["entailment", "not-entailment"]
    assert all(row["text"].split()[1] == row["text_pair"].split()[1] for row in split.train)


def test_probes_are_not_read_from_where_the_train_samples_are(folder: Path) -> None:
    with pytest.raises(TracInError, match=r"probe_split='test' is for data sets of the hub"):
        load_split(file_options(folder, probe_split="test"))
    with pytest.raises(TracInError, match=r"probe_data is the same as data \('train/\{language\}\.tsv'\)"):
        load_split(file_options(folder, probe_data="train/{language}.tsv"))
    with pytest.raises(TracInError, match=r"probe_split='train' and train_split='train\[:100\]' name the same rows"):
        load_split(FitSettings(data="xnli", train_split="train[:100]", probe_split="train", **SIZES))  # type: ignore[arg-type]


def test_one_file_with_a_column_for_each_language(tmp_path: Path) -> None:
    rows = "".join(f"deutsch {i},english {i},{i % 2}\n" for i in range(9))
    write(tmp_path / "reviews.csv", f"de_review,en_review,stars\n{rows}")
    options = {"data": "reviews.csv", "data_dir": str(tmp_path), "text_column": "{language}_review", "label_column": "stars"}
    split, _ = load_split(FitSettings(**options, **SIZES))  # type: ignore[arg-type]
    assert {(row["language"], row["text"].split()[0]) for row in split.train} == {("de", "deutsch"), ("en", "english")}


def test_a_header_that_is_given_and_there_is_refused(folder: Path) -> None:
    with pytest.raises(TracInError, match=r"de\.tsv is a header, \['sentence', 'class'\].* leave out header"):
        load_split(file_options(folder, header=["sentence", "class"]))
