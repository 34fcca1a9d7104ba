from pathlib import Path

import pytest

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets import Columns, load_files
from lightning_tracin.studies.datasets.json_lines import cells_of, objects_of
from tests.support.rows import dropped, labels, write


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_any_end_of_line_and_a_mark_of_the_order_of_bytes(tmp_path: Path, end: str, mark: str) -> None:
    lines = ['{"text": "a\u2028b", "label": "x"}', '{"text": "c\u0085d", "label": "y"}', "", " \t", ""]
    write(tmp_path / "de.jsonl", mark + end.join(lines))
    assert load_files(tmp_path / "{language}.jsonl").dataset["text"][:] == ["a\u2028b", "c\u0085d"]


def test_missing_values_of_json(tmp_path: Path) -> None:
    rows = ['{"text": "a", "label": NaN}', '{"text": "b", "label": null}', '{"text": "c"}', '{"text": "d", "label": "nan"}']
    write(tmp_path / "de.jsonl", "\n".join(rows))
    corpus = load_files(tmp_path / "{language}.jsonl")
    assert (corpus.dataset["text"][:], labels(corpus.dataset)) == (["d"], ["nan"])
    assert dropped(corpus) == {("de", "without a label"): 3}


def test_columns_that_are_not_read_may_hold_anything(tmp_path: Path) -> None:
    line = '{"text": "a", "label": 0, "score": Infinity, "more": [{"text": 1}], "x": 1, "x": false, "y\\udfff": "\\ud800"}'
    write(tmp_path / "de.jsonl", line)
    assert load_files(tmp_path / "{language}.jsonl").dataset["text"][:] == ["a"]


@pytest.mark.parametrize("de", ["1", "1.0", '"1"', "1e0", "1.00"])
def test_a_number_is_one_label_and_one_item_in_all_files(tmp_path: Path, de: str) -> None:
    for name, one in (("de", de), ("en", "1")):
        write(
            tmp_path / f"{name}.jsonl", f'{{"id": {one}, "text": "a", "label": {one}}}\n{{"id": "01", "text": "b", "label": 2}}\n'
        )
    dataset = load_files(tmp_path / "{language}.jsonl", columns=Columns(item="id")).dataset
    assert dataset["item"][:] == ["1", "01"] * 2
    assert dataset.features["label"].names == ["1", "2"]


def test_leading_zeros_are_part_of_an_item(tmp_path: Path) -> None:
    ids = ("0", '"00"', '"000"')
    write(tmp_path / "de.jsonl", "".join(f'{{"id": {one}, "text": "a", "label": 1}}\n' for one in ids))
    assert load_files(tmp_path / "{language}.jsonl", columns=Columns(item="id")).dataset["item"][:] == ["0", "00", "000"]
    write(tmp_path / "de.jsonl", "".join(f'{{"id": {one}, "text": "a", "label": 1}}\n' for one in (*ids, "0.0")))
    with pytest.raises(TracInError, match="has item '0' more than once in language 'de'"):
        load_files(tmp_path / "{language}.jsonl", columns=Columns(item="id"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "a", "label": Infinity}', "column 'label', is Infinity, an infinite number"),
        ('{"text": false, "label": 1}', "column 'text', is false without quotes"),
        ('{"text": "a", "label": {"x": 1}}', "column 'label', is .*, of type .*: it should be a string or a number"),
        ('{"text": "a\\ud83d", "label": 1}', "column 'text', is .* half a character"),
        ('{"text": "a", "text": "b", "label": 1}', "has 'text' more than once: remove one of them"),
    ],
)
def test_a_value_is_refused_with_file_line_and_column(tmp_path: Path, line: str, reason: str) -> None:
    write(tmp_path / "de.jsonl", f'{{"text": "x", "label": 1}}\n{line}\n')
    with pytest.raises(TracInError, match=rf"de\.jsonl, line 2,? {reason}"):
        load_files(tmp_path / "{language}.jsonl")


def test_a_blank_line_between_objects_would_shift_row_numbers(tmp_path: Path) -> None:
    write(tmp_path / "de.jsonl", '{"text": "a", "label": 1, "id": 7}\n \n{"text": "b", "label": 1, "id": 8}\n')
    with pytest.raises(TracInError, match=r"de\.jsonl has a blank line before its last object \(line 2 of the file\): "):
        load_files(tmp_path / "{language}.jsonl")
    assert load_files(tmp_path / "{language}.jsonl", columns=Columns(item="id")).dataset["item"][:] == ["7", "8"]


@pytest.mark.parametrize("text", ['[{"text": "a"}, {"text": "b"}]', '[\n{"text": "a"}\n]'])
def test_a_json_array_is_told_from_json_lines(text: str) -> None:
    with pytest.raises(TracInError, match=r"a\.jsonl is one JSON array, but should have one object a line: write it with pandas"):
        objects_of(text, Path("a.jsonl"))


def test_an_error_of_json_is_named_by_its_line() -> None:
    with pytest.raises(TracInError, match=r"Expecting .* in line 3, at character 10 of '\{\"text\": oops\}'; correct the file"):
        objects_of('{"text": "a"}\n{"text": "b"}\n{"text": oops}\n', Path("a.jsonl"))


@pytest.mark.parametrize(
    ("number", "meant"), [("9" * 5000, "9" * 5000), ("1e999", "1E+999"), ("1.50", "1.5"), ("-0.0", "0"), ("1E2", "100")]
)
def test_a_number_of_any_size(number: str, meant: str) -> None:
    (found,) = objects_of(f'{{"id": {number}}}', Path("a.jsonl")).values()
    assert found is not None
    assert cells_of(found, {"id": ("item",)}, "line 1")["id"].replace("9E+4999", "9" * 5000) == meant
    (found,) = objects_of('{"id": -1e99999999999999999999}', Path("a.jsonl")).values()
    assert found is not None
    with pytest.raises(TracInError, match=r"line 1, column 'id', is -inf, an infinite number"):
        cells_of(found, {"id": ("item",)}, "line 1")


def test_deep_nesting_is_named_by_its_line() -> None:
    with pytest.raises(TracInError, match=r"a\.jsonl is nested too deeply in line 1: correct the file"):
        objects_of('{"text": ' + "[" * 100_000, Path("a.jsonl"))


def test_an_object_that_is_not_checked_is_read_as_it_is() -> None:
    (found,) = objects_of('{"a": [1], "b": null}', Path("a.jsonl")).values()
    assert found is not None
    assert cells_of(found, {}, "line 1")["b"] == ""
