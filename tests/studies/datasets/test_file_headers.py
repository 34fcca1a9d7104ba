from collections.abc import Sequence
from pathlib import Path

import pytest

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets import Columns, load_files
from tests.support.rows import labels, write

HEADER = ["text", "label"]
ROWS = "".join(f"row {i}\t{i % 2}\n" for i in range(12))


def files(folder: Path, **contents: str) -> Path:
    for language, content in contents.items():
        write(folder / f"{language}.tsv", content)
    return folder / "{language}.tsv"


@pytest.mark.parametrize(
    "own",
    [
        *("text\tlabel", "Text\tLABEL", " text \tlabel ", "sentence\tlabel", "\ufefftext\tlabel", "sentence1\tgold_label"),
        *("Satz\tEtikett", "premise\tclass", '"text"\t"label"', "#text\tGold Label"),
    ],
)
def test_a_header_of_the_file_beside_a_given_one_is_refused(tmp_path: Path, own: str) -> None:
    pattern = files(tmp_path, de=f"{own}\n{ROWS}", en=f"{own}\n{ROWS}")
    message = r"(The first row of .*de\.tsv|Line 1 of .*de\.tsv) is a header, \[.*\].*leave out header"
    with pytest.raises(TracInError, match=message):
        load_files(pattern, header=HEADER)


def test_a_header_in_one_of_the_files_is_refused(tmp_path: Path) -> None:
    pattern = files(tmp_path, de=ROWS, en=f"Satz\tEtikett\n{ROWS}")
    with pytest.raises(TracInError, match=r"The first row of .*en\.tsv is a header, \['Satz', 'Etikett'\], but header="):
        load_files(pattern, header=HEADER, parallel=False)


def test_a_word_above_labels_that_are_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TracInError, match=r"The first row of .*de\.tsv is a header, \['Satz', 'Etikett'\], but header="):
        load_files(files(tmp_path, de="Satz\tEtikett\na\t0\nb\t1\n"), header=HEADER)


def test_headers_in_few_rows_are_alike_in_all_files(tmp_path: Path) -> None:
    pattern = files(tmp_path, de="Satz\tEtikett\neins\tx\n", en="Satz\tEtikett\none\tx\n")
    with pytest.raises(TracInError, match=r"The first row of .*de\.tsv is a header"):
        load_files(pattern, header=HEADER)


@pytest.mark.parametrize("header", [HEADER, ["a", "b"]])
def test_a_header_of_a_file_with_a_language_column_is_refused(tmp_path: Path, header: list[str]) -> None:
    rows = "".join(f"{i % 2}\trow {i}\t{language}\n" for i in range(6) for language in ("de", "en"))
    path = write(tmp_path / "all.tsv", f"Label\tText\tLang\n{rows}")
    columns = Columns(text=header[0], label=header[1], language="lang")
    with pytest.raises(TracInError, match=r"(first row|Line 1) of .*all\.tsv is a header, \['Label', 'Text', 'Lang'\]"):
        load_files(path, columns=columns, header=[header[1], header[0], "lang"], parallel=False)


@pytest.mark.parametrize("header", [None, HEADER])
def test_a_header_between_rows_is_refused(tmp_path: Path, header: Sequence[str] | None) -> None:
    first = "" if header else "text\tlabel\n"
    pattern = files(tmp_path, de=f"{first}{ROWS}Text\tlabel\n{ROWS}")
    line = 13 if header else 14
    with pytest.raises(TracInError, match=rf"Line {line} of .*de\.tsv is a header, \['Text', 'label'\], and no sample"):
        load_files(pattern, header=header)


@pytest.mark.parametrize(
    ("de", "en"),
    [
        ("text\t0\nb\t1\n", "Text\t0\nc\t1\n"),  # the word is a text, with a label of the data
        ("Berlin\tcity\nParis\tcity\n", "Berlin\tcity\nParis\tcity\n"),  # names are alike in two languages
        ("a\tlabel\nb\tlabel\n", "a\tlabel\nb\tlabel\n"),  # a class called label
        ("a\tx\nb\ty\n", "c\tx\nd\ty\n"),
        ("a\t\n" + ROWS, "b\t\n" + ROWS),  # a first sample without a label
    ],
)
def test_samples_that_look_like_names_are_samples(tmp_path: Path, de: str, en: str) -> None:
    found = load_files(files(tmp_path, de=de, en=en), header=HEADER)
    rows = [line.split("\t") for line in (de + en).splitlines()]
    assert list(zip(found.dataset["text"], labels(found.dataset), strict=True)) == [
        (text, label) for text, label in rows if label
    ]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("ein Satz\t1", r"'1' is a number"),
        ("ein Satz\t-1.5", r"'-1.5' is a number"),
        ("Das ist ein ganz normaler Satz\tgut", "'Das ist ein ganz normaler Satz' is a text"),
        ("Gut.\tja", "'Gut.' is a text"),
        ("wort\tgut", "no other file has any of these names"),
    ],
)
def test_files_without_a_header_are_found(tmp_path: Path, row: str, why: str) -> None:
    pattern = files(tmp_path, de=f"{row}\n{ROWS}", en=f"word\tgood\n{ROWS}")
    with pytest.raises(TracInError, match=rf"de\.tsv has no column 'text' .*looks like a sample \({why}\): give .*as header"):
        load_files(pattern)


def test_one_file_without_a_header_among_others(tmp_path: Path) -> None:
    pattern = files(tmp_path, de=f"text\tlabel\n{ROWS}", en=f"word\tgood\n{ROWS}")
    with pytest.raises(TracInError, match=r"en\.tsv has no column 'text' .*no other file has any of these names.*as header"):
        load_files(pattern)


def test_a_repeated_cell_in_a_first_row_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(TracInError, match=r"more than one column 'ja': .*as header, which is also needed if the first row is a"):
        load_files(files(tmp_path, de=f"ja\tja\n{ROWS}"))


def test_columns_with_other_names_are_no_samples(tmp_path: Path) -> None:
    with pytest.raises(TracInError, match=r"no column 'text' for the text; its columns are \['Satz', 'label'\]: name"):
        load_files(files(tmp_path, de=f"Satz\tlabel\n{ROWS}", en=f"Satz\tlabel\n{ROWS}"))
