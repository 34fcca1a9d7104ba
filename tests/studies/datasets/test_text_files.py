import csv
from collections import Counter
from pathlib import Path

import pytest

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets import Columns, load_files
from tests.support.rows import dropped, items, labels, real_data, texts, write

PAWSX = ("de", "en", "es", "fr", "ja", "ko", "zh")
PAWSX_COLUMNS = Columns(text="sentence1", text_pair="sentence2")
PAWSX_HEADER = ["sentence1", "sentence2", "label"]


@pytest.fixture
def two_languages(tmp_path: Path) -> str:
    write(tmp_path / "de" / "train.csv", "id,text,label\n7,eins,a\n8,NS,b\n9,drei,b\n")
    write(tmp_path / "en" / "train.csv", "id,text,label\n9,three,b\n7,one,a\n8,two,b\n")
    return f"{tmp_path}/{{language}}/train.csv"


def test_row_numbers_are_items(two_languages: str) -> None:
    dataset = load_files(two_languages, differing_labels="keep").dataset
    assert items(dataset, "de") == items(dataset, "en") == ["0", "1", "2"]


def test_an_item_column_joins_translations_in_any_order(two_languages: str) -> None:
    dataset = load_files(two_languages, columns=Columns(item="id")).dataset
    pairs = {language: dict(zip(items(dataset, language), texts(dataset, language), strict=True)) for language in ("de", "en")}
    assert pairs["de"]["9"] == "drei"
    assert pairs["en"]["9"] == "three"


def test_an_item_dropped_in_one_language_is_dropped_in_all_and_counted(two_languages: str) -> None:
    corpus = load_files(two_languages, columns=Columns(item="id"), drop_texts=["NS"])
    assert sorted(items(corpus.dataset, "en")) == sorted(items(corpus.dataset, "de")) == ["7", "9"]
    assert dropped(corpus) == {("de", "with a placeholder for a text"): 1, ("en", "missing in another language"): 1}


def test_a_language_that_is_not_asked_for_drops_nothing(two_languages: str) -> None:
    corpus = load_files(two_languages, languages=["en"], columns=Columns(item="id"), drop_texts=["NS"])
    assert texts(corpus.dataset, "en") == ["three", "one", "two"]
    assert corpus.dropped == ()


def test_without_parallel_data_nothing_is_dropped_elsewhere_and_row_numbers_differ(two_languages: str) -> None:
    corpus = load_files(two_languages, drop_texts=["NS"], parallel=False)
    assert texts(corpus.dataset, "en") == ["three", "one", "two"]
    assert set(items(corpus.dataset, "en")).isdisjoint(items(corpus.dataset, "de"))


def test_an_item_prefix_keeps_unrelated_files_apart(two_languages: str) -> None:
    dataset = load_files(two_languages, item_prefix="test:", differing_labels="keep").dataset
    assert items(dataset, "en") == ["test:0", "test:1", "test:2"]


def test_a_language_column(tmp_path: Path) -> None:
    path = write(tmp_path / "all.tsv", "lang\tid\ttext\tlabel\nen\t1\tone\tx\nde\t1\teins\tx\nfr\t1\tun\tx\n")
    columns = Columns(language="lang", item="id")
    dataset = load_files(path, columns=columns, languages=["fr", "en"]).dataset
    assert list(zip(dataset["language"], dataset["text"], strict=True)) == [("fr", "un"), ("en", "one")]


def test_a_language_may_stand_twice_in_a_path(tmp_path: Path) -> None:
    write(tmp_path / "en" / "dev-en.csv", "text,label\none,x\n")
    write(tmp_path / "de" / "dev-de.csv", "text,label\neins,x\n")
    write(tmp_path / "de" / "dev-en.csv", "text,label\nno,x\n")
    dataset = load_files(f"{tmp_path}/{{language}}/dev-{{language}}.csv").dataset
    assert dict(zip(dataset["language"], dataset["text"], strict=True)) == {"de": "eins", "en": "one"}


