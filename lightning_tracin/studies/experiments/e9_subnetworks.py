"""E9: runs whose gradients are restricted to each language's attention heads, or to equally many random heads."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_tracin.analysis.reliance import reliance_table
from lightning_tracin.analysis.scores import Scores
from lightning_tracin.analysis.subnetworks import mask_overlap, mask_table
from lightning_tracin.attribution.attention_heads import Kept, head_importance, head_mask, random_heads, strongest_heads
from lightning_tracin.attribution.losses import loss_named
from lightning_tracin.attribution.masks import write_mask
from lightning_tracin.attribution.samples import from_loader
from lightning_tracin.config import SampleColumns
from lightning_tracin.errors import TracInError
from lightning_tracin.reporting import figures
from lightning_tracin.storage.files import write_bytes
from lightning_tracin.storage.snapshots import load_weights
from lightning_tracin.studies.fits import Variant, build
from lightning_tracin.studies.named_scores import SCORES
from lightning_tracin.studies.registry import experiment
from lightning_tracin.studies.section import Contents
from lightning_tracin.studies.settings import StudySettings
from lightning_tracin.studies.study_runs import StudyRuns, Wanted
from lightning_tracin.trainer.isolation import isolated_copy
from lightning_tracin.trainer.refits import seeded


def check_settings(settings: StudySettings) -> None:
    """Refuse a score that masks cannot be used with.

    Raises:
        TracInError: the study's own score is read from projected features.
    """
    if SCORES[settings.scores[0]].way == "projected":
        raise TracInError(f"masks work with exact influence only, so the first of scores cannot be {settings.scores[0]!r}.")


def runs(study: StudyRuns) -> list[Wanted]:
    """The runs with masked gradients; makes the masks that do not exist yet."""
    wanted = []
    for seed in range(study.settings.variant_seeds):
        for name in (*study.languages, *_random_names(study)):
            path = _path(study, seed, name)
            if not path.exists():
                _make_masks(study, seed)
            wanted.append(study.of_main(seed, Variant(), path))
    return wanted


def _random_names(study: StudyRuns) -> list[str]:
    return [f"random{draw}" for draw in range(study.settings.random_masks)]


def _path(study: StudyRuns, seed: int, name: str) -> Path:
    return study.folder / "masks" / f"seed{seed}" / f"mask-{name}.safetensors"


def _heads(study: StudyRuns, seed: int) -> Path:
    return study.folder / "masks" / f"seed{seed}" / "heads.json"


def _make_masks(study: StudyRuns, seed: int) -> None:
    """Write masks of each language's strongest heads at the last snapshot, and of random heads."""
    run = study.main_run(seed)
    with seeded(seed):
        fit = build(study.recipe)
    copy = isolated_copy(fit.module, next(fit.module.parameters()).dtype)
    load_weights(copy, run.snapshots[-1].state_dict())
    loss, samples = loss_named(copy, run.record.loss), from_loader(fit.train, SampleColumns(item_column="item"), "train samples")
    prepare = partial(apply_to_collection, dtype=Tensor, function=lambda tensor: tensor.to(copy.device))
    importance = {}
    for language in study.languages:
        mine = [index for index, other in enumerate(samples.table.language) if other == language]
        importance[language] = head_importance(copy, samples.take(mine), loss, prepare)
    shape = next(iter(importance.values())).shape
    count = max(1, round(study.settings.kept_heads * int(np.prod(shape))))
    kept = {language: strongest_heads(one, count) for language, one in importance.items()}
    kept |= zip(_random_names(study), _others(shape, count, list(kept.values()), study.settings.random_masks, seed), strict=True)
    write_bytes(_heads(study, seed), json.dumps({name: one.tolist() for name, one in kept.items()}).encode())
    for name, one in kept.items():
        write_mask(_path(study, seed, name), head_mask(fit.module, one))


