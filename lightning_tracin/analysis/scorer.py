"""From what a run directory stores to scores: which formula applies to what was computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache, cached

from lightning_tracin.analysis.feature_products import feature_ingredients, feature_shards
from lightning_tracin.analysis.scores import Scores, group_weights, mean_scores, snapshot_scores
from lightning_tracin.config import Blocks, Preconditioner, Scoring, Similarity
from lightning_tracin.errors import TracInError
from lightning_tracin.gradients.partition import Parts, parts_of
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.records import RunRecord
from lightning_tracin.storage.shards import Indices, Ingredients, OneShard, Shards, side_by_side
from lightning_tracin.storage.snapshots import Snapshot

#: Bytes of products that are kept: tables ask for every snapshot several times, and whitening takes seconds each time.
_KEPT = 1 << 30

#: Bytes of one matrix of scores, of which ranking and summing make several at once.
MATRIX_BYTES = 1 << 29


class Scorer:
    """Scores at the snapshots of one run.

    Args:
        directory: the run.
        record: what it says of itself.
        snapshots: its snapshots, by whose positions scores are asked for.
    """

    def __init__(self, directory: RunDirectory, record: RunRecord, snapshots: Sequence[Snapshot]) -> None:
        self._directory, self._settings, self._snapshots = directory, record.settings, snapshots
        self._train = record.train.count
        if self._settings.method == "means":
            self._columns = 2 * len(directory.samples("probes").counts())
        else:
            self._columns = record.probes.count + sum(added.count for added in record.added_probes)
        kept: LRUCache[Any, Ingredients] = LRUCache(_KEPT, getsizeof=lambda one: one.dot.nbytes)
        begun: LRUCache[Any, Shards] = LRUCache(_KEPT, getsizeof=lambda one: one.nbytes)
        self._ingredients, self._shards = cached(kept)(self._read), cached(begun)(self._begin)

    def ingredients(self, snapshot: int, scoring: Scoring, per_layer: bool = False) -> Ingredients:
        """Inner products and norms by optimizer group (or by part: group and layer).

        Raises:
            TracInError: they were not computed, or not completely; or the run has nothing for this preconditioner.
        """
        return self._ingredients(snapshot, per_layer, self._fisher(scoring))

    def _fisher(self, scoring: Scoring) -> tuple[float, Blocks] | None:
        """Damping and blocks of whitening, where there is any."""
        return (scoring.damping, scoring.blocks) if self.preconditioner(scoring) == "fisher" else None

    def _read(self, snapshot: int, per_layer: bool, fisher: tuple[float, Blocks] | None) -> Ingredients:
        chosen, into = self._snapshots[snapshot], self._into(snapshot, per_layer)
        if self._settings.method == "projected":
            return feature_ingredients(self._directory.features(chosen), self.parts(snapshot), into, fisher)
        return self._directory.ingredients(chosen).read(into)

    def _begin(self, snapshot: int, per_layer: bool, fisher: tuple[float, Blocks] | None) -> Shards:
        chosen, into = self._snapshots[snapshot], self._into(snapshot, per_layer)
        if self._settings.method == "projected":
            return feature_shards(self._directory.features(chosen), self.parts(snapshot), into, fisher)
        return self._directory.ingredients(chosen).shards(into)

    def _into(self, snapshot: int, per_layer: bool) -> tuple[int, ...] | None:
        """The group that each part is added to; None keeps the parts."""
        return None if per_layer else self.parts(snapshot).groups

    @property
    def is_large(self) -> bool:
        """Whether the matrix of one snapshot's scores is too large to work with as a whole."""
        return 8 * self._train * self._columns > MATRIX_BYTES

    def _fits(self, snapshots: Sequence[int], per_layer: bool) -> bool:
        """Whether the products of all these snapshots can be held, and scores be made of them at once."""
        numbers = 0
        for snapshot in snapshots:
            groups = self.parts(snapshot).groups
            numbers += len(groups) if per_layer else max(groups) + 1
        return not self.is_large and 4 * numbers * self._train * self._columns <= _KEPT

    def blocks(
        self, snapshots: Sequence[int], scoring: Scoring, by_layer: bool = False
    ) -> Iterator[tuple[Indices, Iterator[dict[str, Scores]]]]:
        """Train samples, block by block, with their influence at each snapshot in turn: layer -> [block, queries].

        Every train sample comes once: all in one block, in order, where the products of all these snapshots can be held; else
        as they stand in the shards, of which one of each snapshot is in memory, and those that are read ahead.

        Args:
            snapshots: positions of the snapshots, side by side.
            scoring: which score.
            by_layer: for each layer alone, else under the name "".

        Raises:
            TracInError: see `ingredients`; there are no scores by layer.
        """
        if by_layer:
            self._require_layers(scoring)
        each: list[Shards]
        if self._fits(snapshots, by_layer):
            each = [OneShard(self.ingredients(snapshot, scoring, by_layer)) for snapshot in snapshots]
        else:
            each = [self._shards(snapshot, by_layer, self._fisher(scoring)) for snapshot in snapshots]
        for train, found in side_by_side(each):
            named = self._layered if by_layer else self._whole
            yield train, (named(snapshot, one, scoring) for snapshot, one in zip(snapshots, found, strict=True))

    def _whole(self, snapshot: int, ingredients: Ingredients, scoring: Scoring) -> dict[str, Scores]:
        return {"": self._scores(ingredients, scoring.similarity, self._weights(snapshot, scoring))}

    def parts(self, snapshot: int) -> Parts:
        """What the ingredients of a snapshot are kept by."""
        return parts_of(self._snapshots[snapshot].record.groups, self._settings.per_layer)

    def preconditioner(self, scoring: Scoring) -> Preconditioner | None:
        """What scores are taken under.

        Raises:
            TracInError: the run holds nothing to take them under it.
        """
        asked, made = scoring.preconditioner, self._settings.preconditioner
        if asked is None or asked == made:
            return made
        if asked == "fisher" and self._settings.method == "projected":
            return asked
        if asked == "none" and made != "adam":
            return None
        remedy = {
            "adam": "run the fit with `TracInCallback(preconditioner='adam')`",
            "fisher": "run the fit with a `projection_dim`",
            "none": "run the fit without `preconditioner`",
        }[asked]
        raise TracInError(f"{self._directory.path} holds nothing to score with preconditioner={asked!r}; {remedy}.")

    def scores(self, snapshot: int, scoring: Scoring) -> Scores:
        """Influence at one snapshot: [train, queries]."""
        return self._scores(self.ingredients(snapshot, scoring), scoring.similarity, self._weights(snapshot, scoring))

    def _weights(self, snapshot: int, scoring: Scoring) -> npt.NDArray[np.float64]:
        chosen = self._snapshots[snapshot]
        return group_weights(scoring.weighting, chosen.learning_rates, chosen.visits)

    def _require_layers(self, scoring: Scoring) -> None:
        """Refuse what has no scores by layer.

        Raises:
            TracInError: products were not kept by layer, or not so that this score follows from them.
        """
        if not self._settings.per_layer:
            raise TracInError(
                f"{self._directory.path} keeps no products by layer; run the fit with `TracInCallback(per_layer=True)`."
            )
        if self._settings.method == "means" and scoring.similarity == "cosine":
            raise TracInError(
                "Language means are over gradients divided by their whole norms, so a layer's own cosine does not follow from "
                "them; take similarity='dot' or 'relatif', or compute exact influence."
            )
        if self.preconditioner(scoring) == "fisher" and scoring.blocks != "layer":
            raise TracInError("Whitening as a whole mixes the layers; take blocks='layer' for scores by layer.")

    def _layered(self, snapshot: int, whole: Ingredients, scoring: Scoring) -> dict[str, Scores]:
        """Influence by each layer's parameters alone, from the embeddings to the head.

        A layer's cosine is that of the two gradients with respect to the layer's own parameters.
        """
        parts = self.parts(snapshot)
        weights = self._weights(snapshot, scoring)[list(parts.groups)]
        scores = {}
        for layer in parts.depths:
            mine = [position for position, other in enumerate(parts.layers) if other == layer]
            own = Ingredients(whole.dot[mine], whole.train_norm[mine], whole.probe_norm[mine])
            scores[layer] = self._scores(own, scoring.similarity, weights[mine])
        return scores

    def _scores(self, ingredients: Ingredients, similarity: Similarity, weights: npt.NDArray[np.float64]) -> Scores:
        if self._settings.method == "means":
            return mean_scores(ingredients, similarity, weights)
        return snapshot_scores(ingredients, similarity, weights)