def test_a_relative_path(two_languages: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(two_languages.split("/{")[0])
    paths = ("{language}/train.csv", "./{language}/train.csv")
    texts_at = {path: load_files(path, columns=Columns(item="id")).dataset["text"][:] for path in (two_languages, *paths)}
    assert len({tuple(texts) for texts in texts_at.values()}) == 1


def test_labels_can_be_merged_and_left_out(tmp_path: Path) -> None:
    write(tmp_path / "en.csv", "text,label\na,1\nb,3\nc,5\nd,4\n")
    merge: dict[str, str | None] = {"1": "negative", "3": None, "4": "positive", "5": "positive"}
    corpus = load_files(f"{tmp_path}/{{language}}.csv", merge_labels=merge)
    assert list(zip(corpus.dataset["text"], labels(corpus.dataset), strict=True)) == [
        ("a", "negative"),
        ("c", "positive"),
        ("d", "positive"),
    ]
    assert dropped(corpus) == {("en", "with a label that is left out"): 1}


def test_pawsx_has_every_row_of_its_files() -> None:
    folder = real_data("pawsx-dev")
    pattern = folder / "dev-{language}.tsv"
    corpus = load_files(pattern, columns=PAWSX_COLUMNS, header=PAWSX_HEADER, differing_labels="keep")
    assert Counter(corpus.dataset["language"]) == dict.fromkeys(PAWSX, 2000)


def test_pawsx_labels_differ_between_translations_because_of_placeholders_only() -> None:
    pattern = real_data("pawsx-dev") / "dev-{language}.tsv"
    labels_of_row = zip(
        *(
            [line.split("\t")[2] for line in Path(str(pattern).format(language=name)).read_text("utf-8").split("\n") if line]
            for name in PAWSX
        ),
        strict=True,
    )
    differing = sum(len(set(row)) > 1 for row in labels_of_row)
    with pytest.raises(
        TracInError, match=rf"has {differing} items whose translations differ .*name placeholder texts as drop_texts"
    ):
        load_files(pattern, columns=PAWSX_COLUMNS, header=PAWSX_HEADER)
    corpus = load_files(pattern, columns=PAWSX_COLUMNS, header=PAWSX_HEADER, drop_texts=["NS"])
    assert {reason for _, reason in dropped(corpus)} == {"with a placeholder for a text", "missing in another language"}


@pytest.mark.parametrize("language", ["fr", "ko"])
def test_pawsx_sentences_are_those_of_the_file_with_their_quotes(language: str) -> None:
    folder = real_data("pawsx-dev")
    corpus = load_files(folder / "dev-{language}.tsv", languages=[language], columns=PAWSX_COLUMNS, header=PAWSX_HEADER)
    lines = (folder / f"dev-{language}.tsv").read_bytes().decode().removesuffix("\n").split("\n")
    assert any('"' in line for line in lines)
    rows = zip(corpus.dataset["text"], corpus.dataset["text_pair"], labels(corpus.dataset), strict=True)
    assert ["\t".join(row) for row in rows] == lines


def test_pawsx_placeholders_are_dropped_and_counted() -> None:
    folder = real_data("pawsx-dev")
    corpus = load_files(folder / "dev-{language}.tsv", columns=PAWSX_COLUMNS, header=PAWSX_HEADER, drop_texts=["NS"])
    in_files = {}
    for language in PAWSX:
        lines = (folder / f"dev-{language}.tsv").read_text("utf-8").split("\n")
        in_files[language] = sum("NS" in line.split("\t")[:2] for line in lines)
    counted = {name: count for (name, why), count in dropped(corpus).items() if why == "with a placeholder for a text"}
    assert counted == {language: count for language, count in in_files.items() if count}
    assert Counter(corpus.dataset["language"]) == dict.fromkeys(PAWSX, 1849)  # as the data's own description says


def test_the_summary_says_what_was_dropped() -> None:
    folder = real_data("pawsx-dev")
    corpus = load_files(
        folder / "dev-{language}.tsv",
        languages=["de", "en"],
        columns=PAWSX_COLUMNS,
        header=PAWSX_HEADER,
        drop_texts=["NS"],
    )
    assert corpus.summary().splitlines() == [
        "de: 1,932 samples; dropped 68 with a placeholder for a text",
        "en: 1,932 samples; dropped 68 missing in another language",
    ]


@pytest.mark.parametrize("language", ["english", "minangkabau"])
def test_nusax_is_what_its_files_say(language: str) -> None:
    folder = real_data("nusax-senti")
    corpus = load_files(folder / "{language}" / "train.csv", columns=Columns(item="id"))
    with (folder / language / "train.csv").open(encoding="utf-8", newline="") as file:
        expected = [(row["id"], row["text"], row["label"]) for row in csv.DictReader(file)]
    dataset = corpus.dataset.filter(lambda row: row["language"] == language)
    assert list(zip(dataset["item"], dataset["text"], labels(dataset), strict=True)) == expected
    assert corpus.dropped == ()


def test_a_missing_language_is_named_with_those_that_are_there(two_languages: str) -> None:
    with pytest.raises(TracInError, match=r"has no language 'fr'; it has \['de', 'en'\]: name only these"):
        load_files(two_languages, languages=["en", "fr"])


def test_a_missing_language_in_a_column_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "all.csv", "lang,id,text,label\nen,1,one,x\n")
    with pytest.raises(TracInError, match=r"all\.csv has no language 'fr'; it has \['en'\]: name only these"):
        load_files(path, columns=Columns(language="lang", item="id"), languages=["fr"])


