"""Does influence name what a model needs? Removal of what it names, and of whole languages, and a fit without; on real text.

`python -m benchmarks.evidence --data nusax --data_dir FOLDER` fits what has not been fitted and writes docs/evidence.md from the
results of all data sets that are there. `runs/evidence/<name>/` keeps fits and results; what is there is not computed again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch

from benchmarks.evidence_page import page
from benchmarks.lds_fits import OPTIONS, quiet, without_dropout
from lightning_tracin import TracInCallback, TracInRun
from lightning_tracin.baselines import lexical, random_scores, same_label
from lightning_tracin.counterfactual import Members, without_language
from lightning_tracin.experiments.left_out import agreement_table, change_in_loss
from lightning_tracin.experiments.removal import area_by_deletion, removal_table, without_random, without_top
from lightning_tracin.influence import Scores, Sign
from lightning_tracin.refits import Fit, Refits, fit_on, seeded
from lightning_tracin.reliance import Interval, Measure, bootstrap_mean, reliance_table
from lightning_tracin.store import write_bytes
from lightning_tracin.studies.classifier import Classifier, tokenizer_and_model
from lightning_tracin.studies.options import Options
from lightning_tracin.studies.sources import load_split
from lightning_tracin.studies.text_data import TextDataModule

#: What is removed in steps: which score, and of which sign.
REMOVED: dict[str, tuple[str, Sign]] = {
    "cosine, proponents": ("cosine", "positive"),
    "cosine, opponents": ("cosine", "negative"),
    "Fisher-whitened cosine, proponents": ("Fisher-whitened cosine", "positive"),
    "BM25 x same label, proponents": ("BM25 x same label", "positive"),
}
#: What the callback is told, beside what is the same for all ways.
WAYS: dict[str, dict[str, Any]] = {"exact": {}, "projected": {"projection_dim": 4096, "preconditioner": "fisher"}}
MEASURES: tuple[Measure, ...] = ("share", "mass", "mean")
TOP = 100
_REMOVAL_SEEDS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=list(OPTIONS), required=True)
    parser.add_argument("--data_dir", type=Path, default=Path(), help="the folder that nusax-senti/ is in")
    parser.add_argument("--output", type=Path, default=Path("runs/evidence"), help="where fits and results are kept")
    parser.add_argument("--page", type=Path, default=Path("docs/evidence.md"))
    parser.add_argument("--seeds", type=int, default=5, help="first weights and orders; removal takes the first two")
    parser.add_argument("--ks", type=int, nargs="+", default=[50, 100, 150, 200, 250], help="how many samples to remove")
    parser.add_argument("--draws", type=int, default=3, help="random removals of each size")
    parser.add_argument("--workers", type=int, default=2)
    settings = parser.parse_args()
    options = dataclasses.replace(OPTIONS[settings.data], data_dir=str(settings.data_dir))
    folder = settings.output / settings.data
    seeds = range(settings.seeds)
    by_seed = [scores_of(options, folder, seed) for seed in seeds]
    run = TracInRun.open(folder / "seed0-exact")
    refits = Refits(partial(build, options), folder / "refits", workers=settings.workers, progress=True)
    for seed in seeds:  # all at once, so that every worker has work
        names = _members(run, by_seed[seed] if seed < _REMOVAL_SEEDS else {}, settings.ks, settings.draws, seed)
        refits.losses(np.concatenate(names), seed)
    found = {
        "options": {name: value for name, value in dataclasses.asdict(options).items() if name != "data_dir"},
        "train": len(run.train),
        "probes": len(run.probes),
        "languages": sorted(set(run.train.language)),
        "snapshots": len(run.snapshots),
        "seeds": settings.seeds,
        "draws": settings.draws,
        "top": TOP,
        "probability": probability(refits, run, seeds),
        **left_out(refits, run, by_seed),
        **removals(refits, run, by_seed[:_REMOVAL_SEEDS], settings.ks, settings.draws),
    }
    write_bytes(folder / "results.json", json.dumps(found, indent=1).encode())
    results = {name: settings.output / name / "results.json" for name in OPTIONS}
    write_bytes(
        settings.page, page({name: json.loads(path.read_text()) for name, path in results.items() if path.exists()}).encode()
    )


def build(options: Options) -> Fit:
    """One fit of a small classifier, not begun; its first weights depend on the seed that is set."""
    quiet()
    torch.set_num_threads(1)  # steps are too short to be shared
    split, _ = load_split(options)
    tokenizer, model = tokenizer_and_model(options, split)
    without_dropout(model)
    data = TextDataModule(split, tokenizer, batch_size=options.batch_size, max_length=options.max_length)
    trainer = pl.Trainer(
        max_epochs=options.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    module = Classifier(model, learning_rate=options.learning_rate, warmup=options.warmup, weight_decay=options.weight_decay)
    return Fit(module, trainer, data.train_dataloader(), data.val_dataloader())


def scores_of(options: Options, folder: Path, seed: int) -> dict[str, Scores]:
    """Every score of the fit of a seed on all train samples, and the baselines: [train, probes] each."""
    runs = {}
    for way, extra in WAYS.items():
        path = folder / f"seed{seed}-{way}"
        if not (path / "results" / "report.html").exists():
            with seeded(seed):
                fit = build(options)
                callback = TracInCallback(
                    path,
                    probes=fit.probes,
                    max_probes_per_language=None,
                    item_column="item",
                    batch_size=64,
                    per_layer=False,
                    **extra,
                )
                fit.trainer.callbacks.append(callback)  # type: ignore[attr-defined]
                fit_on(fit, np.ones(len(fit.train.dataset), dtype=np.bool_), seed)  # type: ignore[arg-type]
        runs[way] = TracInRun.open(path)
    exact = runs["exact"]
    lexically = lexical(exact.train.text, exact.probes.text)
    signs = same_label(exact.train.label, exact.probes.label)
    found = {
        "cosine": exact.influence("cosine"),
        "dot product": exact.influence("dot"),
        "dot product x learning rate": exact.influence("dot", "learning_rate"),
        "relatif": exact.influence("relatif"),
        "Fisher-whitened cosine": runs["projected"].influence("cosine"),
        "Fisher-whitened dot product": runs["projected"].influence("dot"),
    }
    return {
        **{name: score.to_numpy() for name, score in found.items()},
        "BM25": lexically,
        "BM25 x same label": lexically * signs,
        "same label": signs,
        "random": random_scores(len(signs), signs.shape[1], seed),
    }


def _members(run: TracInRun, scores: Mapping[str, Scores], ks: Sequence[int], draws: int, seed: int) -> list[Members]:
    """Which train samples the fits of a seed may see: all, all but a language, and, where there are scores, all but k."""
    train = len(run.train)
    found = [np.ones((1, train), dtype=np.bool_)]
    found += [without_language(run.train.language, left) for left in sorted(set(run.train.language))]
    for k in ks if scores else ():
        found += [without_top(scores[score], k, sign)[None, :] for score, sign in REMOVED.values()]
        found.append(without_random(train, k, draws, seed))
    return found


def probability(refits: Refits, run: TracInRun, seeds: Sequence[int]) -> float:
    """Mean probability of the probes' correct class under the fits on all train samples."""
    whole = np.ones((1, len(run.train)), dtype=np.bool_)
    return float(np.mean([np.exp(-refits.losses(whole, seed)) for seed in seeds]))


