from pathlib import Path

import pytest

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets.table_files import read_table
from tests.support.rows import write, write_jsonl


def cells(path: Path, header: list[str] | None = None) -> list[dict[str, str]]:
    return read_table(path, header).to_dict("records")


def test_quotes_in_tsv_are_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"Yes\t1\nno "more"\t0\n5" disk\t1\n')
    assert [row["text"] for row in cells(path)] == ['"Yes', 'no "more"', '5" disk']


def test_quotes_in_csv_protect_commas_newlines_and_quotes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\n"one, two",a\n"first\nsecond",b\n"say ""hi""",c\n')
    assert [row["text"] for row in cells(path)] == ["one, two", "first\nsecond", 'say "hi"']


@pytest.mark.parametrize("text", ["NA", "null", "nan", "007", "1.50", "True", ""])
def test_nothing_is_guessed(tmp_path: Path, text: str) -> None:
    assert cells(write(tmp_path / "a.csv", f"text,label\n{text},01\n")) == [{"text": text, "label": "01"}]


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    assert cells(write(tmp_path / "a.csv", "text,label\nx,1\n", "utf-8-sig")) == [{"text": "x", "label": "1"}]


def test_columns_can_be_named_where_there_is_no_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "x\t1\ny\t0\n")
    assert cells(path, ["text", "label"]) == [{"text": "x", "label": "1"}, {"text": "y", "label": "0"}]


def test_json_lines(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "ä\nb", "label": 2}, {"label": None, "text": "c", "more": [1]}])
    assert [(row["text"], row["label"]) for row in cells(path)] == [("ä\nb", "2"), ("c", "")]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TracInError, match=r"There is no file .*nowhere\.csv: correct the path"):
        read_table(tmp_path / "nowhere.csv")


def test_another_kind_of_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TracInError, match=r"a\.xlsx ends in '\.xlsx': only \.csv, \.tsv and \.jsonl files can be read"):
        read_table(write(tmp_path / "a.xlsx", ""))


@pytest.mark.parametrize("row", ["x", "x\t1\t2", ""])
def test_a_row_of_another_length_is_named(tmp_path: Path, row: str) -> None:
    path = write(tmp_path / "a.tsv", f"text\tlabel\na\t1\n{row}\nb\t1\n")
    with pytest.raises(TracInError, match=r"a\.tsv has \d columns in data row 2, but the header \['text', 'label'\] has 2"):
        read_table(path)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_an_empty_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(TracInError, match=rf"{name} is empty: correct the path or the file"):
        read_table(write(tmp_path / name, ""))


@pytest.mark.parametrize(
    ("name", "content", "encoding"),
    [("a.csv", "text\nä\n", "latin-1"), ("a.jsonl", "{oops\n", "utf-8"), ("a.csv", 'text\n"open\n', "utf-8")],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: str, encoding: str) -> None:
    with pytest.raises(TracInError, match=rf"{name} cannot be read as UTF-8 {Path(name).suffix}: .*; correct the file"):
        read_table(write(tmp_path / name, content, encoding))


def test_json_that_is_no_object_is_named(tmp_path: Path) -> None:
    with pytest.raises(TracInError, match=r"a\.jsonl has something other than an object in line 2: correct the file"):
        read_table(write(tmp_path / "a.jsonl", '{"text": "x"}\n[1]\n'))


def test_two_columns_of_one_name_are_named(tmp_path: Path) -> None:
    with pytest.raises(TracInError, match=r"a\.csv has more than one column 'text': give them different names in the file"):
        read_table(write(tmp_path / "a.csv", "text,text\nx,y\n"))
