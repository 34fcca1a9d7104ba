"""The page of errors is what its script makes of the source, and has what the source raises."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.scripts.errors_page import PAGE, Message, messages, page, reasons
from lightning_tracin import TracInCallback, TracInError, TracInRun

EXAMPLE = '''
class SpecialError(TracInError):
    """Derived from the error of the package."""

def found(path, count, way):
    if way == 1:
        raise TracInError(f"{path.name} holds {len(count)} things; delete "
                          f"{'one' if count else 'none'} (or: keep them), as in `a; b`.")
    if way == 2:
        raise SpecialError("Nothing is there." if count else "Too much is there: take less.")
    if way == 3:
        raise TracInError(sentence(path))
    raise ValueError("No error of the package; not shown.")

def sentence(path):
    return f"The file {path} is empty."
'''


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "errors.py").write_text("class TracInError(RuntimeError): ...")
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "files.py").write_text(EXAMPLE)
    return tmp_path


def test_every_way_of_raising_is_read(package: Path) -> None:
    assert messages(package) == [
        Message("storage", "storage/files", text)
        for text in (
            "Nothing is there.",
            "The file {path} is empty.",
            "Too much is there: take less.",
            "{name} holds {count} things; delete {…} (or: keep them), as in `a; b`.",
        )
    ]


def test_a_message_is_parted_into_what_is_wrong_and_what_to_do(package: Path) -> None:
    assert [one.halves for one in messages(package)] == [
        ("Nothing is there.", "In the message."),
        ("The file {path} is empty.", "In the message."),
        ("Too much is there", "Take less."),
        ("{name} holds {count} things", "Delete {…} (or: keep them), as in `a; b`."),
    ]


def test_the_committed_page_is_that_of_the_source() -> None:
    assert PAGE.read_text() == page([*messages(), *reasons()]), "run `python -m docs.scripts.errors_page`"


@pytest.mark.parametrize(
    "raising",
    [lambda folder: TracInRun.open(folder / "none"), lambda _: TracInCallback(every_n_epochs=1, every_n_train_steps=2)],
    ids=["missing run", "two options"],
)
def test_what_is_raised_can_be_found_on_the_page(raising: object, tmp_path: Path) -> None:
    """By three of its words, as the page says."""
    with pytest.raises(TracInError) as raised:
        raising(tmp_path)
    words = str(raised.value).replace(str(tmp_path), "").split()
    triples = {" ".join(words[at : at + 3]) for at in range(len(words) - 2)}
    assert any(triple in PAGE.read_text() for triple in triples)
