"""Does summed influence predict what a model fitted on half of the data says? LDS of every score, with intervals.

`python -m benchmarks.lds --data cldr` makes the missing fits, prints the table, and writes docs/lds.md from the results of all
data sets that have some.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lds_fits import OPTIONS, Trial, full_fit, refits, require_same_fit, stability, trial
from benchmarks.lds_grams import has_reference
from benchmarks.lds_page import MAIN, page
from benchmarks.lds_scores import baselines, package_scores, reference_scores
from lightning_tracin import TracInRun
from lightning_tracin.analysis.lds import Members, Outputs, lds, lds_difference, repeatability
from lightning_tracin.analysis.resampling import Interval
from lightning_tracin.config import DAMPING
from lightning_tracin.storage.files import read_tensors, write_bytes
from lightning_tracin.studies.named_scores import SCORES, ways_of
from lightning_tracin.studies.quiet import silence

DAMPINGS = (0.000025, 0.00025, DAMPING, 0.025)
CHOSEN_ON = {"cldr": 24, "nusax": 34, "sib200": 0}  # the default damping was chosen on this many of the halves, from the first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=list(OPTIONS), required=True)
    parser.add_argument("--data_dir", type=Path, default=Path(), help="the folder that nusax-senti/ and sib200/ are in")
    parser.add_argument("--output", type=Path, default=Path("runs/lds"), help="where the fits are kept")
    parser.add_argument("--page", type=Path, default=Path("docs/lds.md"))
    parser.add_argument("--subsets", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=1, help="fits on each subset, in other orders; their outputs are averaged")
    parser.add_argument("--snapshots", help="snapshots to sum scores over, such as 1,3,5; default: all")
    parser.add_argument("--fits_only", action="store_true", help="make the fits and stop before the scores")
    parser.add_argument("--stability", type=float, metavar="LEARNING_RATE", help="only print how stable refits are")
    settings = parser.parse_args()
    silence()
    if settings.stability is not None:
        with tempfile.TemporaryDirectory() as folder:
            made = trial(settings.data, settings.data_dir, Path(folder), learning_rate=settings.stability)
            print(f"{settings.data}, learning rate {settings.stability:g}: {stability(made):.2f}")
        return
    made = trial(settings.data, settings.data_dir, settings.output)
    ways = ways_of(tuple(SCORES))
    for way in ways:
        full_fit(made, way)
    require_same_fit(made)
    fits = [refits(made, settings.subsets, repeat) for repeat in range(settings.repeats)]
    if settings.fits_only:
        return
    members, said = fits[0][0], [each for _, each in fits]
    runs = {way: TracInRun.open(made.run(way)) for way in ways}
    run = runs["exact"]
    snapshots = list(range(len(run.snapshots))) if settings.snapshots is None else [int(i) for i in settings.snapshots.split(",")]
    scores = {**package_scores(runs, snapshots, DAMPINGS), **baselines(run, made.options.seed)}
    references = reference_scores(made, run, snapshots, DAMPINGS) if has_reference(made) else {}
    margin: Outputs = np.mean(said, axis=0)
    plain, unseen = scores["cosine"], slice(CHOSEN_ON[made.name], None)
    rows = [row(name, score, plain, members, margin) for name, score in scores.items()]
    reference_rows = [row(name, score, plain, members, margin) for name, score in references.items()]
    for line in rows + reference_rows:
        low, high = line["difference_low"], line["difference_high"]
        print(f"{line['score']:48s} {line['lds']:6.3f} [{line['low']:6.3f}, {line['high']:6.3f}]  {low:+.3f} {high:+.3f}")
    result = {
        **facts(made, run, snapshots),
        "subsets": len(members),
        "repeats": len(said),
        "rows": rows,
        "reference_rows": reference_rows,
        "dampings": DAMPINGS,
        "chosen_on": CHOSEN_ON[made.name],
        "unseen": [row(name, scores[name], plain, members[unseen], margin[unseen]) for name in MAIN],
    }
    if len(said) > 1:
        result["repeatability"] = repeatability(said[0], said[1])
    write_bytes(made.folder / "results.json", json.dumps(result, indent=1).encode())
    found = {name: settings.output / name / "results.json" for name in OPTIONS}
    results = {name: json.loads(path.read_text()) for name, path in found.items() if path.exists()}
    write_bytes(settings.page, page(results).encode())


def row(name: str, score: Any, cosine: Any, members: Members, margin: Outputs) -> dict[str, Any]:
    """One score's figures: LDS with its interval, and its difference from cosine."""
    interval = Interval()
    own, above = lds(score, members, margin, interval), lds_difference(score, cosine, members, margin, interval)
    return {
        "score": name,
        "lds": own.value,
        "low": own.low,
        "high": own.high,
        "probes": own.probes,
        "difference": above.value,
        "difference_low": above.low,
        "difference_high": above.high,
    }


def facts(made: Trial, run: TracInRun, snapshots: list[int]) -> dict[str, Any]:
    """What a reader needs to know about the fits."""
    options = {name: value for name, value in dataclasses.asdict(made.options).items() if name != "data_dir"}
    stored = read_tensors(made.outputs("exact"))
    return {
        "train": len(run.train),
        "probes": len(run.probes),
        "parameters": made.module.model.num_parameters(only_trainable=True),
        "options": options,
        "steps": [run.snapshots[i].step for i in snapshots],
        "all_snapshots": len(run.snapshots),
        **{name: float(value) for name, value in stored.items() if value.ndim == 0},
    }


if __name__ == "__main__":
    main()
