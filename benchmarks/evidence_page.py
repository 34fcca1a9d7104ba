"""The pages that the studies of the evidence are shown on.

Each study has a page of its own, and a file with what the first page says of it. The first page (what to believe, one table over
all studies, each study's findings) is made from these files, so that a study can be added without the others' fits.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lightning_tracin.analysis.tables import as_csv
from lightning_tracin.reporting.html import columns_and_rows
from lightning_tracin.storage.files import as_utf8, write_bytes
from lightning_tracin.studies.page import markdown
from lightning_tracin.studies.runner import Outcome
from lightning_tracin.studies.section import Section

#: The score and measure that the tool leads with, those that take off what later steps make up for, and those of the study.
HEADLINE = ("factored Adam dot product x learning rate", "sum")
COMPENSATED = ("compensated Adam dot product", "sum")
STUDYS = ("cosine", "share")
#: What a fit's own snapshots predict of refits, and the end of the names of studies about it, on data of other studies.
NEED = ("predicted need", "nats")
OF_NEED = "-need"

#: Figures that the page shows; the others are in the studies' own folders.
SHOWN = (
    "reliance-shares",
    "reliance-heat_map",
    "reliance-curves",
    "reinforcement-reinforcement",
    "changes-changes",
    "imbalance-imbalance",
    "removal-curve",
    "removal-areas",
    "left_out-left_out",
    "left_out-agreement",
    "lds-lds",
)

_KINDS = ("others", "contrast")
_COLUMNS = ("score", "measure", "baseline", "all", *(f"{kind}{end}" for kind in _KINDS for end in ("", "_low", "_high")))

_START = """# Evidence: does influence name what a model needs?

