import csv
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    with pytest.raises(TracInError, match=r"a\.xlsx ends in '\.xlsx': only \.csv, \.tsv, \.jsonl and \.conll files can be read"):
        read_table(write(tmp_path / "a.xlsx", ""))


@pytest.mark.parametrize("row", ["x", "x\t1\t2", ""])
def test_a_row_of_another_length_is_named(tmp_path: Path, row: str) -> None:
    path = write(tmp_path / "a.tsv", f"text\tlabel\na\t1\n{row}\nb\t1\n")
    with pytest.raises(TracInError, match=r"a\.tsv has \d columns in data row 2, but the header \['text', 'label'\] has 2"):
        read_table(path)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.conll"])
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


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("after", ["", "\n", "\n\n \n"])
def test_any_end_of_line_and_blank_lines_at_the_end(tmp_path: Path, end: str, after: str) -> None:
    for name, comma in (("a.csv", ","), ("a.tsv", "\t")):
        path = write(tmp_path / name, f"text{comma}label\na{comma}1\nb\u2028c{comma}2{after}".replace("\n", end))
        assert cells(path) == [{"text": "a", "label": "1"}, {"text": "b\u2028c", "label": "2"}]


def test_a_row_of_empty_cells_is_a_row(tmp_path: Path) -> None:
    assert cells(write(tmp_path / "a.csv", "text,label\n,\nb,1\n")) == [{"text": "", "label": ""}, {"text": "b", "label": "1"}]


def test_a_blank_line_between_rows_names_its_remedy(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,1\n\nb,1\n")
    with pytest.raises(TracInError, match=r"\(line 3 of the file\): delete that line .*, or name the column .* as item"):
        read_table(path)
    assert read_table(path, skip_blank=True)["text"].tolist() == ["a", "b"]


def test_rows_know_the_line_in_which_they_begin(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\n"one\ntwo",1\nb,2\n')
    assert read_table(path).index.tolist() == [2, 4]
    with pytest.raises(TracInError, match=r"has 1 columns in data row 2, .* \(line 4 of the file\): correct that line"):
        read_table(write(path, 'text,label\n"one\ntwo",1\nb\n'))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_very_long_cells(tmp_path: Path, name: str) -> None:
    text = "word " * 200_000
    content = {"a.csv": f"text,label\n{text},1\n", "a.tsv": f"text\tlabel\n{text}\t1\n", "a.jsonl": f'{{"text": "{text}"}}'}
    assert cells(write(tmp_path / name, content[name]))[0]["text"] == text


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.conll"])
def test_bytes_that_are_no_text_are_named_by_their_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(TracInError, match=r"has a NUL character in line 2: remove it, or save the file as UTF-8 if it is UTF-16"):
        read_table(write(tmp_path / name, "text\na\0b\n"))
    with pytest.raises(TracInError, match=r"line 2 has the byte 0xe4 .*; correct the file, or save it as UTF-8"):
        read_table(write(tmp_path / name, "text\nä\n", "latin-1"))


def test_a_quote_that_is_never_closed_is_named_by_the_row_it_begins(tmp_path: Path) -> None:
    with pytest.raises(TracInError, match=r"in the row that begins in line 3; correct the file: a cell with a quote in it"):
        read_table(write(tmp_path / "a.csv", 'text,label\na,1\n"b,1\nc,1\n'))


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@given(st.lists(st.tuples(ANY_TEXT, ANY_TEXT), min_size=1))
def test_what_a_library_writes_is_read_again(rows: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([("text", "label"), *rows])
        assert read_table(path).values.tolist() == [list(row) for row in rows]
        path = write_jsonl(Path(folder) / "a.jsonl", [{"text": text, "label": label} for text, label in rows])
        assert read_table(path).values.tolist() == [list(row) for row in rows]


@given(st.binary())
def test_any_bytes_are_a_table_or_an_error_in_words(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a.csv", "a.tsv", "a.jsonl", "a.conll"):
            path = Path(folder) / name
            path.write_bytes(content)
            try:
                said = str(read_table(path, roles={"text": ("text",)}).index.tolist())
            except TracInError as error:
                said = str(error).split(str(path))[1]
            assert said