def left_out(refits: Refits, run: TracInRun, by_seed: Sequence[Mapping[str, Scores]]) -> dict[str, Any]:
    """What leaving each language out does, and which tables say so."""
    languages, probes = run.train.language, run.probes.language
    whole = np.ones((1, len(languages)), dtype=np.bool_)
    base = np.concatenate([refits.losses(whole, seed) for seed in range(len(by_seed))])
    without = {
        left: np.concatenate([refits.losses(without_language(languages, left), seed) for seed in range(len(by_seed))])
        for left in sorted(set(languages))
    }
    measured = change_in_loss(base, without, probes)
    agreements = []
    for measure in MEASURES:
        tables = {name: _mean_table([scores[name] for scores in by_seed], run, measure) for name in by_seed[0]}
        agreements.append(agreement_table(measured, tables).assign(measure=measure))
    return {"changes": measured.to_dict("records"), "agreement": pd.concat(agreements).to_dict("records")}


def _mean_table(scores: Sequence[Scores], run: TracInRun, measure: Measure) -> pd.DataFrame:
    """A reliance table, averaged over seeds; its intervals are not used."""
    few = Interval(resamples=2)
    each = [reliance_table(one, run.train.language, run.probes.language, TOP, measure=measure, interval=few) for one in scores]
    mean: pd.DataFrame = pd.concat(each).groupby(["probe_language", "train_language"])[["share"]].mean().reset_index()
    return mean


def removals(
    refits: Refits, run: TracInRun, by_seed: Sequence[Mapping[str, Scores]], ks: Sequence[int], draws: int
) -> dict[str, Any]:
    """The removal curves, and the area under each."""
    train = len(run.train)
    whole = np.ones((1, train), dtype=np.bool_)

    def probabilities(members: Any, seed: int) -> Any:
        return np.exp(-refits.losses(np.atleast_2d(members), seed))

    seeds = range(len(by_seed))
    base = np.concatenate([probabilities(whole, seed)[0] for seed in seeds])
    at_random = {k: np.concatenate([probabilities(without_random(train, k, draws, seed), seed) for seed in seeds], 1) for k in ks}
    tables, areas = [], []
    for name, (score, sign) in REMOVED.items():
        removed = {
            k: np.concatenate([probabilities(without_top(by_seed[seed][score], k, sign), seed)[0] for seed in seeds]) for k in ks
        }
        tables.append(removal_table(base, removed, at_random).assign(removed=name))
        areas.append(_area(name, [k / train for k in ks], np.stack([removed[k] - base for k in ks])))
    areas.append(_area("random", [k / train for k in ks], np.stack([at_random[k].mean(0) - base for k in ks])))
    return {"removal": pd.concat(tables).to_dict("records"), "areas": areas}


def _area(name: str, fractions: Sequence[float], changes: Any) -> dict[str, Any]:
    values = area_by_deletion(fractions, changes)
    low, high = bootstrap_mean(values[:, None], Interval())
    return {"removed": name, "area": float(values.mean()), "low": float(low[0]), "high": float(high[0])}


if __name__ == "__main__":
    main()
