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

from lightning_tracin.analysis.scores import Scores, group_weights, snapshot_scores
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
from lightning_tracin.attribution.token_languages import language_at, languages_of_tokens
from lightning_tracin.attribution.token_losses import Token
from lightning_tracin.attribution.token_products import token_products
from lightning_tracin.attribution.token_texts import found_tokenizer, shift_of, texts_of, unscored_pieces
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
    token_language_column: str | None = None,
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
        token_language_column: column of the probes with a list of languages, one for each token id.
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
        setup = Setup(options, train, chosen, record.known_loss, kept_mask, progress)
        column = token_language_column
        named = None if column is None else languages_of_tokens(chosen, column, pairs.probes)
        split = split_scores(directory, copy, setup, pairs, scoring, snapshots, tokenizer)
    tokens = split.tokens
    if named is not None:
        places = zip(tokens["probe"], tokens["position"], strict=True)
        tokens["token_language"] = [language_at(named[probe], position, probe, str(column)) for probe, position in places]
    return xr.DataArray(
        split.scores,
        dims=("train", "token"),
        coords={
            "train": list(pairs.train),
            "train_language": ("train", list(train.take(pairs.train).table.language)),
            **{str(name): ("token", column.to_numpy()) for name, column in tokens.items()},
        },
        name="influence",
        attrs={"similarity": scoring.similarity, "weighting": scoring.weighting},
    )


@dataclass(frozen=True)
class SplitScores:
    """Scores of train samples on the tokens of some probes.

    Attributes:
        scores: [train, tokens].
        tokens: a line for each: probe, position, text, target, term.
        others: pieces of the probes' inputs that do not count in the loss: probe, position, text.
    """

    scores: Scores
    tokens: pd.DataFrame
    others: pd.DataFrame


def split_scores(
    directory: RunDirectory,
    copy: LightningModule,
    setup: Setup,
    pairs: Pairs,
    scoring: Scoring,
    snapshots: Sequence[int],
    tokenizer: Any = None,
) -> SplitScores:
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
    lines: list[tuple[Any, ...]] = []
    others: list[tuple[Any, ...]] = []
    for index, (probe, each) in enumerate(zip(pairs.probes, tokens, strict=True)):
        batch = prepared(few.batch([index]))
        shift, texts = shift_of(each, batch), texts_of(each, batch, tokenizer)
        for one, text in zip(each, texts, strict=True):
            lines.append((probe, one.position + shift if one.position >= 0 else -1, text, one.target, one.term))
        others += [(probe, *piece) for piece in unscored_pieces(each, batch, tokenizer)]
    columns = ["probe", "position", "text", "target", "term"]
    return SplitScores(total, pd.DataFrame(lines, columns=columns), pd.DataFrame(others, columns=columns[:3]))


def tokens_of_pairs(directory: RunDirectory, copy: LightningModule, setup: Setup, top: pd.DataFrame, view: View) -> pd.DataFrame:
    """Split the scores of a table's pairs of probe and train sample.

    Args:
        directory: the run.
        copy: see `split_scores`.
        setup: see `split_scores`.
        top: with the columns probe and train.
        view: which score.

    Returns:
        The tokens of each pair, in order: probe, train, position, text, target, term, score. Where the tokens are those of the
        input, its other pieces are among them, without a score.
    """
    pairs = Pairs(*(tuple(sorted({int(index) for index in top[name]})) for name in ("probe", "train")))
    scoring = Scoring(similarity=view.similarity, weighting=view.weighting)
    split = split_scores(directory, copy, setup, pairs, scoring, range(len(directory.ledger.snapshots())))
    rows = {train: row for row, train in enumerate(pairs.train)}
    tables = []
    for probe, train in top[["probe", "train"]].drop_duplicates().itertuples(index=False):
        own = split.tokens.assign(score=split.scores[rows[train]])
        both = pd.concat([own[own["probe"] == probe], split.others[split.others["probe"] == probe]])
        both = both.sort_values("position", kind="stable").fillna({"target": -1, "term": 0})
        tables.append(both.astype({"target": int, "term": int}).assign(train=train))
    columns = ["probe", "train", "position", "text", "target", "term", "score"]
    whole: pd.DataFrame = pd.concat(tables, ignore_index=True).reindex(columns=columns)
    return whole
