"""The reading face: every score and table of a run, derived from what its directory holds."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from lightning_tracin.analysis.reliance import COLUMNS, Floats, Interval, Tally
from lightning_tracin.analysis.scorer import Scorer
from lightning_tracin.analysis.scores import Scores, require_k
from lightning_tracin.analysis.top_k import Strongest
from lightning_tracin.attribution.method import Method, method_of
from lightning_tracin.attribution.prepare import Sources
from lightning_tracin.config import DAMPING, Asked, Blocks, Measure, SampleColumns, Scoring, Sign, Similarity, Weighting
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.filesystem import Place, place
from lightning_tracin.storage.records import RunRecord
from lightning_tracin.storage.sample_table import SampleTable
from lightning_tracin.storage.shards import Indices, Ingredients
from lightning_tracin.storage.snapshots import Snapshot

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule

RELIANCE_COLUMNS = ("snapshot", "epoch", "step", *COLUMNS)


class TracInRun:
    """One run, opened to read.

    Attributes:
        method: how its influence was computed.
        train: table of the train samples.
        probes: table of the probes.
        queries: what influence is on: the probes, or their languages where only means were computed.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        directory.ledger.snapshots()  # what is missing or damaged is said now
        self.train: SampleTable = directory.samples("train")
        self.probes: SampleTable = directory.samples("probes")
        self.method: Method = method_of(self.record.options)
        self.queries: SampleTable = self.method.queries(self.probes)
        self._scorer = Scorer(directory, self.method)

    @classmethod
    def open(cls, path: Place) -> TracInRun:
        """Open a run directory.

        Raises:
            TracInError: there is no run, or a file of it is missing or damaged.
        """
        run = cls(RunDirectory(place(path)))
        if run._may_lack_products():
            warnings.warn(
                f"The exact scores of {run.path} may be wrong: versions before 0.2 could leave out products of short probes "
                "behind long ones, and this run has no spot check. `lightning-tracin attribute` checks it where the snapshots' "
                f"weights were kept (delete {run.path / 'ingredients'} first to have all of it computed again); else fit again.",
                stacklevel=2,
            )
        return run

    def _may_lack_products(self) -> bool:
        """Whether a version may have computed this that was wrong where exact products had probes in several batches.

        It wrote down no spot check.
        """
        if not self.method.banks_probes or self.record.probes.count <= self.record.options.batch_size:
            return False
        unchecked = [snapshot for snapshot in self.snapshots if snapshot.name not in self.record.spot_checks]
        return any(self.method.store(self._directory, snapshot).folder.exists() for snapshot in unchecked)

    @property
    def record(self) -> RunRecord:
        """What `run.json` says."""
        return self._directory.record()

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """The run's snapshots, in order; a run that is being fitted gains more."""
        return self._directory.ledger.snapshots()

    @property
    def directory(self) -> RunDirectory:
        """Where the parts of the run stand."""
        return self._directory

    @property
    def is_large(self) -> bool:
        """Whether a matrix of influence takes more than 512 MiB; tables are then made shard by shard."""
        return self._scorer.is_large

    @property
    def path(self) -> Path:
        """The run directory."""
        return self._directory.path

    def ingredients(self, snapshot: int) -> Ingredients:
        """Inner products and norms at one snapshot, by optimizer group.

        Raises:
            TracInError: they were not computed, or not completely.
        """
        return self._scorer.ingredients(snapshot, Scoring())

    def scores(self, snapshot: int, scoring: Scoring | None = None) -> Scores:
        """Influence at one snapshot: array [train, queries]."""
        return self._scorer.scores(snapshot, scoring or Scoring())

    def influence(
        self,
        similarity: Similarity = "cosine",
        weighting: Weighting = "uniform",
        snapshots: Sequence[int] | None = None,
        preconditioner: Asked | None = None,
        damping: float = DAMPING,
        blocks: Blocks = "whole",
    ) -> xr.DataArray:
        """Influence of every train sample on every probe, summed over snapshots.

        Args:
            similarity: `"cosine"`, `"dot"` or `"relatif"`.
            weighting: `"uniform"` or `"learning_rate"`.
            snapshots: indices of the snapshots to sum; None = all.
            preconditioner: `"adam"` or `"fisher"` where the run has what these need, `"none"`; None = as the run was made.
            damping: of `"fisher"`; see `whitening.whitened`.
            blocks: of `"fisher"`: whiten the features as a `"whole"`, or each `"layer"` by itself.

        Returns:
            Dimensions `train` and `probe` (indices), with `train_language`, `train_item`, `probe_language` and `probe_item`.

        Raises:
            TracInError: a snapshot has no ingredients, or a choice is unknown.
        """
        scoring = Scoring(
            similarity=similarity, weighting=weighting, preconditioner=preconditioner, damping=damping, blocks=blocks
        )
        total: Scores = np.zeros((len(self.train), len(self.queries)))
        for train, scores in self._summed(scoring, self._chosen(snapshots)):
            total[train] = scores
        return xr.DataArray(
            total,
            dims=("train", "probe"),
            coords={
                "train": np.arange(len(self.train)),
                "probe": np.arange(len(self.queries)),
                "train_language": ("train", list(self.train.language)),
                "train_item": ("train", list(self.train.item)),
                "probe_language": ("probe", list(self.queries.language)),
                "probe_item": ("probe", list(self.queries.item)),
            },
            name="influence",
            attrs={
                "similarity": similarity,
                "weighting": weighting,
                "preconditioner": self._scorer.preconditioner(scoring) or "none",
            },
        )

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
        preconditioner: Asked | None = None,
        damping: float = DAMPING,
        blocks: Blocks = "whole",
    ) -> pd.DataFrame:
        """Reliance of every probe language on every train language, at every snapshot.

        Args:
            k: how many of the strongest train samples of a probe count.
            sign: `"positive"` for proponents, `"negative"` for opponents.
            cumulative: use the influence summed up to each snapshot, not that of the snapshot alone.
            measure: `"share"` of the top k, `"mass"` (share of the positive influence) or `"mean"` influence of a sample.
            similarity: see `influence`.
            weighting: see `influence`.
            snapshots: indices of the snapshots to show; None = all.
            interval: bootstrap over probes; None takes 95 %.
            by: `"layer"` gives a table for each layer alone, from the embeddings to the head, by the layer's own gradients.
            preconditioner: see `influence`.
            damping: see `influence`.
            blocks: see `influence`.

        Returns:
            One line for each snapshot, probe language and train language (and layer); columns `RELIANCE_COLUMNS`, and `layer`
            behind `step` where it is asked for.

        Raises:
            TracInError: a choice is unknown, `k` is out of range, or the run holds language means and another measure than
                `"mean"` is asked for.
        """
        if self.method.measure == "mean" and measure != "mean":
            raise TracInError(
                f"measure={measure!r} ranks train samples for each probe, but {self.path} holds language means only; take "
                "measure='mean', or run the fit with `language_means=False`."
            )
        if by not in (None, "layer"):
            raise TracInError(f"by should be 'layer' or None, but is {by!r}.")
        scoring = Scoring(
            similarity=similarity, weighting=weighting, preconditioner=preconditioner, damping=damping, blocks=blocks
        )
        chosen = self._chosen(snapshots)
        tallies: dict[tuple[int, str], Tally] = {}

        def add(index: int, layer: str, train: Indices, scores: Scores) -> None:
            if (index, layer) not in tallies:
                tallies[index, layer] = Tally(self.train.language, k, sign, measure)
            tallies[index, layer].add(train, scores)

        for together in [range(max(chosen) + 1)] if cumulative else [[index] for index in chosen]:
            for train, each in self._scorer.blocks(together, scoring, by_layer=by == "layer"):
                total: dict[str, Scores] = {}
                for index, scores in zip(together, each, strict=True):
                    total = {layer: one + total[layer] if layer in total else one for layer, one in scores.items()}
                    for layer, one in total.items() if index in chosen else ():
                        add(index, layer, train, one)
        tables = []
        for (index, layer), tally in tallies.items():
            about = self.snapshots[index].record
            table = tally.table(self.queries.language, interval)
            tables.append(table.assign(snapshot=about.index, epoch=about.epoch, step=about.step, layer=layer))
        columns = [*RELIANCE_COLUMNS[:3], *([] if by is None else ["layer"]), *RELIANCE_COLUMNS[3:]]
        whole: pd.DataFrame = pd.concat(tables, ignore_index=True)[columns]
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
        preconditioner: Asked | None = None,
    ) -> pd.DataFrame:
        """The strongest train samples of one probe (or query), with their texts.

        Returns:
            Columns train (index), item, language, label, score, text; strongest first.

        Raises:
            TracInError: there is no such probe, or k is out of range.
        """
        if not 0 <= probe < len(self.queries):
            raise TracInError(f"There is no probe {probe}; the run has probes 0 to {len(self.queries) - 1}.")
        (table,) = self.tops(
            [probe], k, sign, Scoring(similarity=similarity, weighting=weighting, preconditioner=preconditioner), snapshots
        )
        return table

    def tops(
        self, probes: Sequence[int], k: int, sign: Sign, scoring: Scoring, snapshots: Sequence[int] | None = None
    ) -> list[pd.DataFrame]:
        """The strongest train samples of some probes, one table a probe; see `top`.

        Raises:
            TracInError: see `top`.
        """
        require_k(k, len(self.train))
        strongest = Strongest(k, sign)
        for train, total in self._summed(scoring, self._chosen(snapshots)):
            strongest.add(train, total[:, list(probes)])
        found, scores = strongest.found()
        return [top_table(found[:, i], scores[:, i], self.train) for i in range(len(probes))]

    def representations(self) -> tuple[Floats, Floats]:
        """The fitted model's own sentence representations, of the train samples and of the probes: [samples, width] each.

        Raises:
            TracInError: the run has none: it was not attributed, or its module holds no model of transformers.
        """
        train, probes = self._directory.read_representations()
        return train.double().numpy(), probes.double().numpy()

    def add_probes(
        self,
        module: LightningModule,
        probes: Any,
        language_column: str = "language",
        item_column: str | None = None,
        languages: Sequence[str] | None = None,
    ) -> TracInRun:
        """Add probes to a run that was made with a `projection_dim`; the train samples are not looked at again.

        Args:
            module: a module like the fit's; its weights do not matter.
            probes: a DataLoader of the new probes, or several.
            language_column: as in `TracInCallback`.
            item_column: as in `TracInCallback`.
            languages: each new probe's language, given outright.

        Returns:
            The run as it is now; the new probes come behind those that it had.

        Raises:
            TracInError: the run holds no features, a snapshot's weights were not kept, the probes' languages are not found, or
                another process works in the run directory.
        """
        from lightning_tracin import add_probes  # loads Lightning, which reading a run does not need

        columns = SampleColumns(language_column=language_column, item_column=item_column)
        add_probes(self._directory, module, Sources(None, probes, None, languages), columns)
        return TracInRun(RunDirectory(self.path))

    def _summed(self, scoring: Scoring, chosen: Sequence[int]) -> Iterator[tuple[Indices, Scores]]:
        """Train samples, block by block, with their influence summed over snapshots."""
        for train, each in self._scorer.blocks(chosen, scoring):
            total = next(each)[""].copy()  # scores are kept for the next table
            for one in each:
                total += one[""]
            yield train, total

    def _chosen(self, snapshots: Sequence[int] | None) -> list[int]:
        chosen = list(range(len(self.snapshots))) if snapshots is None else sorted(set(snapshots))
        if not chosen:
            raise TracInError(f"{self.path} has no snapshots to sum; the fit ended before the first one was taken.")
        unknown = [index for index in chosen if not 0 <= index < len(self.snapshots)]
        if unknown:
            raise TracInError(f"There is no snapshot {unknown[0]}; the run has {len(self.snapshots)}, numbered from 0.")
        return chosen


def top_table(indices: Indices, scores: Scores, train: SampleTable) -> pd.DataFrame:
    """The strongest train samples of one probe, as `TracInRun.top` shows them.

    Args:
        indices: of the train samples, strongest first.
        scores: of these.
        train: table of the train samples.
    """
    chosen = train.take(indices.tolist())
    columns = {"train": indices, "item": chosen.item, "language": chosen.language, "label": chosen.label}
    table: pd.DataFrame = pd.DataFrame({**columns, "score": scores, "text": chosen.text})
    return table
