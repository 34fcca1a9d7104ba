"""Per-token scores of a run's probes: which tokens of a probe a train sample helps, and which it harms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from pytorch_lightning import LightningModule

from lightning_tracin.analysis.scores import group_weights, snapshot_scores
from lightning_tracin.attribution.attributor import Attributor
from lightning_tracin.attribution.prepare import (
    GivenLanguages,
    Setup,
    dtype_of,
    mask_of_run,
    read_samples,
    require_frozen_alike,
    require_languages,
    require_run_samples,
)
from lightning_tracin.attribution.token_losses import Token
from lightning_tracin.attribution.token_products import token_products
from lightning_tracin.attribution.token_texts import found_tokenizer, shift_of, texts_of
from lightning_tracin.config import Scoring, View
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.trainer.environment import Environment
from lightning_tracin.trainer.isolation import isolated_copy, untouched_process


@dataclass(frozen=True)
class Pairs:
    """The train samples and probes whose scores to split.

    Attributes:
        probes: indices of the probes.
        train: indices of the train samples.
    """

    probes: tuple[int, ...]
    train: tuple[int, ...]

    @classmethod
    def of(cls, probes: Sequence[int], train: Sequence[int] | None, probe_count: int, train_count: int) -> Pairs:
        """Check indices, given how many there are of each.

        Raises:
            TracInError: there is no probe or train sample with an index, or none is given.

        Example:
            >>> Pairs.of([1], None, probe_count=2, train_count=3)
            Pairs(probes=(1,), train=(0, 1, 2))
        """
        pairs = cls(tuple(probes), tuple(range(train_count) if train is None else train))
        for indices, count, kind in ((pairs.probes, probe_count, "probe"), (pairs.train, train_count, "train sample")):
            unknown = [index for index in indices if not 0 <= index < count]
            if unknown:
                raise TracInError(f"There is no {kind} {unknown[0]}; the fit had {count}, numbered from 0.")
            if not indices:
                raise TracInError(f"Per-token scores need at least one {kind}; give its index.")
        return pairs


def token_scores(
    directory: RunDirectory,
    module: LightningModule,
    train_loader: Any,
    probes: Any,
    pairs: Pairs,
    scoring: Scoring,
    snapshots: Sequence[int],
    *,
    tokenizer: Any = None,
    mask: str | Path | None = None,
    languages: Sequence[str] | None = None,
    languages_of_probes: Sequence[str] | None = None,
    memory_budget: int | None = None,
    progress: bool = True,
) -> xr.DataArray:
    """Compute per-token scores from the snapshots' weights; see `TracInRun.per_token`.

    Args:
        directory: the run, which is not changed.
        module: as in `attribute`.
        train_loader: as in `attribute`.
        probes: as in `attribute`.
        pairs: the train samples and probes.
        scoring: the score; its preconditioner is the run's or "none".
        snapshots: indices of the snapshots to sum.
        tokenizer: for the tokens' texts. None: that of the probes' collate function or of the module, if there is one.
        mask: the mask file, if the run has a mask.
        languages: each train sample's language, if the fit was given a list.
        languages_of_probes: each probe's language, if the fit was given a list.
        memory_budget: as in `attribute`.
        progress: whether to show progress bars.

    Raises:
        TracInError: as for `attribute`; or the loss of a token cannot be seen.
    """
    with untouched_process(module, train_loader, probes):
        record, ledger = directory.record(), directory.ledger.snapshots()
        given = GivenLanguages(languages, languages_of_probes)
        require_languages(directory, given)
        options = record.options.but(memory_budget=memory_budget)
        copy = isolated_copy(module, dtype_of(options))
        here = Environment(copy)
        train, chosen = read_samples(train_loader, probes, given, options, here, progress)
        require_run_samples(directory, train, chosen, here)
        require_frozen_alike(module, ledger)
        kept_mask = mask_of_run(directory, None if mask is None else Path(mask))
        setup = Setup(options, train, chosen, record.loss, kept_mask, progress)
        return split_scores(directory, copy, setup, pairs, scoring, snapshots, tokenizer)


def split_scores(
    directory: RunDirectory,
    copy: LightningModule,
    setup: Setup,
    pairs: Pairs,
    scoring: Scoring,
    snapshots: Sequence[int],
    tokenizer: Any = None,
) -> xr.DataArray:
    """Compute per-token scores in this process.

    Args:
        directory: the run.
        copy: an isolated copy of the module, whose weights change.
        setup: the setup of the run's passes.
        pairs: see `token_scores`.
        scoring: see `token_scores`.
        snapshots: see `token_scores`.
        tokenizer: see `token_scores`.
    """
    here, ledger = Environment(copy), directory.ledger.snapshots()
    attributor = Attributor(directory, here, setup)
    few, train, total = setup.probes.take(pairs.probes), setup.train.take(pairs.train), np.zeros(())
    tokens: tuple[tuple[Token, ...], ...] = ()
    for snapshot in (ledger[index] for index in snapshots):
        target, job = attributor.ready(copy, snapshot)
        products = token_products(target, replace(job, train=train, probes=few))
        weights = group_weights(scoring.weighting, snapshot.learning_rates, snapshot.visits)[list(target.parts.groups)]
        total, tokens = total + snapshot_scores(products.ingredients, scoring.similarity, weights), products.tokens
    if tokenizer is None:
        tokenizer = found_tokenizer(*setup.probes.collates, copy, getattr(copy, "model", None))
    prepared = here.prepared(copy, setup.dtype)
    batches = [prepared(few.batch([index])) for index in range(len(few))]
    columns = {"probe": [probe for probe, each in zip(pairs.probes, tokens, strict=True) for _ in each]}
    columns |= _described(tokens, batches, tokenizer)
    return xr.DataArray(
        total,
        dims=("train", "token"),
        coords={
            "train": list(pairs.train),
            "train_language": ("train", list(train.table.language)),
            **{name: ("token", values) for name, values in columns.items()},
        },
        name="influence",
        attrs={"similarity": scoring.similarity, "weighting": scoring.weighting},
    )


def tokens_of_pairs(directory: RunDirectory, copy: LightningModule, setup: Setup, top: pd.DataFrame, view: View) -> pd.DataFrame:
    """Split the scores of a table's pairs of probe and train sample.

    Args:
        directory: the run.
        copy: see `split_scores`.
        setup: see `split_scores`.
        top: with the columns probe and train.
        view: which score.

    Returns:
        One line for each token of each pair: probe, train, position, text, target, term, score.
    """
    pairs = Pairs(*(tuple(sorted({int(index) for index in top[name]})) for name in ("probe", "train")))
    scoring = Scoring(similarity=view.similarity, weighting=view.weighting)
    array = split_scores(directory, copy, setup, pairs, scoring, range(len(directory.ledger.snapshots())))
    table = array.drop_vars("train_language").rename("score").to_dataframe().reset_index(level="train")
    wanted = top[["probe", "train"]].drop_duplicates()
    found = wanted.merge(table, on=["probe", "train"])
    columns = ["probe", "train", "position", "text", "target", "term", "score"]
    split: pd.DataFrame = found[columns]
    return split


def _described(tokens: Sequence[Sequence[Token]], batches: Sequence[Any], tokenizer: Any) -> dict[str, list[Any]]:
    """Columns with a line for each token of all probes."""
    columns: dict[str, list[Any]] = {"position": [], "text": [], "target": [], "term": []}
    for each, batch in zip(tokens, batches, strict=True):
        shift = shift_of(each, batch)
        columns["position"] += [one.position + shift if one.position >= 0 else -1 for one in each]
        columns["text"] += texts_of(each, batch, tokenizer)
        columns["target"] += [one.target for one in each]
        columns["term"] += [one.term for one in each]
    return columns
