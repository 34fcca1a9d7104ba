"""The evidence is a study; what is the benchmark's own is its page."""

from __future__ import annotations

from pathlib import Path

import matplotlib.figure
import pandas as pd

from benchmarks.evidence import SHOWN, evidence_settings, part
from lightning_tracin.studies.page import write_page
from lightning_tracin.studies.runner import Outcome
from lightning_tracin.studies.section import Section


def constructed(folder: Path) -> Outcome:
    figure = matplotlib.figure.Figure()
    sections = (
        Section("Some text.", ("<found>",), {"texts": pd.DataFrame({"text": ["the data's own"]})}, name="top", title="E1"),
        Section(
            "n = 3",
            (),
            {"lds": pd.DataFrame({"score": ["a|b"], "lds": [0.25]})},
            {"lds": figure, "more": figure},
            name="lds",
            title="LDS",
        ),
    )
    settings = evidence_settings("nusax", folder / "data", folder)
    accuracy = pd.DataFrame({"part": ["test"], "accuracy": [0.5]})
    return Outcome(
        settings, folder / "nusax", "english: 3 samples", accuracy, sections, ("E9: no heads",), None, None, "A study."
    )  # type: ignore[arg-type]


def test_its_part_shows_chosen_figures_and_none_of_the_datas_texts(tmp_path: Path) -> None:
    outcome = constructed(tmp_path)
    write_page(outcome)
    text = part(outcome, tmp_path / "docs" / "evidence.md")
    assert text.startswith("## nusax\n")
    assert "### LDS" in text
    assert "| a\\|b | 0.250 |" in text
    assert "the data's own" not in text
    assert "![LDS: lds](evidence/nusax/lds-lds.png)" in text
    assert "lds-more" not in text
    assert "- E9: no heads" in text
    assert [path.name for path in (tmp_path / "docs" / "evidence" / "nusax").iterdir()] == ["lds-lds.png"]
    assert "the data&#39;s own" in (tmp_path / "nusax" / "results" / "report.html").read_text()


def test_data_and_folder_are_of_this_machine(tmp_path: Path) -> None:
    settings = evidence_settings("pawsx", tmp_path / "data", tmp_path / "out")
    assert (settings.fit.data_dir, settings.output) == (str(tmp_path / "data"), str(tmp_path / "out"))
    assert settings.fit.data == "pawsx-dev/dev-{language}.tsv"
    assert len(SHOWN) == len(set(SHOWN))