def _others(shape: tuple[int, ...], count: int, own: list[Kept], wanted: int, seed: int) -> list[Kept]:
    """Different random masks of this size, none of which is a language's own.

    Args:
        shape: of a mask, [layers, heads].
        count: of heads that a mask keeps.
        own: the masks of the languages.
        wanted: number of random masks.
        seed: of the random masks.

    Raises:
        TracInError: fewer such masks exist.
    """
    taken = {mask.tobytes() for mask in own}
    if math.comb(int(np.prod(shape)), count) - len(taken) < wanted:
        raise TracInError(
            f"There are {math.comb(int(np.prod(shape)), count)} ways to keep {count} of {int(np.prod(shape))} attention heads, "
            f"{len(taken)} of which are masks of languages: too few for {wanted} random masks; use a model with more heads, or "
            "fewer random_masks."
        )
    found: list[Kept] = []
    for draw in itertools.count():
        mask = random_heads(shape, count, int(np.random.SeedSequence([seed, draw]).generate_state(1)[0]))
        if mask.tobytes() not in taken:
            taken.add(mask.tobytes())
            found.append(mask)
        if len(found) == wanted:
            return found
    raise AssertionError  # itertools.count never ends


def _kept(study: StudyRuns, seed: int) -> Mapping[str, Kept]:
    stored = json.loads(_heads(study, seed).read_text())
    return {name: np.asarray(one, dtype=np.bool_) for name, one in stored.items()}


@experiment("masks", "E9: subnetworks", 70, runs=runs, check_settings=check_settings, addable=("variant_seeds",))
def masks(study: StudyRuns) -> Contents:
    """E9: influence within each language's attention heads, and within random heads."""
    k = study.settings.top_k
    tables, overlaps = [], []
    for seed in range(study.settings.variant_seeds):
        found = {
            wanted.mask.stem.removeprefix("mask-"): _reliance(study, study.main_scores(wanted))
            for wanted in runs(study)
            if wanted.seed == seed and wanted.mask is not None
        }
        at_random = [found[name] for name in _random_names(study)]
        probed = [language for language in study.languages if language in study.probes.language]
        own = {language: found[language] for language in probed}
        whole = _reliance(study, study.scores(seed)[study.main])
        tables.append(mask_table(own, dict.fromkeys(probed, at_random), whole).assign(seed=seed))
        kept = _kept(study, seed)
        overlaps.append(mask_overlap({name: kept[name] for name in study.languages}).assign(seed=seed))
    table, overlap = pd.concat(tables, ignore_index=True), pd.concat(overlaps, ignore_index=True)
    heads = next(iter(_kept(study, 0).values()))
    first = tables[0].drop(columns="seed")
    shown = first.rename(columns={"random_min": "random_low", "random_max": "random_high"})
    return Contents(
        f"A language's mask keeps the {int(heads.sum())} of {heads.size} attention heads whose gates the loss of its train "
        f"samples depends on most at the last snapshot. Influence over the parameters of these heads only, top {k}, compared "
        f"with {study.settings.random_masks} random masks of the same size; {study.settings.variant_seeds} seed(s); 95 % "
        "intervals over probes. The sentences are about seed 0.",
        tuple(_said(first, overlaps[0])),
        {"masks": table, "overlap": overlap},
        {"masks": figures.masks(shown.assign(k=k, seeds=1), study.languages)},
    )


def _reliance(study: StudyRuns, scores: Scores) -> pd.DataFrame:
    return reliance_table(scores, study.train.language, study.probes.language, study.settings.top_k)


def _said(table: pd.DataFrame, overlap: pd.DataFrame) -> Iterator[str]:
    for line in table.to_dict("records"):
        outside = line["low"] > line["random_max"] or line["high"] < line["random_min"]
        yield (
            f"{line['probe_language']}: within its own heads, {line['share']:.2f} of the top are in its own language "
            f"({line['low']:.2f} to {line['high']:.2f}, chance {line['chance']:.2f}), within random heads "
            f"{line['random_share']:.2f} ({line['random_min']:.2f} to {line['random_max']:.2f} in {line['draws']} draws), over "
            f"all parameters {line['whole_share']:.2f}: {'outside' if outside else 'not outside'} the range of these draws."
        )
    yield (
        f"Two languages' masks share {overlap['jaccard'].mean():.2f} of their heads on average (Jaccard; chance "
        f"{overlap['chance'].mean():.2f})."
    )
