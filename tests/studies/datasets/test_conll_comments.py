from pathlib import Path

import pytest

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets import Columns, load_files
from lightning_tracin.studies.datasets.conll_comments import sentences_of
from tests.support.rows import labels, write

PATH = Path("a.conll")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_end_of_line_and_any_number_of_blank_lines(end: str) -> None:
    lines = ["", "# text = a = b", "#intent: x/y", "1\ta\tO", "", " \t", "# text = c", "2\tc\tO"]
    assert sentences_of(end.join(lines), PATH) == {2: {"text": "a = b", "intent": "x/y"}, 7: {"text": "c"}}


def test_other_comments_and_words_are_no_cells() -> None:
    assert sentences_of("# newdoc\n# text = a\n# = b\n1\t# text = c\n", PATH) == {1: {"text": "a"}}


def test_a_sentence_without_comments_is_named_by_its_line() -> None:
    with pytest.raises(TracInError, match=r"a\.conll has a sentence without comments, `# name = value`, in line 4: add"):
        sentences_of("# text = a\n1\ta\n\n1\tb\n", PATH)


def test_sentences_without_a_blank_line_between_them_are_named() -> None:
    with pytest.raises(TracInError, match=r"a\.conll has 'text' twice in one sentence \(the second in line 3\): remove one"):
        sentences_of("# text = a\n1\ta\n# text = b\n1\tb\n", PATH)


def test_files_of_languages_are_parallel_by_their_row(tmp_path: Path) -> None:
    for language, words in (("de", ("Regnet es?", "Halt")), ("en", ("Does it rain?", "stop"))):
        blocks = [f"# text = {text}\n# intent = {intent}\n" for text, intent in zip(words, ("weather", "alarm"), strict=True)]
        write(tmp_path / f"{language}.conll", "\n".join(blocks))
    dataset = load_files(tmp_path / "{language}.conll", columns=Columns(label="intent")).dataset
    assert dataset["text"][:] == ["Regnet es?", "Halt", "Does it rain?", "stop"]
    assert labels(dataset) == ["weather", "alarm"] * 2
    assert dataset["item"][:] == ["0", "1"] * 2


def test_a_comment_that_no_sentence_has_is_named(tmp_path: Path) -> None:
    write(tmp_path / "de.conll", "# text = a\n# intent = x\n")
    with pytest.raises(TracInError, match=r"de\.conll has no column 'label' for the label; its columns are \['text', 'intent'\]"):
        load_files(tmp_path / "{language}.conll")


def test_a_sentence_is_no_header(tmp_path: Path) -> None:
    """Even where its label is that of no other, and looks like the name of a column."""
    rows = [("text", "label"), *((f"word {i}", "x") for i in range(12))]
    write(tmp_path / "de.conll", "\n".join(f"# text = {text}\n# label = {label}\n" for text, label in rows[1:]))
    assert len(load_files(tmp_path / "{language}.conll", header=["text", "label"]).dataset) == 12
