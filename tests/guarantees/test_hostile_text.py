"""Text of data sets is shown, never obeyed: not by a terminal, not by a browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from lightning_tracin import TracInCallback, TracInError, TracInRun
from lightning_tracin.config import View
from lightning_tracin.errors import one_line, printable
from lightning_tracin.reporting.html import write_results
from lightning_tracin.reporting.results import analyse
from lightning_tracin.storage.sample_table import SampleTable
from tests.support.fits import Classifier, Samples, loaders, trainer
from tests.support.hand_made import run_directory
from tests.support.models import padded
from tests.support.pages import Elements

SCRIPT = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"


def test_text_language_label_and_item_are_escaped_in_the_page(tmp_path: Path) -> None:
    odd = SampleTable(
        (f"l{SCRIPT}", "de", "de", "en"), (SCRIPT, "1", "2", "1"), (f"t{SCRIPT}", "a", "b", "c"), (f"k{SCRIPT}",) * 4
    )
    path = run_directory(tmp_path / "run", odd, odd).path
    write_results(tmp_path / "results", analyse(TracInRun.open(path), View(top_k=2)))
    page = Elements((tmp_path / "results" / "report.html").read_text(encoding="utf-8"))
    assert page.foreign_scripts == []
    assert "onerror" not in page.attributes
    assert page.names.count("img") == 3
    assert {f"{kind}{SCRIPT}" in page.text for kind in "ltk"} == {True}


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("red \x1b[31mtext\x1b[0m", "red [31mtext[0m"),
        ("title \x1b]0;owned\x07 bell", "title ]0;owned bell"),
        ("over\rwritten, back\x08space, \x7fdelete", "overwritten, backspace, delete"),
        ("C1 \x9b31m and \x85", "C1 31m and "),
        ("two\nlines,\ta tabulator, 한국어, \u00a0\u00ad, 🙂", "two\nlines,\ta tabulator, 한국어, \u00a0\u00ad, 🙂"),
    ],
)
def test_control_characters_are_left_out(text: str, want: str) -> None:
    assert printable(text) == want
    assert str(TracInError(text)) == want


def test_the_scripts_of_the_world_are_kept() -> None:
    for text in ("Привет, мир", "你好", "שלום", "नमस्ते", "👩\u200d🔬", "می\u200cخواهم"):
        assert printable(text) == one_line(text) == text
    assert printable("half \ud800 a letter, \u202egnp\u202c") == "half  a letter, gnp"
    assert one_line("two\nlines,\ta tabulator\r") == "two lines, a tabulator "


def test_languages_are_printed_without_control_characters(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    _, probes = loaders()
    odd = Samples(30, 1, languages=("de\x1b[31m", "en\x9b\x07", "ru\r"))
    train = DataLoader(odd, batch_size=7, collate_fn=padded)
    trainer(tmp_path, [TracInCallback(tmp_path / "run", top_k=5, dry_run=True)], max_epochs=1).fit(Classifier(), train, probes)
    said = caplog.text + "".join(capfd.readouterr())
    assert "(de[31m 10, en 10, ru 10)" in said
    assert not set(said) & {"\x1b", "\x9b", "\x07", "\r"}
