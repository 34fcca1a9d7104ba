"""A model's page of known truth, put together from parts: one for each arm, and one for the coverage of intervals.

`<page>/<model>.json` holds the parts, so that an arm is measured without the fits of the others; `<page>/<model>/<arm>.csv` every
score and measure of an arm.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from benchmarks.known_truth.measure import Found
from benchmarks.known_truth.page import Coverage, coverage_findings, coverage_table, findings, judged, section
from benchmarks.known_truth.plan import ARMS, INTERVALS, MODELS, Plan
from lightning_tracin.analysis.tables import as_csv
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.files import as_utf8, write_bytes


class Part(TypedDict):
    """What a page shows of an arm: sentences, and a section in Markdown."""

    findings: list[str]
    section: str


class Parts(TypedDict):
    """What is stored of a model: its settings in a paragraph, and its parts by name."""

    settings: str
    parts: dict[str, Part]


def write_model(
    model: str, arms: Mapping[str, Sequence[Found]], coverage: Coverage, plan: Plan, source: str, first: Path
) -> None:
    """Write a model's page into the folder named like the first page: what was measured, and what is there of other arms.

    Args:
        model: name of the model.
        arms: arm -> its worlds.
        coverage: of intervals; empty if it was not measured.
        plan: that of the model.
        source: what the documents are, and how many.
        first: the first page.

    Raises:
        TracInError: parts with other settings are there.
    """
    folder, settings = first.with_suffix(""), _settings(model, plan, source)
    path = folder / f"{model}.json"
    stored = read_parts(path) or {"settings": settings, "parts": {}}
    if stored["settings"] != settings:
        raise TracInError(f"{path} holds parts that were measured with other settings; name another --page, or delete it.")
    (folder / model).mkdir(parents=True, exist_ok=True)
    for arm, worlds in arms.items():
        csv = f"{model}/{arm}.csv"
        write_bytes(folder / csv, as_utf8(as_csv(judged(arm, worlds))))
        shown = f"## {arm}: {ARMS[arm]}\n\n{section(arm, worlds)}\n\nEvery score and measure: [{csv}]({csv}).\n"
        stored["parts"][arm] = {"findings": [*findings(model, arm, worlds)], "section": shown}
    if coverage:
        shown = f"## Intervals\n\n{coverage_table(coverage, plan)}\n"
        stored["parts"][INTERVALS] = {"findings": [*coverage_findings(model, coverage)], "section": shown}
    write_bytes(path, as_utf8(f"{json.dumps(stored, indent=1, ensure_ascii=False)}\n"))
    write_bytes(folder / f"{model}.md", as_utf8(_page(model, stored)))


def read_parts(path: Path) -> Parts | None:
    """What `write_model` stored of a model; None if there is nothing."""
    if not path.exists():
        return None
    found: Parts = json.loads(path.read_text(encoding="utf-8"))
    return found


def findings_of(parts: Parts) -> list[str]:
    """The sentences of all parts, in the order of the page."""
    return [sentence for part in _ordered(parts) for sentence in part["findings"]]


def _settings(model: str, plan: Plan, source: str) -> str:
    return (
        f"{source}, of which each language trains on {plan.train} (half and twice as many in the arm "
        f"*sizes*, {plan.fewer} in *labels* and *families*) and each is probed with the same {plan.probes}, not selected. AdamW, "
        f"highest learning rate {plan.rate(model):g}, batches of {plan.batch_size}, {plan.epochs} epochs, a snapshot after every "
        f"second. Need is the mean of {plan.seeds} seeds of first weights and order; scores are those of {plan.scored} of them, "
        f"summed over snapshots. Shares are of the top {plan.top_k}. Intervals are of {plan.resamples} resamples of train "
        "samples and probes."
    )


def _page(model: str, parts: Parts) -> str:
    said = "\n".join(f"- {sentence}" for sentence in findings_of(parts))
    start = f"Written by `python -m benchmarks.known_truth --data_dir FOLDER --models {model}`; do not edit."
    about = "What the words mean is said on the [first page](../known-truth.md)."
    head = f"# Known truth, {model}: {MODELS[model]}\n\n{start} {about}"
    sections = (part["section"] for part in _ordered(parts))
    return "\n".join([f"{head}\n\n{said}\n\n## Settings\n\n{parts['settings']}\n", *sections])


def _ordered(parts: Parts) -> list[Part]:
    return [parts["parts"][name] for name in (*ARMS, INTERVALS) if name in parts["parts"]]
