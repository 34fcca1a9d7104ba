"""What is each number that the package shows worth, where the truth is known?

`python -m benchmarks.known_truth --data_dir FOLDER` makes languages that share a known part of their words, computes everything
that the package shows of fits on them, leaves languages out and fits again, and writes a page for each model and
docs/known-truth.md, which is about all models that have a page. A page keeps what it says of arms that are not asked for. FOLDER
holds sib200/; without it, names from the Unicode CLDR are used, of which a model learns less. Fits that are stored are not made
again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import torch

from benchmarks.known_truth.documents import cldr, sib200
from benchmarks.known_truth.first_page import first_page
from benchmarks.known_truth.measure import KINDS, covered, measured
from benchmarks.known_truth.model_page import write_model
from benchmarks.known_truth.plan import ARMS, INTERVALS, MODELS, SMALL, Plan
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.files import as_utf8, write_bytes
from lightning_tracin.studies.quiet import silence


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.known_truth", description=__doc__)
    parser.add_argument("--data_dir", type=Path, help="the folder that sib200/ is in; by default, names from the CLDR")
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, INTERVALS], default=[*ARMS, INTERVALS])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--seeds", type=int, help="fits of each kind that the truth is averaged over")
    parser.add_argument("--small", action="store_true", help="a quick look with few documents")
    parser.add_argument("--output", type=Path, default=Path("runs/known_truth"), help="folder of what is computed")
    parser.add_argument("--page", type=Path, default=Path("docs/known-truth.md"))
    chosen = parser.parse_args()
    plan = SMALL if chosen.small else Plan()
    if chosen.seeds is not None:
        plan = dataclasses.replace(plan, seeds=chosen.seeds)
    silence()
    torch.set_num_threads(1)
    source = "names from the Unicode CLDR" if chosen.data_dir is None else "SIB-200, English"
    require_same_plan(plan, source, chosen.output)
    documents = cldr() if chosen.data_dir is None else sib200(chosen.data_dir)
    for model in chosen.models:
        asked = plan.of(model)
        by_arm = {arm: measured(arm, model, documents, asked, chosen.output) for arm in ARMS if arm in chosen.arms}
        kinds = KINDS if INTERVALS in chosen.arms and model == "mlp" else ()  # some hundred fits, too many for the other models
        covers = {kind: covered(kind, model, documents, asked, chosen.output) for kind in kinds}
        write_model(model, by_arm, covers, asked, f"{source}: {len(documents):,} documents", chosen.page)
    write_bytes(chosen.page, as_utf8(first_page(chosen.page)))


def require_same_plan(plan: Plan, source: str, output: Path) -> None:
    """Write the plan beside its results, or compare it with the one that is there.

    Raises:
        TracInError: the folder holds results of another plan.
    """
    ours, path = json.dumps({"documents": source, **dataclasses.asdict(plan)}, indent=1), output / "plan.json"
    if path.exists() and path.read_text() != ours:
        raise TracInError(f"{output} holds results of another plan or other documents; name another --output, or delete it.")
    write_bytes(path, ours.encode())


if __name__ == "__main__":
    main()
