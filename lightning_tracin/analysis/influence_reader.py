"""Influence, reliance and the strongest train samples of a run, derived from the products in its directory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import pandas as pd
import xarray as xr

from lightning_tracin.analysis.contributions import strongest_contributions
from lightning_tracin.analysis.exchange import units_of
from lightning_tracin.analysis.reliance_by_snapshot import reliance_by_snapshot
from lightning_tracin.analysis.resampling import Interval, checked_interval
from lightning_tracin.analysis.score_array import score_array
from lightning_tracin.analysis.scorer import Readable, Scorer
from lightning_tracin.analysis.scores import Scores, is_index, require_k
from lightning_tracin.analysis.tally import SIGNED, Tally, TrainLanguages
from lightning_tracin.analysis.top_k import Strongest, tables_of
from lightning_tracin.config import (
    DAMPING,
    Blocks,
    Damping,
    Measure,
    Preconditioning,
    Scoring,
    Sign,
    Similarity,
    Weighting,
    check_choice,
)
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.account import AccountStore
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.records import RunRecord
from lightning_tracin.storage.sample_table import SampleTable
from lightning_tracin.storage.shards import Indices, Ingredients
from lightning_tracin.storage.snapshots import Snapshot

#: What ranks train samples.
Ranking = Literal["influence", "contribution"]


class Measured(Readable, Protocol):
    """What tables need from the method of a run; see `attribution.method.Method`."""

    measure: Measure

    def queries(self, probes: SampleTable) -> SampleTable:
        """What influence is measured on: the probes, or groups of them."""


class InfluenceReader(ABC):
    """Scores and tables of the influence in a run directory; files are read when they are needed.

    A directory may hold contributions only. It has no influence, and what needs some raises an error.

    Args:
        directory: the run directory.

    Attributes:
        directory: its files.
        path: its folder.
        account: the files of its contributions.
        has_influence: whether it is of a fit with `TracInCallback`.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self.path: Path = directory.path
        self.account = AccountStore(directory.path)
        self.has_influence = directory.holds_run or not self.account.is_there

    @property
    @abstractmethod
    def method(self) -> Measured:
        """The attribution method that computed its influence."""

    @property
    def _influence_files(self) -> RunDirectory:
        """The directory, if it has influence."""
        if not self.has_influence:
            raise TracInError(f"{self.path} holds contributions only; fit with `TracInCallback` to have influence.")
        return self.directory

    @property
    def record(self) -> RunRecord:
        """The content of `run.json`.

        Raises:
            TracInError: the directory holds contributions only, or the file is damaged.
        """
        return self._influence_files.record()

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """The snapshots, in order; while the fit goes on, more are added.

        Raises:
            TracInError: the directory holds contributions only, or one of the files is missing or damaged.
        """
        return self._influence_files.ledger.snapshots()

    @cached_property
    def train(self) -> SampleTable:
        """Table of the train samples."""
        return self._influence_files.samples("train")

    @cached_property
    def _train_languages(self) -> TrainLanguages:
        return TrainLanguages.of_table(self.train)

    @cached_property
    def probes(self) -> SampleTable:
        """Table of the probes."""
        return self._influence_files.samples("probes")

    @cached_property
    def queries(self) -> SampleTable:
        """The columns of `influence`: the probes, or their languages where only language means were computed."""
        return self.method.queries(self.probes)

    @cached_property
    def _scorer(self) -> Scorer:
        return Scorer(self._influence_files, self.method)

    @property
    def is_large(self) -> bool:
        """Whether the influence matrix takes more than 512 MiB; tables are then computed shard by shard."""
        return self._scorer.is_large

    def has_layers(self, scoring: Scoring) -> bool:
        """Whether the run has these scores by layer."""
        try:
            self._scorer.require_layers(scoring)
        except TracInError:
            return False
        return True

    def ingredients(self, snapshot: int) -> Ingredients:
        """Inner products and norms at one snapshot, per optimizer group; whitened ones are of all groups together.

        Raises:
            TracInError: there is no such snapshot, or they were not computed, or only in part.
        """
        (chosen,) = self._scorer.chosen([snapshot])
        return self._scorer.ingredients(chosen, Scoring())

    def nats(self, scoring: Scoring) -> list[float] | None:
        """What turns each snapshot's scores into first-order falls of a probe's loss, in nats; None if they are no such falls."""
        return self._scorer.nats(scoring)

    def scores(self, snapshot: int, scoring: Scoring | None = None) -> Scores:
        """Influence at one snapshot alone: array [train, queries].

        Raises:
            TracInError: there is no such snapshot.
        """
        (chosen,) = self._scorer.chosen([snapshot])
        return self._scorer.scores(chosen, scoring or Scoring())

    def influence(
        self,
        similarity: Similarity = "cosine",
        weighting: Weighting = "uniform",
        snapshots: Sequence[int] | None = None,
        preconditioner: Preconditioning | None = None,
        damping: Damping = DAMPING,
        blocks: Blocks = "whole",
    ) -> xr.DataArray:
        """Influence of every train sample on every probe, summed over snapshots.

        Args:
            similarity: `"cosine"`, `"dot"` or `"relatif"`.
            weighting: `"uniform"` or `"learning_rate"`. With whitening, learning rates enter before the whitening (see
                `analysis.fisher`).
            snapshots: indices of the snapshots to sum. None: all.
            preconditioner: `"adam"`, `"adam-factored"`, `"fisher"` or `"adam-fisher"` (both) if the run supports it, or `"none"`.
                None: the one that the run was made with.
            damping: for `"fisher"` and `"adam-fisher"`: the ridge, as a fraction of F's trace, or `"steps"`: the one that follows
                from the fit's own steps (see `analysis.fisher`; needs `weighting="learning_rate"`).
            blocks: for these two: whiten all features together (`"whole"`) or each `"layer"` separately.

        Returns:
            Array with dimensions `train` and `probe` (indices) and the coordinates `train_language`, `train_item`,
            `probe_language` and `probe_item`.

        Raises:
            TracInError: a snapshot has no stored products, or an argument is invalid.

        Example:
            Skipped: needs a run directory.

            >>> influence = run.influence(weighting="learning_rate")  # doctest: +SKIP
            >>> influence.groupby("train_language").sum("train")  # what each language contributes  # doctest: +SKIP
        """
        scoring = Scoring(
            similarity=similarity, weighting=weighting, preconditioner=preconditioner, damping=damping, blocks=blocks
        )
        total: Scores = np.zeros((len(self.train), len(self.queries)))
        for train, scores in self.influence_by_block(scoring, snapshots):
            total[train] = scores
        return score_array(total, self.train, self.queries, similarity, weighting, self._scorer.metric(scoring))

    def influence_by_block(self, scoring: Scoring, snapshots: Sequence[int] | None = None) -> Iterator[tuple[Indices, Scores]]:
        """The scores of `influence` in blocks of train samples: their indices, and [block, queries]; each sample comes once.

        A run that `is_large` is read shard by shard, so that memory holds a block of it.

        Raises:
            TracInError: see `influence`.
        """
        yield from self._scorer.summed(self._scorer.chosen(snapshots), scoring)

    def reliance(
        self,
        k: int = 100,
        sign: Sign = "positive",
        cumulative: bool = False,
        measure: Measure = "sum",
        similarity: Similarity | None = None,
        weighting: Weighting | None = None,
        snapshots: Sequence[int] | None = None,
        interval: Interval | None = None,
        by: Literal["layer"] | None = None,
        preconditioner: Preconditioning | None = None,
        damping: Damping = DAMPING,
        blocks: Blocks = "whole",
    ) -> pd.DataFrame:
        """What every probe language gets from every train language, at every snapshot.

        The headline is the signed influence of a language. With `similarity="dot"` and `weighting="learning_rate"` in the metric
        of the fit's optimizer (the defaults in a fit with Adam), it is in nats, to first order: by how much its samples lowered
        the loss of a probe, if every visit is taken for a step of its own. See docs/evidence.md for what it is worth.

        Args:
            k: for shares: how many of each probe's strongest train samples to count.
            sign: `"positive"` for proponents, `"negative"` for opponents.
            cumulative: sum influence up to each snapshot, instead of taking each snapshot alone.
            measure: `"sum"` of the influence of a language's samples (what would be lost without it), `"mean"` influence of one
                of them (what one more is worth), `"share"` of the strongest k (Choenni et al. 2023) or `"mass"` (share of all
                influence of that sign).
            similarity: see `influence`. None: as in the fit's options.
            weighting: see `influence`. None: as in the fit's options.
            snapshots: indices of the snapshots to show. None: all.
            interval: bootstrap over train samples and probes. None: 95%.
            by: `"layer"` computes a table for each layer from its own gradients, from the embeddings to the head.
            preconditioner: see `influence`.
            damping: see `influence`.
            blocks: see `influence`.

        Returns:
            One row for each snapshot, probe language and train language (and layer). The columns are
            `reliance_by_snapshot.RELIANCE_COLUMNS`, with `layer` after `step` for `by="layer"`.

        Raises:
            TracInError: an argument is invalid, `k` is out of range, or the run has language means only and `measure` is
                `"share"` or `"mass"`.

        Example:
            Skipped: needs a run directory.

            >>> run.reliance(cumulative=True)[["probe_language", "train_language", "value", "contrast"]]  # doctest: +SKIP
            >>> run.reliance(measure="share", k=50, similarity="cosine", weighting="uniform")  # the study's  # doctest: +SKIP
            >>> run.reliance(by="layer")  # doctest: +SKIP
        """
        if self.method.measure == "mean" and measure not in SIGNED:
            raise TracInError(
                f"measure={measure!r} ranks train samples for each probe, but {self.path} holds language means only; use "
                "measure='sum' or 'mean', or run the fit with `language_means=False`."
            )
        if by not in (None, "layer"):
            raise TracInError(f"by should be 'layer' or None, but is {by!r}.")
        shown = self.record.options.but(similarity=similarity, weighting=weighting)
        scoring = Scoring(
            similarity=shown.similarity, weighting=shown.weighting, preconditioner=preconditioner, damping=damping, blocks=blocks
        )
        resampled = checked_interval(interval).resamples > 0
        languages = self._train_languages if resampled else self._train_languages.in_one_group()
        whole = reliance_by_snapshot(
            self._scorer,
            scoring,
            self.snapshots,
            self._scorer.chosen(snapshots),
            lambda: Tally(languages, k, sign, measure),
            self.queries.language,
            cumulative,
            by == "layer",
            interval,
            units_of(self.queries),
        )
        if self.method.measure == "mean":
            whole["probes"] = whole["probe_language"].map(self.probes.counts())
        return whole

    def top(
        self,
        probe: int | None = None,
        k: int = 10,
        sign: Sign = "positive",
        similarity: Similarity = "cosine",
        weighting: Weighting = "uniform",
        snapshots: Sequence[int] | None = None,
        preconditioner: Preconditioning | None = None,
        damping: Damping = DAMPING,
        blocks: Blocks = "whole",
        by: Ranking = "influence",
        group: str | None = None,
    ) -> pd.DataFrame:
        """The strongest train samples of one probe (or query), or those that contributed most to a probe language.

        Args:
            probe: index of the probe.
            k: number of train samples.
            sign: `"positive"` for proponents, `"negative"` for opponents.
            similarity: see `influence`, like all up to `blocks`; they do not concern contributions.
            weighting: see `influence`.
            snapshots: see `influence`.
            preconditioner: see `influence`.
            damping: see `influence`.
            blocks: see `influence`.
            by: `"influence"` on a probe, or own `"contribution"` to a group, which `ContributionCallback(samples=True)` keeps.
            group: the probe language (or other group of the account).

        Returns:
            Columns train (index), item, language, label, score, text; strongest first. Scores are those of `influence`, or nats.

        Raises:
            TracInError: there is no such probe or group, it is not named, or `k` is out of range.

        Example:
            Skipped: needs a run directory.

            >>> run.top(probe=3, k=5)[["language", "score", "text"]]  # doctest: +SKIP
            >>> run.top(by="contribution", group="uk", sign="negative")  # the most harmful samples  # doctest: +SKIP
        """
        check_choice("by", by, Ranking)
        if by == "contribution":
            if probe is not None or group is None:
                raise TracInError("by='contribution' ranks train samples for a group of probes: give `group`, and no `probe`.")
            if not self.account.is_there:
                raise TracInError(
                    f"{self.path} holds no contributions; fit with `ContributionCallback(samples=True)` to have them."
                )
            return strongest_contributions(self.account, group, k, sign)
        if probe is None or group is not None:
            raise TracInError("by='influence' ranks train samples for a single probe: give `probe`, and no `group`.")
        if not is_index(probe):
            raise TracInError(f"probe should be the index of one probe, but is {probe!r}.")
        if not 0 <= probe < len(self.queries):
            raise TracInError(f"There is no probe {probe}; the run has probes 0 to {len(self.queries) - 1}.")
        scoring = Scoring(
            similarity=similarity, weighting=weighting, preconditioner=preconditioner, damping=damping, blocks=blocks
        )
        (table,) = self.tops([probe], k, sign, scoring, snapshots)
        return table

    def tops(
        self, probes: Sequence[int], k: int, sign: Sign, scoring: Scoring, snapshots: Sequence[int] | None = None
    ) -> list[pd.DataFrame]:
        """The strongest train samples of several probes, one table per probe; see `top`.

        Raises:
            TracInError: see `top`.
        """
        require_k(k, len(self.train))
        strongest = Strongest(k, sign)
        self._scorer.rank(strongest, self._scorer.chosen(snapshots), scoring, probes)
        return tables_of(strongest, self.train)
