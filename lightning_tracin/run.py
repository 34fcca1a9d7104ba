"""`TracInRun`: reads a run directory and derives every score and table from the stored products."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from lightning_tracin.analysis.reliance import Floats, Interval, Tally
from lightning_tracin.analysis.reliance_by_snapshot import reliance_by_snapshot
from lightning_tracin.analysis.score_array import score_array
from lightning_tracin.analysis.scorer import Scorer
from lightning_tracin.analysis.scores import Scores, require_k
from lightning_tracin.analysis.top_k import Strongest, tables_of
from lightning_tracin.attribution.early_products import warn_of_early_products
from lightning_tracin.attribution.method import Method, method_of
from lightning_tracin.config import DAMPING, Blocks, Measure, Preconditioning, Scoring, Sign, Similarity, Weighting
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.filesystem import Place, place
from lightning_tracin.storage.records import RunRecord
from lightning_tracin.storage.sample_table import SampleTable
from lightning_tracin.storage.shards import Ingredients
from lightning_tracin.storage.snapshots import Snapshot

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule


class TracInRun:
    """A run, opened for reading.

    Attributes:
        directory: the files of the run.
        path: its folder.
        method: the attribution method that computed its influence.
        train: table of the train samples.
        probes: table of the probes.
        queries: the columns of `influence`: the probes, or their languages where only language means were computed.

    Example:
        A run is the result of a fit with `TracInCallback`; skipped here, because it takes a fit.

        >>> run = TracInRun.open("runs/xnli")  # doctest: +SKIP
        >>> run.influence(similarity="dot").sel(probe=3)  # the influence of each train sample on probe 3  # doctest: +SKIP
        >>> run.reliance(k=50).query("probe_language == 'sw'")  # which languages Swahili relies on  # doctest: +SKIP
        >>> run.top(probe=3, sign="negative")  # the train samples that hurt probe 3 most  # doctest: +SKIP
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self.path: Path = directory.path
        directory.ledger.snapshots()  # report missing or damaged files now
        self.train: SampleTable = directory.samples("train")
        self.probes: SampleTable = directory.samples("probes")
        self.method: Method = method_of(self.record.options)
        self.queries: SampleTable = self.method.queries(self.probes)
        self._scorer = Scorer(directory, self.method)

    @classmethod
    def open(cls, path: Place) -> TracInRun:
        """Open a run directory.

        Raises:
            TracInError: there is no run, or one of its files is missing or damaged.

        Example:
            >>> try:
            ...     TracInRun.open("no/such/folder")
            ... except TracInError as error:
            ...     print(str(error).partition(";")[0])
            no/such/folder/run.json is missing
        """
        run = cls(RunDirectory(place(path)))
        warn_of_early_products(run.directory, run.method)
        return run

    @property
    def record(self) -> RunRecord:
        """The content of `run.json`."""
        return self.directory.record()

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """The snapshots, in order; while the fit goes on, more are added."""
        return self.directory.ledger.snapshots()

    @property
    def is_large(self) -> bool:
        """Whether the influence matrix takes more than 512 MiB; tables are then computed shard by shard."""
        return self._scorer.is_large

    def ingredients(self, snapshot: int) -> Ingredients:
        """Inner products and norms at one snapshot, per optimizer group; whitened ones are of all groups together.

        Raises:
            TracInError: they were not computed, or only in part.
        """
        return self._scorer.ingredients(snapshot, Scoring())

    def scores(self, snapshot: int, scoring: Scoring | None = None) -> Scores:
        """Influence at one snapshot alone: array [train, queries]."""
        return self._scorer.scores(snapshot, scoring or Scoring())

    def influence(
        self,
        similarity: Similarity = "cosine",
        weighting: Weighting = "uniform",
        snapshots: Sequence[int] | None = None,
        preconditioner: Preconditioning | None = None,
        damping: float = DAMPING,
        blocks: Blocks = "whole",
    ) -> xr.DataArray:
        """Influence of every train sample on every probe, summed over snapshots.

        Args:
            similarity: `"cosine"`, `"dot"` or `"relatif"`.
            weighting: `"uniform"` or `"learning_rate"`. With `"fisher"`, learning rates enter before the whitening (see
                `analysis.fisher`).
            snapshots: indices of the snapshots to sum. None: all.
            preconditioner: `"adam"` or `"fisher"` if the run supports it, or `"none"`. None: the one that the run was made with.
            damping: for `"fisher"`: the ridge, as a fraction of F's trace (see `analysis.fisher`).
            blocks: for `"fisher"`: whiten all features together (`"whole"`) or each `"layer"` separately.

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
        for train, scores in self._scorer.summed(self._scorer.chosen(snapshots), scoring):
            total[train] = scores
        return score_array(total, self.train, self.queries, similarity, weighting, self._scorer.preconditioner(scoring) or "none")

    def reliance(
        self,
        k: int = 100,
        sign: Sign = "positive",
        cumulative: bool = False,
        measure: Measure = "share",
        similarity: Similarity = "cosine",
        weighting: Weighting = "uniform",
        snapshots: Sequence[int] | None = None,
        interval: Interval | None = None,
        by: Literal["layer"] | None = None,
        preconditioner: Preconditioning | None = None,
        damping: float = DAMPING,
        blocks: Blocks = "whole",
    ) -> pd.DataFrame:
        """Reliance of every probe language on every train language, at every snapshot.

        Args:
            k: how many of each probe's strongest train samples to count.
            sign: `"positive"` for proponents, `"negative"` for opponents.
            cumulative: sum influence up to each snapshot, instead of taking each snapshot alone.
            measure: `"share"` of the top k, `"mass"` (share of all influence of that sign) or `"mean"` influence of a sample.
            similarity: see `influence`.
            weighting: see `influence`.
            snapshots: indices of the snapshots to show. None: all.
            interval: bootstrap over probes. None: 95%.
            by: `"layer"` computes a table for each layer from its own gradients, from the embeddings to the head.
            preconditioner: see `influence`.
            damping: see `influence`.
            blocks: see `influence`.

        Returns:
            One row for each snapshot, probe language and train language (and layer). The columns are `reliance_by_snapshot.RELIANCE_COLUMNS`, with
            `layer` after `step` for `by="layer"`.

        Raises:
            TracInError: an argument is invalid, `k` is out of range, or the run has language means only and `measure` is not
                `"mean"`.

        Example:
            Skipped: needs a run directory.

            >>> run.reliance(k=50, snapshots=[0, 1])[["snapshot", "probe_language", "train_language", "value"]]  # doctest: +SKIP
            >>> run.reliance(by="layer")  # doctest: +SKIP
        """
        if self.method.measure == "mean" and measure != "mean":
            raise TracInError(
                f"measure={measure!r} ranks train samples for each probe, but {self.path} holds language means only; use "
                "measure='mean', or run the fit with `language_means=False`."
            )
        if by not in (None, "layer"):
            raise TracInError(f"by should be 'layer' or None, but is {by!r}.")
        scoring = Scoring(
            similarity=similarity, weighting=weighting, preconditioner=preconditioner, damping=damping, blocks=blocks
        )
        whole = reliance_by_snapshot(
            self._scorer,
            scoring,
            self.snapshots,
            self._scorer.chosen(snapshots),
            lambda: Tally(self.train.language, k, sign, measure),
            self.queries.language,
            cumulative,
            by == "layer",
            interval,
        )
        if self.method.measure == "mean":
            whole["probes"] = whole["probe_language"].map(self.probes.counts())
        return whole

    def top(
        self,
        probe: int,
        k: int = 10,
        sign: Sign = "positive",
        similarity: Similarity = "cosine",
        weighting: Weighting = "uniform",
        snapshots: Sequence[int] | None = None,
        preconditioner: Preconditioning | None = None,
        damping: float = DAMPING,
        blocks: Blocks = "whole",
    ) -> pd.DataFrame:
        """The strongest train samples of one probe (or query), with their texts; the scores are those of `influence`.

        Returns:
            Columns train (index), item, language, label, score, text; strongest first.

        Raises:
            TracInError: there is no such probe, or `k` is out of range.

        Example:
            Skipped: needs a run directory.

            >>> run.top(probe=3, k=5)[["language", "score", "text"]]  # doctest: +SKIP
        """
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
        for train, total in self._scorer.summed(self._scorer.chosen(snapshots), scoring):
            strongest.add(train, total[:, list(probes)])
        return tables_of(strongest, self.train)

    def representations(self) -> tuple[Floats, Floats]:
        """The fitted model's sentence representations of the train samples and of the probes: [samples, width] each.

        Raises:
            TracInError: the run has none, because its influence was not computed or its module contains no transformers model.
        """
        train, probes = self.directory.read_representations()
        return train.double().numpy(), probes.double().numpy()

    def add_probes(
        self,
        module: LightningModule,
        probes: Any,
        language_column: str | tuple[str, ...] | None = None,
        item_column: str | None = None,
        languages: Sequence[str] | None = None,
    ) -> TracInRun:
        """Add probes to a run with `projection_dim`, without another pass over the train samples.

        Args:
            module: a module of the fit's class and architecture. Parameters that the fit trained may have any value; all others
                need the fit's.
            probes: a DataLoader of the new probes, or several.
            language_column: as in `TracInCallback`. None: as in the fit.
            item_column: as in `TracInCallback`. None: as in the fit.
            languages: each new probe's language, instead of a column.

        Returns:
            The run with the new probes, which come after the old ones.

        Raises:
            TracInError: the run has no features, a snapshot's weights were not kept, the probes' languages are not found, or
                another process works in the run directory.

        Example:
            >>> run = run.add_probes(module, DataLoader(swahili, batch_size=32))  # doctest: +SKIP
        """
        # Like that in `score`, an import against the arrows, named in the contracts: reading a run does not need Lightning.
        from lightning_tracin.trainer.add_probes import add_probes

        add_probes(self.directory, module, probes, languages, language_column, item_column)
        return TracInRun(self.directory)

    def score(self, module: LightningModule, candidates: Any, probes: Any = None, **settings: Any) -> xr.DataArray:
        """Influence that samples would have on the probes as train samples; the run directory does not change.

        Args:
            module: as in `add_probes`.
            candidates: a DataLoader of the samples.
            probes: the probes as the fit had them; not needed for a run with a `projection_dim`.
            settings: options of `influence`, and `language_column`, `item_column`, `languages`, `languages_of_probes`, `mask`,
                `memory_budget` and `progress` as in `attribute`.

        Returns:
            As `influence` returns it, with `candidate` for `train`, weighted as if visited as often as the average train sample.

        Raises:
            TracInError: as for `attribute` and `influence`; or the run needs its probes again.

        Example:
            >>> run.score(module, candidates, val_loader).groupby("candidate_language").mean()  # doctest: +SKIP
        """
        from lightning_tracin.trainer.score_candidates import scored_candidates

        how = {name: settings.pop(name) for name in signature(self.influence).parameters if name in settings}
        chosen = self._scorer.chosen(how.get("snapshots"))
        self._scorer.preconditioner(Scoring(**{name: one for name, one in how.items() if name != "snapshots"}))
        with scored_candidates(self.directory, module, candidates, probes, chosen, **settings) as scratch:
            scores = TracInRun(scratch).influence(**how)
        names = {f"train{suffix}": f"candidate{suffix}" for suffix in ("", "_language", "_item")}
        named: xr.DataArray = scores.rename(names)
        return named

    def per_token(
        self,
        module: LightningModule,
        train_loader: Any,
        probe_loaders: Any,
        probes: Sequence[int],
        train: Sequence[int] | None = None,
        **settings: Any,
    ) -> xr.DataArray:
        """Influence of train samples on each token of some probes; a probe's tokens add up to its `influence`.

        Args:
            module: as in `add_probes`.
            train_loader: the fit's train samples, in the same dataset order.
            probe_loaders: the probes as the fit had them.
            probes: indices of the probes to split.
            train: indices of the train samples. None: all.
            settings: options of `influence`; `tokenizer` for the tokens' texts, if neither module nor collate function holds
                one; `token_language_column`, a column of the probes with a list of languages, one for each token id; `mask`,
                `languages`, `languages_of_probes`, `memory_budget` and `progress` as in `attribute`.

        Returns:
            Dimensions `train` and `token`; each token that counts has its `probe`, `position`, `text`, `target` and `term`, and
            its `token_language` if a column was named.

        Raises:
            TracInError: as for `attribute`; there is no such probe or train sample, or the loss of a token cannot be seen.

        Example:
            >>> mixed = run.per_token(module, *loaders, [3], token_language_column="languages")  # doctest: +SKIP
            >>> mixed.groupby("token_language").sum().groupby("train_language").mean()  # doctest: +SKIP
        """
        from lightning_tracin.trainer.token_scores import Pairs, token_scores

        how = {name: settings.pop(name) for name in signature(self.influence).parameters if name in settings}
        chosen, scoring = self._scorer.chosen(how.pop("snapshots", None)), Scoring(**how)
        if self._scorer.preconditioner(scoring) == "fisher":
            raise TracInError("Per-token scores are not whitened; take `preconditioner='none'`.")
        pairs = Pairs.of(probes, train, self.record.probes.count, len(self.train))
        return token_scores(self.directory, module, train_loader, probe_loaders, pairs, scoring, chosen, **settings)
