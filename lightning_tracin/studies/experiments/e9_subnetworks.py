"""E9: runs whose gradients are restricted to each language's attention heads, or to the same number of random heads."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from lightning_tracin.analysis.subnetworks import mask_overlap, mask_table
from lightning_tracin.analysis.tables import with_seeds
from lightning_tracin.attribution.attention_heads import Kept, head_importance, head_mask, random_heads, strongest_heads
from lightning_tracin.attribution.losses import loss_named
from lightning_tracin.attribution.masks import write_mask
from lightning_tracin.attribution.samples import from_loader
from lightning_tracin.config import SampleColumns
from lightning_tracin.errors import TracInError
from lightning_tracin.reporting import figures
from lightning_tracin.reporting.language_keys import file_part
from lightning_tracin.storage.files import write_bytes
from lightning_tracin.storage.snapshots import load_weights
from lightning_tracin.studies.fits import Variant, build
from lightning_tracin.studies.named_scores import SCORES
from lightning_tracin.studies.registry import experiment
from lightning_tracin.studies.section import Contents
from lightning_tracin.studies.settings import StudySettings
from lightning_tracin.studies.study_runs import StudyRuns, Wanted
from lightning_tracin.studies.variant_languages import varied_languages
from lightning_tracin.trainer.environment import Environment
from lightning_tracin.trainer.isolation import isolated_copy
from lightning_tracin.trainer.refits import seeded


def check_settings(settings: StudySettings) -> None:
    """Check that the study's own score works with masks.

    Raises:
        TracInError: the study's own score is not one of exact products.
    """
    if SCORES[settings.scores[0]].way not in ("exact", "adam", "adam-factored"):
        raise TracInError(
            f"masks work with exact influence only, so the first of scores cannot be {settings.scores[0]!r}; put cosine first."
        )


def runs(study: StudyRuns) -> list[Wanted]:
    """The runs with masked gradients; writes the masks that do not exist yet."""
    wanted = []
    for seed in range(study.settings.variant_seeds):
        for name in (*study.languages, *_random_names(study)):
            path = _path(study, seed, name)
            if not path.exists():
                _make_masks(study, seed)
            wanted.append(study.of_main(seed, Variant(), path))
    return wanted


def _random_names(study: StudyRuns) -> list[str]:
    names = (name for name in map("random{}".format, itertools.count()) if name not in study.languages)
    return list(itertools.islice(names, study.settings.random_masks))


def _path(study: StudyRuns, seed: int, name: str) -> Path:
    return study.folder / "masks" / f"seed{seed}" / f"mask-{file_part(name)}.safetensors"


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
    prepare = Environment(copy).prepared(copy, next(copy.parameters()).dtype)
    importance = {}
    for language in study.languages:
        mine = [index for index, other in enumerate(samples.table.language) if other == language]
        importance[language] = head_importance(copy, samples.take(mine), loss, prepare)
    shape = next(iter(importance.values())).shape
    count = max(1, round(study.settings.kept_heads * int(np.prod(shape))))
    kept = {language: strongest_heads(one, count) for language, one in importance.items()}
    at_random = _random_masks(shape, count, list(kept.values()), study.settings.random_masks, seed)
    kept |= zip(_random_names(study), at_random, strict=True)
    write_bytes(_heads(study, seed), json.dumps({name: one.tolist() for name, one in kept.items()}).encode())
    for name, one in kept.items():
        write_mask(_path(study, seed, name), head_mask(fit.module, one))


def _random_masks(shape: tuple[int, ...], count: int, own: list[Kept], wanted: int, seed: int) -> list[Kept]:
    """Distinct random masks, all different from those of the languages.

    Args:
        shape: shape of a mask, [layers, heads].
        count: number of heads that a mask keeps.
        own: the masks of the languages.
        wanted: number of random masks.
        seed: seed of the random masks.

    Raises:
        TracInError: there are fewer such masks.
    """
    heads, distinct = math.prod(shape), {mask.tobytes(): mask for mask in own}
    of_languages, possible = len(distinct), math.comb(heads, count)
    if possible - of_languages < wanted:
        raise TracInError(
            f"There are {possible} ways to keep {count} of {heads} attention heads, {of_languages} of which are masks of "
            f"languages: too few for {wanted} random masks; use a model with more heads, or fewer random_masks."
        )
    draws = itertools.count()
    while len(distinct) < of_languages + wanted:
        mask = random_heads(shape, count, int(np.random.SeedSequence([seed, next(draws)]).generate_state(1)[0]))
        distinct.setdefault(mask.tobytes(), mask)
    return list(distinct.values())[of_languages:]


def _kept(study: StudyRuns, seed: int) -> Mapping[str, Kept]:
    stored = json.loads(_heads(study, seed).read_text())
    return {name: np.asarray(one, dtype=np.bool_) for name, one in stored.items()}


@experiment("masks", "E9: subnetworks", 70, runs=runs, check_settings=check_settings, addable=("variant_seeds",))
def masks(study: StudyRuns) -> Contents:
    """E9: influence within each language's attention heads, and within random heads."""
    k = study.settings.top_k
    tables, overlaps = [], []
    for seed in range(study.settings.variant_seeds):
        names = {_path(study, seed, name): name for name in (*study.languages, *_random_names(study))}
        found = {
            names[wanted.mask]: study.reliance(study.main_scores(wanted))
            for wanted in runs(study)
            if wanted.seed == seed and wanted.mask is not None
        }
        at_random = [found[name] for name in _random_names(study)]
        own = {language: found[language] for language in varied_languages(None, study.languages, study.probes.language)}
        whole = study.reliance(study.scores(seed)[study.main])
        tables.append(mask_table(own, dict.fromkeys(own, at_random), whole))
        kept = _kept(study, seed)
        overlaps.append(mask_overlap({name: kept[name] for name in study.languages}))
    heads = next(iter(_kept(study, 0).values()))
    shown = tables[0].rename(columns={"random_min": "random_low", "random_max": "random_high"})
    return Contents(
        f"A language's mask keeps the {int(heads.sum())} of {heads.size} attention heads whose gates affect the loss of its "
        "train samples most at the last snapshot. Influence is over the parameters of these heads only; shares of the top "
        f"{k} are compared with {study.settings.random_masks} random masks of the same size; {study.settings.variant_seeds} "
        "seed(s); intervals (95 %) are for other train samples and probes. The findings are for seed 0.",
        tuple(_findings(tables[0], overlaps[0])),
        {"masks": with_seeds(tables), "overlap": with_seeds(overlaps)},
        {"masks": figures.masks(shown.assign(k=k, seeds=1), study.languages)},
    )


def _findings(table: pd.DataFrame, overlap: pd.DataFrame) -> Iterator[str]:
    for line in table.to_dict("records"):
        outside = line["low"] > line["random_max"] or line["high"] < line["random_min"]
        yield (
            f"{line['probe_language']}: by its own heads, {line['share']:.2f} of the top are in its own language "
            f"({line['low']:.2f} to {line['high']:.2f}, chance {line['chance']:.2f}); by random heads, "
            f"{line['random_share']:.2f} ({line['random_min']:.2f} to {line['random_max']:.2f} in {line['draws']} draws); by all "
            f"parameters, {line['whole_share']:.2f}. The first interval {'lies outside' if outside else 'overlaps'} the range of "
            "random heads."
        )
    yield (
        f"On average, the masks of two languages share {overlap['jaccard'].mean():.2f} of their heads (Jaccard index; chance "
        f"{overlap['chance'].mean():.2f})."
    )