def test_a_pattern_that_matches_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(TracInError, match=r"No file matches .*/nowhere/\{language\}\.csv: correct the path"):
        load_files(f"{tmp_path}/nowhere/{{language}}.csv")


def test_a_missing_column_is_named_with_those_that_are_there(two_languages: str) -> None:
    with pytest.raises(TracInError, match=r"no column 'sentence' for the text; its columns are \['id', 'text', 'label'\]"):
        load_files(two_languages, columns=Columns(text="sentence"))


def test_one_file_needs_a_language_column(tmp_path: Path) -> None:
    path = write(tmp_path / "all.csv", "text,label\none,x\n")
    with pytest.raises(TracInError, match=r"all\.csv is one file, and no column is named as its language: name one"):
        load_files(path)


def test_one_file_of_translations_needs_an_item_column(tmp_path: Path) -> None:
    path = write(tmp_path / "all.csv", "lang,text,label\nen,one,x\n")
    with pytest.raises(TracInError, match=r"row numbers cannot tell which samples are translations: name a column as item"):
        load_files(path, columns=Columns(language="lang"))


def test_a_language_whose_file_has_no_rows_is_named(two_languages: str, tmp_path: Path) -> None:
    write(tmp_path / "fr" / "train.csv", "id,text,label\n")
    with pytest.raises(TracInError, match=r"fr/train\.csv has no rows: correct the path or the file"):
        load_files(two_languages)


@pytest.mark.parametrize(("row", "column", "role"), [("en,,one,x", "id", "item"), (" ,1,one,x", "lang", "language")])
def test_rows_without_an_item_or_a_language_are_counted(tmp_path: Path, row: str, column: str, role: str) -> None:
    path = write(tmp_path / "all.csv", f"lang,id,text,label\nde,1,eins,x\n{row}\n")
    with pytest.raises(TracInError, match=rf"all\.csv has 1 rows without a value in column '{column}', the {role}: fill it in"):
        load_files(path, columns=Columns(language="lang", item="id"))


