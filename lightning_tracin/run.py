"""The reading face: every score and table of a run, derived from what its directory holds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from lightning_tracin.directory import RunDirectory
from lightning_tracin.errors import TracInError
from lightning_tracin.influence import Scores, Sign, Similarity, Weighting, group_weights, ranked, snapshot_scores
from lightning_tracin.ingredients import Ingredients
from lightning_tracin.reliance import COLUMNS, Interval, Measure, reliance_table
from lightning_tracin.snapshots import Snapshot
from lightning_tracin.tables import SampleTable

RELIANCE_COLUMNS = ("snapshot", "epoch", "step", *COLUMNS)


class TracInRun:
    """One run, opened to read.

    Attributes:
        snapshots: the run's snapshots, in order.
        train: table of the train samples.
        probes: table of the probes.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        self.record = directory.record()
        self.snapshots: tuple[Snapshot, ...] = directory.ledger.snapshots()
        self.train: SampleTable = directory.samples("train")
        self.probes: SampleTable = directory.samples("probes")
        self._ingredients = lru_cache(maxsize=2)(self._read)  # reliance of both signs, at one snapshot after the other

    @classmethod
    def open(cls, path: str | Path) -> TracInRun:
        """Open a run directory.

        Raises:
            TracInError: there is no run, or a file of it is missing or damaged.
        """
        return cls(RunDirectory(Path(path)))

    @property
    def path(self) -> Path:
        """The run directory."""
        return self._directory.path

    def ingredients(self, snapshot: int) -> Ingredients:
        """Inner products and norms at one snapshot.

        Raises:
            TracInError: they were not computed, or not completely.
        """
        return self._ingredients(snapshot)

    def _read(self, snapshot: int) -> Ingredients:
        return self._directory.ingredients(self.snapshots[snapshot]).read()

    def scores(self, snapshot: int, similarity: Similarity = "cosine", weighting: Weighting = "uniform") -> Scores:
        """Influence at one snapshot: array [train, probes]."""
        chosen = self.snapshots[snapshot]
        weights = group_weights(weighting, chosen.learning_rates, chosen.visits)
        return snapshot_scores(self.ingredients(snapshot), similarity, weights)

    def influence(
        self,
        similarity: Similarity = "cosine",
        weighting: Weighting = "uniform",
        snapshots: Sequence[int] | None = None,
    ) -> xr.DataArray:
        """Influence of every train sample on every probe, summed over snapshots.

        Args:
            similarity: `"cosine"`, `"dot"` or `"relatif"`.
            weighting: `"uniform"` or `"learning_rate"`.
            snapshots: indices of the snapshots to sum; None = all.

        Returns:
            Dimensions `train` and `probe` (indices), with `train_language`, `train_item`, `probe_language` and `probe_item`.

        Raises:
            TracInError: a snapshot has no ingredients, or a choice is unknown.
        """
        total = self._sum(similarity, weighting, self._chosen(snapshots))
        return xr.DataArray(
            total,
            dims=("train", "probe"),
            coords={
                "train": np.arange(len(self.train)),
                "probe": np.arange(len(self.probes)),
                "train_language": ("train", list(self.train.language)),
                "train_item": ("train", list(self.train.item)),
                "probe_language": ("probe", list(self.probes.language)),
                "probe_item": ("probe", list(self.probes.item)),
            },
            name="influence",
            attrs={"similarity": similarity, "weighting": weighting},
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

        Returns:
            One line for each snapshot, probe language and train language; columns `RELIANCE_COLUMNS`.
        """
        chosen = self._chosen(snapshots)
        tables = []
        total: Scores | None = None
        for index in range(max(chosen) + 1) if cumulative else chosen:
            scores = self.scores(index, similarity, weighting)
            if cumulative:
                total = scores if total is None else total + scores
                scores = total
            if index not in chosen:
                continue
            table = reliance_table(scores, self.train.language, self.probes.language, k, sign, measure, interval)
            snapshot = self.snapshots[index]
            tables.append(table.assign(snapshot=snapshot.index, epoch=snapshot.epoch, step=snapshot.step))
        whole: pd.DataFrame = pd.concat(tables, ignore_index=True)[list(RELIANCE_COLUMNS)]
        return whole

    def top(
        self,
        probe: int,
        k: int = 10,
        sign: Sign = "positive",
        similarity: Similarity = "cosine",
        weighting: Weighting = "uniform",
        snapshots: Sequence[int] | None = None,
    ) -> pd.DataFrame:
        """The strongest train samples of one probe, with their texts.

        Returns:
            Columns train (index), item, language, label, score, text; strongest first.

        Raises:
            TracInError: there is no such probe, or k is out of range.
        """
        if not 0 <= probe < len(self.probes):
            raise TracInError(f"There is no probe {probe}; the run has probes 0 to {len(self.probes) - 1}.")
        scores = self._sum(similarity, weighting, self._chosen(snapshots))
        return top_table(scores[:, [probe]], self.train, k, sign)[0]

    def _sum(self, similarity: Similarity, weighting: Weighting, chosen: Sequence[int]) -> Scores:
        total = self.scores(chosen[0], similarity, weighting)
        for index in chosen[1:]:
            total += self.scores(index, similarity, weighting)
        return total

    def _chosen(self, snapshots: Sequence[int] | None) -> list[int]:
        chosen = list(range(len(self.snapshots))) if snapshots is None else sorted(set(snapshots))
        if not chosen:
            raise TracInError(f"{self.path} has no snapshots to sum; the fit ended before the first one was taken.")
        unknown = [index for index in chosen if not 0 <= index < len(self.snapshots)]
        if unknown:
            raise TracInError(f"There is no snapshot {unknown[0]}; the run has {len(self.snapshots)}, numbered from 0.")
        return chosen


def top_table(scores: Scores, train: SampleTable, k: int, sign: Sign) -> list[pd.DataFrame]:
    """The k strongest train samples of each probe, one table a probe.

    Args:
        scores: influence [train, probes].
        train: table of the train samples.
        k: how many.
        sign: proponents or opponents.

    Raises:
        TracInError: k is out of range.
    """
    if not 1 <= k <= len(scores):
        raise TracInError(f"k should be between 1 and the number of train samples ({len(scores)}), but is {k}.")
    order = ranked(scores, sign)[:k]
    tables = []
    for probe in range(scores.shape[1]):
        indices = order[:, probe]
        chosen = train.take(indices.tolist())
        tables.append(
            pd.DataFrame(
                {
                    "train": indices,
                    "item": chosen.item,
                    "language": chosen.language,
                    "label": chosen.label,
                    "score": scores[indices, probe],
                    "text": chosen.text,
                }
            )
        )
    return tables
