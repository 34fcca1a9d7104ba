"""The evidence is a study; what is the benchmark's own is its page."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import matplotlib.figure
import numpy as np
import pandas as pd

from benchmarks.evidence import evidence_settings
from benchmarks.evidence_page import COMPENSATED, HEADLINE, NEED, SHOWN, STUDYS, evidence_page, read_study, write_study
from lightning_tracin.analysis.agreement import Prediction, agreement_tables
from lightning_tracin.analysis.leave_one_out import Changes
from lightning_tracin.studies.page import write_page
from lightning_tracin.studies.runner import Outcome
from lightning_tracin.studies.section import Section


def constructed(folder: Path, *more: Section) -> Outcome:
    figure = matplotlib.figure.Figure()
    sections = (
        Section("Some text.", ("<found>",), {"texts": pd.DataFrame({"text": ["the data's own"]})}, name="top", title="E1"),
        *more,
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


def left_out(noise: float) -> Section:
    """A study whose headline is the measured table with noise, and whose shares are noise alone."""
    generator = np.random.default_rng(0)
    names = ("a", "b", "c", "d", "e", "f", "g", "h")
    truth = generator.normal(size=(len(names), len(names)))
    changes = Changes(truth + 0.1 * generator.normal(size=(4, *truth.shape)), names, tuple((name,) for name in names), (9,) * 8)
    predictions = [
        Prediction(*HEADLINE, truth[None] + noise * generator.normal(size=truth.shape)),
        Prediction(*COMPENSATED, truth[None] + noise * generator.normal(size=truth.shape)),
        Prediction(*NEED, truth[None] + noise / 2 * generator.normal(size=truth.shape)),
        Prediction(*STUDYS, generator.normal(size=(1, *truth.shape))),
        Prediction("identity", "table", np.eye(8)[None], baseline=True),
        Prediction("representations", "mean", generator.normal(size=(1, *truth.shape)), baseline=True),
    ]
    agreement, differences = (table.assign(left_out="one") for table in agreement_tables(changes, predictions, permutations=9))
    tables = {"agreement": agreement, "differences": differences}
    return Section("n", ("Found here.",), tables, name="left_out", title="Leaving out")


def test_a_studys_page_shows_chosen_figures_and_none_of_the_datas_texts(tmp_path: Path) -> None:
    outcome = constructed(tmp_path)
    write_page(outcome)
    write_study(outcome, tmp_path / "docs" / "evidence.md")
    text = (tmp_path / "docs" / "evidence" / "nusax.md").read_text()
    assert "\n# nusax\n" in text
    assert "## LDS" in text
    assert "| a\\|b | 0.250 |" in text
    assert "the data's own" not in text
    assert "![LDS: lds](nusax/lds-lds.png)" in text
    assert "lds-more" not in text
    assert "- E9: no heads" in text
    assert [path.name for path in (tmp_path / "docs" / "evidence" / "nusax").iterdir()] == ["lds-lds.png"]
    assert "the data&#39;s own" in (tmp_path / "nusax" / "results" / "report.html").read_text()
    assert read_study(tmp_path / "docs" / "evidence.md", "nusax") is None  # it left nothing out


def test_the_first_page_begins_with_what_to_believe_and_is_made_from_files(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "evidence.md"
    good, poor = (constructed(tmp_path, left_out(noise)) for noise in (0.1, 3.0))
    poor = dataclasses.replace(poor, settings=dataclasses.replace(poor.settings, name="poor"))
    for outcome in (good, poor):
        write_study(outcome, page)
    text = evidence_page([study for name in ("nusax", "poor", "absent") if (study := read_study(page, name)) is not None])
    believed = next(line for line in text.splitlines() if "What to believe" in line)
    rows = [outcome.sections[1].tables["agreement"].iloc[0] for outcome in (good, poor)]
    assert f"by {rows[1]['others']:.2f} to {rows[0]['others']:.2f}, and by" in believed
    assert "in 1 of 2 studies as it is (nusax)" in believed
    others = [outcome.sections[1].tables["agreement"].iloc[1]["others"] for outcome in (good, poor)]
    assert f'`damping="steps"`), the sums correlate by {others[1]:.2f} to {others[0]:.2f}, and by' in believed
    assert "**What not.** Shares" in believed
    assert text.index("What to believe") < text.index("## All studies") < text.index("## nusax") < text.index("## poor")
    assert text.count("<details>") == text.count("</details>") == 2
    assert "- Found here." in text
    assert "E1" not in text
    assert "[evidence/poor.md](evidence/poor.md)" in text
    line = good.sections[1].tables["agreement"].iloc[0]
    assert f"{line['others']:.2f} [{line['others_low']:.2f}, {line['others_high']:.2f}]" in text


def test_predicted_need_has_studies_of_its_own(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "evidence.md"
    plain = constructed(tmp_path, left_out(1.0))
    about = dataclasses.replace(plain, settings=dataclasses.replace(plain.settings, name="nusax-need"))
    for outcome in (plain, about):
        write_study(outcome, page)
    text = evidence_page([study for name in ("nusax", "nusax-need") if (study := read_study(page, name)) is not None])
    believed = next(line for line in text.splitlines() if "What to believe" in line)
    assert "of 1 studies" in believed  # the same data are not counted twice
    agreement = about.sections[1].tables["agreement"].set_index("score")
    need, headline = (agreement.loc[name] for name in (NEED[0], HEADLINE[0]))
    assert f"(`run.predicted_need()`) correlates by {need['others']:.2f}, and by {need['contrast']:.2f} once" in believed
    assert f"sums of the same fits have {headline['others']:.2f} and {headline['contrast']:.2f}" in believed
    part = text.partition("## Predicted need")[2].partition("\n## ")[0]
    (line,) = (line for line in part.splitlines() if line.startswith("| nusax-need | others"))
    assert f"| {need['others']:.2f} [{need['others_low']:.2f}" in line
    assert "| nusax | " not in part


def test_data_and_folder_are_of_this_machine(tmp_path: Path) -> None:
    about = evidence_settings("xsid-need", tmp_path / "data", tmp_path / "out")
    assert (about.name, about.fit.data, about.seeds, about.influence_seeds) == (
        "xsid-need",
        "xsid-0.7/{language}.valid.conll",
        4,
        2,
    )
    settings = evidence_settings("sib200", tmp_path / "data", tmp_path / "out")
    assert (settings.fit.data_dir, settings.output) == (str(tmp_path / "data"), str(tmp_path / "out"))
    assert settings.fit.data == "sib200/{language}/train.tsv"
    assert len(SHOWN) == len(set(SHOWN))