def test_an_item_missing_in_a_language_of_one_table_is_dropped_in_all_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "all.csv", "lang,id,text,label\nen,1,one,x\nen,2,two,y\nde,1,eins,x\nfr,1,un,x\nfr,2,deux,y\n")
    corpus = load_files(path, columns=Columns(language="lang", item="id"))
    assert sorted(corpus.dataset["text"]) == ["eins", "one", "un"]
    assert dropped(corpus) == {("en", "missing in another language"): 1, ("fr", "missing in another language"): 1}


def test_differing_labels_of_files(tmp_path: Path) -> None:
    write(tmp_path / "en.csv", "text,label\none,x\ntwo,y\n")
    write(tmp_path / "de.csv", "text,label\neins,x\nzwei,x\n")
    with pytest.raises(TracInError, match=r"the first is item '1': 'x' in language 'de', 'y' in language 'en'"):
        load_files(f"{tmp_path}/{{language}}.csv")
    assert load_files(f"{tmp_path}/{{language}}.csv", differing_labels="drop").dataset["text"][:] == ["eins", "one"]


WIDE = "id,de_review,en_review,product_review_id,label\n1,Hund,dog,7,a\n2,Katze,cat,8,b\n"
WIDE_COLUMNS = Columns(text="{language}_review")


@pytest.mark.parametrize("languages", [None, ["de", "en"]])
def test_one_file_with_a_column_for_each_language(tmp_path: Path, languages: list[str] | None) -> None:
    path = write(tmp_path / "all.csv", WIDE)
    dataset = load_files(path, columns=WIDE_COLUMNS, languages=languages).dataset
    rows = zip(dataset["language"], dataset["item"], dataset["text"], labels(dataset), strict=True)
    assert list(rows) == [("de", "0", "Hund", "a"), ("de", "1", "Katze", "b"), ("en", "0", "dog", "a"), ("en", "1", "cat", "b")]


def test_files_whose_columns_are_named_for_their_language(tmp_path: Path) -> None:
    write(tmp_path / "de.csv", "de_review,de_stars\nHund,1\n")
    write(tmp_path / "en.csv", "en_stars,en_review\n1,dog\n")
    columns = Columns(text="{language}_review", label="{language}_stars")
    assert load_files(tmp_path / "{language}.csv", columns=columns).dataset["text"][:] == ["Hund", "dog"]
    write(tmp_path / "en.csv", "dog,1\n")
    write(tmp_path / "de.csv", "Hund,1\n")
    header = ["{language}_review", "{language}_stars"]
    assert load_files(tmp_path / "{language}.csv", columns=columns, header=header).dataset["text"][:] == ["Hund", "dog"]


def test_columns_of_json_lines_for_each_language(tmp_path: Path) -> None:
    path = write(tmp_path / "all.jsonl", '{"de": "Hund", "en": "dog", "label": 1}\n')
    columns = Columns(text="{language}")
    assert load_files(path, columns=columns, languages=["en", "de"]).dataset["text"][:] == ["dog", "Hund"]
    with pytest.raises(TracInError, match=r"Any column of .*all\.jsonl may be that of a language: name the languages"):
        load_files(path, columns=columns)


def test_a_language_without_a_column_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "all.csv", WIDE)
    with pytest.raises(TracInError, match=r"all\.csv has no column 'fr_review' for the text; its columns are \['id', 'de_rev"):
        load_files(path, columns=WIDE_COLUMNS, languages=["de", "fr"])
    with pytest.raises(TracInError, match=r"all\.csv has no column 'text_\{language\}' for any language; its columns are"):
        load_files(path, columns=Columns(text="text_{language}"))


def test_a_language_column_beside_columns_for_each_language_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "all.csv", WIDE)
    with pytest.raises(TracInError, match=r"'\{language\}_review' is one for each language, but 'id' is named as the column of"):
        load_files(path, columns=Columns(text="{language}_review", language="id"))


