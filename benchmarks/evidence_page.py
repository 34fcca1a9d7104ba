"""The page that the studies of the evidence are shown on: what to believe, one table over all studies, then each study."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lightning_tracin.reporting.html import columns_and_rows
from lightning_tracin.studies.page import markdown
from lightning_tracin.studies.runner import Outcome
from lightning_tracin.studies.section import Section

#: The score and measure that the tool leads with, those that take off what later steps make up for, and those of the study.
HEADLINE = ("factored Adam dot product x learning rate", "sum")
COMPENSATED = ("compensated Adam dot product", "sum")
STUDYS = ("cosine", "share")

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

_START = """# Evidence: does influence name what a model needs?

Written by `python -m benchmarks.evidence --data_dir FOLDER`; do not edit. Each part is a study of `lightning-tracin study` with
the settings in `benchmarks/evidence_settings`: a multilingual encoder is fine-tuned, and fine-tuned again without some of its
train samples, from the same first weights, in the same order and with the same schedule.
"""

_LIMITS = """
What this cannot say: it is about encoders of moderate size, hundreds of train samples and a few languages each. (Five languages
with 240 documents of their own would need 1,200, and SIB-200 has 701.) How well
influence names what *your* model needs, the same study of your own data says. Where train samples are translations of each
other, leaving one language out shows what the others cannot replace, and not what the model learned from.
"""


def evidence_page(outcomes: Sequence[Outcome], page: Path) -> str:
    """The page in Markdown; copies the figures beside it."""
    studies = [(outcome, section) for outcome in outcomes for section in outcome.sections if section.name == "left_out"]
    lines = [_START, " ".join(_beliefs(studies)), _LIMITS, "## All studies", "", _over_all(studies), ""]
    return "\n".join([*lines, *(part(outcome, page) for outcome in outcomes)])


def _beliefs(studies: Sequence[tuple[Outcome, Section]]) -> Iterator[str]:
    """What to believe of the tool's numbers, and what not, from the studies' own tables."""
    rows = [(outcome.settings.name, _row(section, HEADLINE), section) for outcome, section in studies]
    known = [(name, row, section) for name, row, section in rows if row is not None]
    if known:
        above = [name for name, _, section in known if _above_all(section, HEADLINE, "others")]
        in_contrast = [name for name, _, section in known if _above_all(section, HEADLINE, "contrast")]
        yield (
            f"**What to believe.** The {HEADLINE[1]} of a language's influence ({HEADLINE[0]}) correlates with what leaving the "
            f"language out costs other languages by {_range(known, 'others')}, and by {_range(known, 'contrast')} once row and "
            "column effects are taken out. It is above every baseline, with the interval of the difference above 0, in "
            f"{len(above)} of {len(known)} studies as it is ({_listed(above)}), and in {len(in_contrast)} with these effects "
            f"taken out ({_listed(in_contrast)})."
        )
    rows = [(outcome.settings.name, _row(section, COMPENSATED), section) for outcome, section in studies]
    undone = [(name, row, section) for name, row, section in rows if row is not None]
    if undone:
        yield (
            f'With the ridge of the fit\'s own steps (`preconditioner="adam-fisher"`, `damping="steps"`), the sums correlate by '
            f"{_range(undone, 'others')}, and by {_range(undone, 'contrast')} once these effects are taken out."
        )
    shares = [(outcome.settings.name, row, section) for outcome, section in studies if (row := _row(section, STUDYS)) is not None]
    if shares:
        yield (
            f"**What not.** Shares of the strongest samples ({STUDYS[0]}), which the literature counts, have "
            f"{_range(shares, 'others')} "
            f'and {_range(shares, "contrast")}. "One\'s own language first" alone correlates with the whole table by '
            f"{_identity([section for _, section in studies])}, so an agreement over whole tables says little."
        )


def _range(known: Sequence[tuple[str, pd.Series[Any], Section]], kind: str) -> str:
    values = np.asarray([row[kind] for _, row, _ in known], dtype=np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return "an unknown amount"
    low, high = f"{values.min():.2f}", f"{values.max():.2f}"
    return low if low == high else f"{low} to {high}"


def _identity(sections: Sequence[Section]) -> str:
    rows = [("", row, section) for section in sections if (row := _row(section, ("identity", "table"))) is not None]
    return _range(rows, "all")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _one(section: Section, name: str) -> pd.DataFrame:
    table = section.tables[name]
    found: pd.DataFrame = table[table["left_out"] == "one"]
    return found


def _row(section: Section, which: tuple[str, str]) -> pd.Series[Any] | None:
    table = _one(section, "agreement")
    rows = table[(table["score"] == which[0]) & (table["measure"] == which[1])]
    return None if rows.empty else rows.iloc[0]


def _above_all(section: Section, which: tuple[str, str], kind: str) -> bool:
    table = _one(section, "differences")
    rows = table[(table["score"] == which[0]) & (table["measure"] == which[1])]
    return bool(len(rows)) and bool((rows[f"{kind}_low"] > 0).all())


def _over_all(studies: Sequence[tuple[Outcome, Section]]) -> str:
    """A table with a row for each study, and columns for the tool's two scores, the study's measure and the best baseline."""
    rows = []
    for outcome, section in studies:
        table = _one(section, "agreement")
        for kind in ("others", "contrast"):
            baselines = table[table["baseline"] & table[kind].notna()]
            best = None if baselines.empty else baselines.loc[baselines[kind].idxmax()]
            cells = [_shown(_row(section, which), kind) for which in (HEADLINE, COMPENSATED, STUDYS)]
            rows.append([outcome.settings.name, kind, *cells, "" if best is None else f"{best['score']} {_shown(best, kind)}"])
    named = (", ".join(which) for which in (HEADLINE, COMPENSATED, STUDYS))
    columns = ["study", "cells", *named, "best baseline"]
    return _table(pd.DataFrame(rows, columns=columns))


def _shown(row: pd.Series[Any] | None, kind: str) -> str:
    if row is None or not np.isfinite(row[kind]):
        return "-"
    return f"{row[kind]:.2f} [{row[f'{kind}_low']:.2f}, {row[f'{kind}_high']:.2f}]"


def _table(table: pd.DataFrame) -> str:
    shown = columns_and_rows(table)
    lines = [shown["columns"], ["---"] * len(shown["columns"]), *shown["rows"]]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def part(outcome: Outcome, page: Path) -> str:
    """A study's part of the page: findings of leaving languages out, and everything else folded; copies its figures."""
    folder = page.with_suffix("") / outcome.settings.name
    folder.mkdir(parents=True, exist_ok=True)
    for name in SHOWN:
        found = outcome.folder / "results" / f"{name}.png"
        if found.exists():
            shutil.copyfile(found, folder / found.name)
    lines = [f"## {outcome.settings.name}", "", outcome.summary, ""]
    for section in outcome.sections:
        if section.name == "left_out":
            lines += [*(f"- {finding}" for finding in section.findings), "", _by_measure(section), ""]
    whole = markdown(outcome, f"{page.stem}/{outcome.settings.name}/", level=3, shown=SHOWN)
    return "\n".join([*lines, "<details><summary>Every section of this study</summary>", "", whole, "", "</details>", ""])


def _by_measure(section: Section) -> str:
    """Score x measure: correlation over other languages' cells / with row and column effects taken out."""
    table = _one(section, "agreement")
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
    return " / ".join(_shown(lines.iloc[0], kind) for kind in ("others", "contrast"))