Written by `python -m benchmarks.evidence --data_dir FOLDER`; do not edit. Each part is a study of `lightning-tracin study` with
the settings in `benchmarks/evidence_settings`: a multilingual encoder is fine-tuned, and fine-tuned again without some of its
train samples, from the same first weights, in the same order and with the same schedule. `--only NAME` runs one study; this
page is then made from it and from what `docs/evidence` holds of the others.
"""

_ABOUT_NEED = """Studies of the same data with four seeds of refits, two attributed fits and 8,192 features. Predicted need is in
nats: how far its level is from what was measured is said below, study by study.
"""

_LIMITS = """
What this cannot say: it is about encoders of moderate size, hundreds of train samples and a few languages each. (Five languages
with 240 documents of their own would need 1,200, and SIB-200 has 701.) How well
influence names what *your* model needs, the same study of your own data says. Where train samples are translations of each
other, leaving one language out shows what the others cannot replace, and not what the model learned from.
"""


@dataclass(frozen=True)
class Found:
    """What the first page says of a study.

    Attributes:
        name: of the study.
        summary: its data and model, in sentences.
        findings: of leaving languages out.
        agreement: a row for each score and measure, with its correlations; see `analysis.agreement`. One language left out.
        above: kind of cells -> whether the headline's correlation is above that of every baseline, by the interval of the
            difference.
    """

    name: str
    summary: str
    findings: tuple[str, ...]
    agreement: pd.DataFrame
    above: dict[str, bool]

    def row(self, which: tuple[str, str]) -> pd.Series[Any] | None:
        """The row of a score and measure; None if the study has none."""
        rows = self.agreement[(self.agreement["score"] == which[0]) & (self.agreement["measure"] == which[1])]
        return None if rows.empty else rows.iloc[0]


def found_in(outcome: Outcome) -> Found | None:
    """What a study found; None if it left no language out."""
    for section in outcome.sections:
        if section.name == "left_out":
            agreement, differences = (_one(section, name) for name in ("agreement", "differences"))
            above = {kind: _above_all(differences, kind) for kind in _KINDS}
            return Found(outcome.settings.name, outcome.summary, tuple(section.findings), agreement[list(_COLUMNS)], above)
    return None


def write_study(outcome: Outcome, page: Path) -> None:
    """Write a study's page, figures and what the first page says of it, into the folder named like the first page.

    Args:
        outcome: of the study, whose own pages are written.
        page: the first page.
    """
    folder, name = page.with_suffix(""), outcome.settings.name
    (folder / name).mkdir(parents=True, exist_ok=True)
    for figure in SHOWN:
        picture = outcome.folder / "results" / f"{figure}.png"
        if picture.exists():
            shutil.copyfile(picture, folder / name / picture.name)
    write_bytes(folder / f"{name}.md", as_utf8(_study_page(outcome)))
    found = found_in(outcome)
    if found is not None:
        said = {"name": found.name, "summary": found.summary, "findings": found.findings, "above": found.above}
        write_bytes(folder / name / "found.json", as_utf8(f"{json.dumps(said, indent=1, ensure_ascii=False)}\n"))
        write_bytes(folder / name / "agreement.csv", as_utf8(as_csv(found.agreement)))


def read_study(page: Path, name: str) -> Found | None:
    """What `write_study` wrote for the first page; None if there is nothing."""
    folder = page.with_suffix("") / name
    if not (folder / "found.json").exists():
        return None
    said = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    agreement = pd.read_csv(folder / "agreement.csv", keep_default_na=False, na_values=[""])
    return Found(said["name"], said["summary"], tuple(said["findings"]), agreement, said["above"])


def evidence_page(studies: Sequence[Found]) -> str:
    """The first page in Markdown."""
    main = [study for study in studies if not study.name.endswith(OF_NEED)]
    about_need = [study for study in studies if study.name.endswith(OF_NEED)]
    beliefs = " ".join([*_beliefs(main), *_beliefs_of_need(about_need)])
    lines = [_START, beliefs, _LIMITS, "## All studies", "", _over_all(main, (HEADLINE, COMPENSATED, STUDYS)), ""]
    if about_need:
        lines += ["## Predicted need", "", _ABOUT_NEED, _over_all(about_need, (NEED, HEADLINE, COMPENSATED)), ""]
    return "\n".join([*lines, *map(_part, studies)])


def _beliefs(studies: Sequence[Found]) -> Iterator[str]:
    """What to believe of the tool's numbers, and what not, from the studies' own tables."""
    known = [(study, row) for study in studies if (row := study.row(HEADLINE)) is not None]
    if known:
        others, contrast = ([study.name for study, _ in known if study.above[kind]] for kind in _KINDS)
        yield (
            f"**What to believe.** The {HEADLINE[1]} of a language's influence ({HEADLINE[0]}) correlates with what leaving the "
            f"language out costs other languages by {_range(known, 'others')}, and by {_range(known, 'contrast')} once row and "
            "column effects are taken out. It is above every baseline, with the interval of the difference above 0, in "
            f"{len(others)} of {len(known)} studies as it is ({_listed(others)}), and in {len(contrast)} with these effects "
            f"taken out ({_listed(contrast)})."
        )
    undone = [(study, row) for study in studies if (row := study.row(COMPENSATED)) is not None]
    if undone:
        yield (
            f'With the ridge of the fit\'s own steps (`preconditioner="adam-fisher"`, `damping="steps"`), the sums correlate by '
            f"{_range(undone, 'others')}, and by {_range(undone, 'contrast')} once these effects are taken out."
        )
    shares = [(study, row) for study in studies if (row := study.row(STUDYS)) is not None]
    if shares:
        identity = [(study, row) for study in studies if (row := study.row(("identity", "table"))) is not None]
        yield (
            f"**What not.** Shares of the strongest samples ({STUDYS[0]}), which the literature counts, have "
            f"{_range(shares, 'others')} "
            f'and {_range(shares, "contrast")}. "One\'s own language first" alone correlates with the whole table by '
            f"{_range(identity, 'all')}, so an agreement over whole tables says little."
        )


def _beliefs_of_need(studies: Sequence[Found]) -> Iterator[str]:
    known = [(study, row) for study in studies if (row := study.row(NEED)) is not None]
    if known:
        yield (
            f"**Predicted need** (`run.predicted_need()`) correlates by {_range(known, 'others')}, and by "
            f"{_range(known, 'contrast')} once row and column effects are taken out, where the default's sums of the same fits "
            f"have {_range(_rows(known, HEADLINE), 'others')} and {_range(_rows(known, HEADLINE), 'contrast')}, and compensated "
            f"ones {_range(_rows(known, COMPENSATED), 'others')} and {_range(_rows(known, COMPENSATED), 'contrast')}."
        )


def _rows(known: Sequence[tuple[Found, pd.Series[Any]]], which: tuple[str, str]) -> list[tuple[Found, pd.Series[Any]]]:
    return [(study, row) for study, _ in known if (row := study.row(which)) is not None]


def _range(known: Sequence[tuple[Found, pd.Series[Any]]], kind: str) -> str:
    values = np.asarray([row[kind] for _, row in known], dtype=np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return "an unknown amount"
    low, high = f"{values.min():.2f}", f"{values.max():.2f}"
    return low if low == high else f"{low} to {high}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _one(section: Section, name: str) -> pd.DataFrame:
    table = section.tables[name]
    found: pd.DataFrame = table[table["left_out"] == "one"]
    return found


def _above_all(differences: pd.DataFrame, kind: str) -> bool:
    rows = differences[(differences["score"] == HEADLINE[0]) & (differences["measure"] == HEADLINE[1])]
    return bool(len(rows)) and bool((rows[f"{kind}_low"] > 0).all())


def _over_all(studies: Sequence[Found], shown: Sequence[tuple[str, str]]) -> str:
    """A table with a row for each study, and columns for some scores and the best baseline."""
    rows = []
    for study in studies:
        table = study.agreement
        for kind in _KINDS:
            baselines = table[table["baseline"] & table[kind].notna()]
            best = None if baselines.empty else baselines.loc[baselines[kind].idxmax()]
            cells = [_shown(study.row(which), kind) for which in shown]
            rows.append([study.name, kind, *cells, "" if best is None else f"{best['score']} {_shown(best, kind)}"])
    named = (", ".join(which) for which in shown)
    columns = ["study", "cells", *named, "best baseline"]
    return _table(pd.DataFrame(rows, columns=columns))


def _shown(row: pd.Series[Any] | None, kind: str) -> str:
    if row is None or not np.isfinite(row[kind]):
        return "-"
    if not np.isfinite(row[f"{kind}_low"]):
        return f"{row[kind]:.2f}"
    return f"{row[kind]:.2f} [{row[f'{kind}_low']:.2f}, {row[f'{kind}_high']:.2f}]"


def _table(table: pd.DataFrame) -> str:
    shown = columns_and_rows(table)
    lines = [shown["columns"], ["---"] * len(shown["columns"]), *shown["rows"]]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _part(study: Found) -> str:
    """A study's part of the first page: findings of leaving languages out, and the table of all scores folded."""
    findings = [f"- {finding}" for finding in study.findings]
    folded = ["<details><summary>All scores and baselines</summary>", "", _by_measure(study.agreement), "", "</details>"]
    more = f"Every section and figure: [evidence/{study.name}.md](evidence/{study.name}.md)."
    return "\n".join([f"## {study.name}", "", study.summary, "", *findings, "", *folded, "", more, ""])


def _study_page(outcome: Outcome) -> str:
    name = outcome.settings.name
    start = f"Written by `python -m benchmarks.evidence --data_dir FOLDER --only {name}`; do not edit."
    return f"{start}\n\n{markdown(outcome, f'{name}/', shown=SHOWN)}\n"


def _by_measure(table: pd.DataFrame) -> str:
    """Score x measure: correlation over other languages' cells / with row and column effects taken out."""
    measures = list(dict.fromkeys(table.loc[~table["baseline"], "measure"]))
    rows = [
        [score, *(_both(lines[lines["measure"] == measure]) for measure in measures)]
        for score, lines in table[~table["baseline"]].groupby("score", sort=False)
    ]
    baselines = table[table["baseline"]]
    rows += [
        [f"{line['score']} (baseline)", _both(baselines.loc[[index]]), *[""] * (len(measures) - 1)]
        for index, line in baselines.iterrows()
    ]
    return _table(pd.DataFrame(rows, columns=["others / contrast", *measures]))


def _both(lines: pd.DataFrame) -> str:
    if lines.empty:
        return ""
    return " / ".join(_shown(lines.iloc[0], kind) for kind in _KINDS)