@pytest.mark.parametrize("code", ["nan", "NA", "null", "None", "no", "on", "zh-Hans", "pt_BR", "x y", "ж", "07", "[a]", "en.v2"])
def test_any_code_of_a_language_is_a_string(tmp_path: Path, code: str) -> None:
    write(tmp_path / f"{code}.csv", "text,label\nNA,null\nnan,None\n")
    write(tmp_path / "._de.csv", "a file that a system keeps")
    (tmp_path / "fr.csv").mkdir()
    dataset = load_files(tmp_path / "{language}.csv").dataset
    assert (set(dataset["language"]), dataset["text"][:]) == ({code}, ["NA", "nan"])
    assert dataset.features["label"].names == ["None", "null"]
    path = write(tmp_path / "all.csv", f"lang,text,label\n{code},NA,null\nde,x,NA\n")
    dataset = load_files(path, columns=Columns(language="lang"), languages=[code], parallel=False).dataset
    assert dataset["language"][:] == [code]


def test_a_path_may_have_letters_of_a_pattern(tmp_path: Path) -> None:
    write(tmp_path / "data[1]*?" / "de.csv", "text,label\nHund,a\n")
    assert load_files(f"{tmp_path}/data[1]*?/{{language}}.csv").dataset["text"][:] == ["Hund"]


def test_one_language_in_two_spellings(tmp_path: Path) -> None:
    write(tmp_path / "e\u0301.csv", "text,label\na,x\n")
    assert load_files(tmp_path / "{language}.csv", languages=["\u00e9"]).dataset["language"][:] == ["\u00e9"]
    write(tmp_path / "\u00e9.csv", "text,label\na,x\n")
    with pytest.raises(TracInError, match=r"are both of language '\u00e9': join them, or rename one"):
        load_files(tmp_path / "{language}.csv")
    path = write(tmp_path / "all.csv", "lang,text,label\nde,a,x\nde ,b,x \n\ufeffde\u200b,c,x\n")
    dataset = load_files(path, columns=Columns(language="lang"), parallel=False).dataset
    assert (set(dataset["language"]), dataset.features["label"].names) == ({"de"}, ["x"])


@pytest.mark.parametrize("text", ["\u200b", "\ufeff", "\u00a0", " \u3000 ", "\u2060", "\u3164", "\u2800", "\u200e\u00ad"])
@pytest.mark.parametrize("name", ["de.tsv", "de.jsonl"])
def test_a_text_that_cannot_be_seen_is_blank(tmp_path: Path, text: str, name: str) -> None:
    lines = {
        "de.tsv": f"text\tlabel\na\tx\n{text}\tx\n",
        "de.jsonl": f'{{"text": "a", "label": "x"}}\n{{"text": "{text}", "label": "x"}}',
    }
    write(tmp_path / name, lines[name])
    pattern = tmp_path / name.replace("de", "{language}")
    with pytest.raises(TracInError, match=r"has 1 rows without a text; the first is item '1' in language 'de'"):
        load_files(pattern)
    assert load_files(pattern, drop_texts=[""]).dataset["text"][:] == ["a"]


@pytest.mark.parametrize("cell", ["", " ", "\u200b", "\u00a0"])
def test_a_label_that_cannot_be_seen_is_missing(tmp_path: Path, cell: str) -> None:
    write(tmp_path / "de.csv", f"text,label\na,{cell}\nb,x\n")
    assert dropped(load_files(tmp_path / "{language}.csv")) == {("de", "without a label"): 1}


def test_labels_of_two_types_in_two_files(tmp_path: Path) -> None:
    write(tmp_path / "de.csv", "text,label\na,1.0\nb,2.0\n")
    write(tmp_path / "en.csv", "text,label\na,1\nb,2\n")
    with pytest.raises(TracInError, match=r"labels '1.0' \(language 'de'\) and '1' \(language 'en'\), which are one"):
        load_files(tmp_path / "{language}.csv", parallel=False)
    merged = load_files(tmp_path / "{language}.csv", merge_labels={"1.0": "1", "2.0": "2"})
    assert merged.dataset.features["label"].names == ["1", "2"]
