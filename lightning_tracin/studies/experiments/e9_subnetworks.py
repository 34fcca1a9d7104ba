"""E9: runs whose gradients are restricted to each language's attention heads, and to as many random ones."""

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
from lightning_tracin.studies.section import Section
from lightning_tracin.studies.study_runs import Ground, Wanted
from lightning_tracin.trainer.isolation import isolated_copy
from lightning_tracin.trainer.refits import seeded


def runs(ground: Ground) -> list[Wanted]:
    """The runs of E9; makes the masks where they are not there yet."""
    wanted = []
    for seed in range(ground.settings.variant_seeds):
        for name in (*ground.languages, *_random_names(ground)):
            path = _path(ground, seed, name)
            if not path.exists():
                _make_masks(ground, seed)
            wanted.append(ground.of_main(seed, Variant(), path))
    return wanted


def _random_names(ground: Ground) -> list[str]:
    return [f"random{draw}" for draw in range(ground.settings.random_masks)]


def _path(ground: Ground, seed: int, name: str) -> Path:
    return ground.folder / "masks" / f"seed{seed}" / f"mask-{name}.safetensors"


def _heads(ground: Ground, seed: int) -> Path:
    return ground.folder / "masks" / f"seed{seed}" / "heads.json"


def _make_masks(ground: Ground, seed: int) -> None:
    """Each language's strongest heads at the last snapshot, and random ones, as masks."""
    run = ground.main_run(seed)
    with seeded(seed):
        fit = build(ground.recipe)
    copy = isolated_copy(fit.module, next(fit.module.parameters()).dtype)
    load_weights(copy, run.snapshots[-1].state_dict())
    loss, samples = loss_named(copy, run.record.loss), from_loader(fit.train, SampleColumns(item_column="item"), "train samples")
    prepare = partial(apply_to_collection, dtype=Tensor, function=lambda tensor: tensor.to(copy.device))
    importance = {}
    for language in ground.languages:
        mine = [index for index, other in enumerate(samples.table.language) if other == language]
        importance[language] = head_importance(copy, samples.take(mine), loss, prepare)
    shape = next(iter(importance.values())).shape
    count = max(1, round(ground.settings.kept_heads * int(np.prod(shape))))
    kept = {language: strongest_heads(one, count) for language, one in importance.items()}
    kept |= zip(
        _random_names(ground), _others(shape, count, list(kept.values()), ground.settings.random_masks, seed), strict=True
    )
    write_bytes(_heads(ground, seed), json.dumps({name: one.tolist() for name, one in kept.items()}).encode())
    for name, one in kept.items():
        write_mask(_path(ground, seed, name), head_mask(fit.module, one))


def _others(shape: tuple[int, ...], count: int, own: list[Kept], wanted: int, seed: int) -> list[Kept]:
    """Random masks of this size that are no language's own, all different.

    Raises:
        TracInError: there are not so many.
    """
    taken = {mask.tobytes() for mask in own}
    if math.comb(int(np.prod(shape)), count) - len(taken) < wanted:
        raise TracInError(
            f"Of {int(np.prod(shape))} attention heads, {count} can be kept in {math.comb(int(np.prod(shape)), count)} ways, "
            f"{len(taken)} of which are languages' own masks: too few for {wanted} random ones; take a model with more heads, or "
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
    raise AssertionError  # the count has no end


def _kept(ground: Ground, seed: int) -> Mapping[str, Kept]:
    stored = json.loads(_heads(ground, seed).read_text())
    return {name: np.asarray(one, dtype=np.bool_) for name, one in stored.items()}


def section(ground: Ground) -> Section:
    """E9: own-language shares within each language's own heads, beside random ones and all parameters."""
    k = ground.settings.top_k
    tables, overlaps = [], []
    for seed in range(ground.settings.variant_seeds):
        found = {
            wanted.mask.stem.removeprefix("mask-"): _reliance(ground, ground.main_scores(wanted))
            for wanted in runs(ground)
            if wanted.seed == seed and wanted.mask is not None
        }
        at_random = [found[name] for name in _random_names(ground)]
        probed = [language for language in ground.languages if language in ground.probes.language]
        own = {language: found[language] for language in probed}
        whole = _reliance(ground, ground.scores(seed)[ground.main])
        tables.append(mask_table(own, dict.fromkeys(probed, at_random), whole).assign(seed=seed))
        kept = _kept(ground, seed)
        overlaps.append(mask_overlap({name: kept[name] for name in ground.languages}).assign(seed=seed))
    table, overlap = pd.concat(tables, ignore_index=True), pd.concat(overlaps, ignore_index=True)
    heads = next(iter(_kept(ground, 0).values()))
    first = tables[0].drop(columns="seed")
    shown = first.rename(columns={"random_min": "random_low", "random_max": "random_high"})
    return Section(
        "masks",
        "E9: subnetworks",
        f"A language's mask: the {int(heads.sum())} of {heads.size} attention heads whose gates its train samples' loss "
        f"depends on most at the last snapshot. Influence over these heads' parameters alone, top {k}, beside "
        f"{ground.settings.random_masks} random masks of the same size; {ground.settings.variant_seeds} seed(s); 95 % "
        "intervals over probes. Sentences are of seed 0.",
        tuple(_said(first, overlaps[0])),
        {"masks": table, "overlap": overlap},
        {"masks": figures.masks(shown.assign(k=k, seeds=1), ground.languages)},
    )


def _reliance(ground: Ground, scores: Scores) -> pd.DataFrame:
    return reliance_table(scores, ground.train.language, ground.probes.language, ground.settings.top_k)


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
