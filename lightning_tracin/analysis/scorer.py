"""Scores of the snapshots of one run, computed from the files in its directory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache, cached

from lightning_tracin.analysis.feature_products import Whitening, ingredients_of, product_shards
from lightning_tracin.analysis.scores import Scores, factored_scores, group_weights, is_index, snapshot_scores
from lightning_tracin.analysis.top_k import Strongest
from lightning_tracin.config import DAMPING, SCALED, WHITENED, Options, Preconditioner, Scoring, Similarity
from lightning_tracin.errors import TracInError
from lightning_tracin.gradients.partition import Parts, parts_of
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.shards import Indices, Ingredients, Shards, side_by_side
from lightning_tracin.storage.snapshots import Snapshot

#: How the gradients of a run with this preconditioner were scaled; others are plain.
_SCALING = {"adam": "adam", "adam-fisher": "adam", "adam-factored": "factored"}

#: Bytes of cached scores, and twice the bytes of cached products: tables need every snapshot several times, and whitening takes
#: seconds each time.
KEPT_BYTES = 1 << 30

#: Largest matrix of scores in bytes; ranking and summing hold several at once.
MATRIX_BYTES = 1 << 29


class Readable(Protocol):
    """What a scorer needs from the method of a run; see `attribution.method.Method`."""

    whitens: bool
    layer_cosine: bool
    metric: str | None

    def store(self, directory: RunDirectory, snapshot: Snapshot) -> Any:
        """The store of a snapshot, of a type that `ingredients_of` supports."""

    def columns(self, directory: RunDirectory) -> int:
        """Number of products for each train sample."""

    def readable(self, ingredients: Ingredients, similarity: Similarity) -> tuple[Ingredients, Similarity]:
        """The ingredients that a similarity uses, and the formula to apply to them."""


class Scorer:
    """Scores at the snapshots of one run; snapshots are given by their positions in the run.

    Args:
        directory: the run.
        method: the method that computed it.
    """

    def __init__(self, directory: RunDirectory, method: Readable) -> None:
        self._directory, self._method = directory, method
        self._train, self._columns = directory.record().train.count, method.columns(directory)
        kept: LRUCache[Any, Ingredients] = LRUCache(KEPT_BYTES / 2, getsizeof=lambda one: one.dot.nbytes)
        begun: LRUCache[Any, Shards] = LRUCache(KEPT_BYTES / 2, getsizeof=lambda one: one.nbytes)
        derived: LRUCache[Any, Scores] = LRUCache(KEPT_BYTES, getsizeof=lambda one: one.nbytes)
        self._ingredients, self._shards = cached(kept)(self._read), cached(begun)(self._begin)
        self._derived = cached(derived)(self._derive)

    def chosen(self, snapshots: Sequence[int] | None) -> list[int]:
        """Positions of snapshots, in order, each once. None: of all.

        Raises:
            TracInError: there is no such snapshot, or none at all.
        """
        count = len(self._directory.ledger.snapshots())
        found = list(range(count)) if snapshots is None else _indices(snapshots)
        if not found:
            raise TracInError(f"{self._directory.path} has no snapshots to sum; the fit ended before the first one was taken.")
        unknown = [index for index in found if not 0 <= index < count]
        if unknown:
            raise TracInError(f"There is no snapshot {unknown[0]}; the run has {count}, numbered from 0.")
        return found

    def ingredients(self, snapshot: int, scoring: Scoring, per_layer: bool = False) -> Ingredients:
        """Inner products and norms by optimizer group (or by part: group and layer).

        Whitened ones are not split into groups: there is one for all (or for each layer), and it is weighted already.

        Raises:
            TracInError: they are missing or incomplete, or the run does not support this preconditioner.
        """
        return self._ingredients(snapshot, per_layer, self._whitening(snapshot, scoring))

    def _whitening(self, snapshot: int, scoring: Scoring) -> Whitening | None:
        weights = tuple(self._group_weights(snapshot, scoring).tolist())
        if scoring.damping == "steps":
            self.require_steps(scoring)
            about = self._snapshot(snapshot)
            return Whitening(DAMPING, scoring.blocks, weights, about.steps / about.visits if about.visits > 0 else 1.0)
        if self.preconditioner(scoring) not in WHITENED:
            return None
        return Whitening(scoring.damping, scoring.blocks, weights)

    def require_steps(self, scoring: Scoring) -> None:
        """Check that the ridge can follow from the fit's steps, if it is to.

        Raises:
            TracInError: nothing is whitened, or features, weights or loss are not those of the fit's steps.
        """
        if scoring.damping != "steps":
            return
        used = self.preconditioner(scoring)
        if "mean" not in self._directory.record().loss:
            raise TracInError(
                f"damping='steps' takes a step to be on the mean loss of a batch, but the fit's loss is "
                f"{self._directory.record().loss}; take a number, such as {DAMPING}."
            )
        if used not in WHITENED or scoring.weighting != "learning_rate":
            raise TracInError(
                "damping='steps' is the ridge that follows from learning rates; take it with weighting='learning_rate' and "
                "preconditioner='adam-fisher' (after plain SGD: 'fisher')."
            )
        if not self._directory.follows_steps(used):
            raise TracInError(
                "damping='steps' needs features in the metric of the optimizer's steps, which are not those of plain SGD here; "
                "run the fit with `TracInCallback(preconditioner='adam-fisher')` and a `projection_dim`."
            )

    def _read(self, snapshot: int, per_layer: bool, whitening: Whitening | None) -> Ingredients:
        return ingredients_of(*self._stored(snapshot, per_layer), whitening)

    def _begin(self, snapshot: int, per_layer: bool, whitening: Whitening | None) -> Shards:
        return product_shards(*self._stored(snapshot, per_layer), whitening)

    def _snapshot(self, position: int) -> Snapshot:
        return self._directory.ledger.snapshots()[position]

    def _stored(self, snapshot: int, per_layer: bool) -> tuple[Any, Parts, tuple[int, ...] | None]:
        """The store of a snapshot, its parts, and the group that each part is added to (None keeps the parts)."""
        parts = self.parts(snapshot)
        return self._method.store(self._directory, self._snapshot(snapshot)), parts, None if per_layer else parts.groups

    @property
    def is_large(self) -> bool:
        """Whether the matrix of one snapshot's scores is too large to hold in memory."""
        return 8 * self._train * self._columns > MATRIX_BYTES

    def _fits(self, snapshots: Sequence[int], per_layer: bool) -> bool:
        """Whether the scores of these snapshots (or their products by layer) fit in memory together."""
        sizes = [4 * len(self.parts(snapshot).groups) if per_layer else 8 for snapshot in snapshots]
        return not self.is_large and sum(sizes) * self._train * self._columns <= KEPT_BYTES

    def blocks(
        self, snapshots: Sequence[int], scoring: Scoring, by_layer: bool = False
    ) -> Iterator[tuple[Indices, Iterator[dict[str, Scores]]]]:
        """Iterate over blocks of train samples, with their influence at each snapshot in turn: layer -> [block, queries].

        Every train sample comes once. If the products of all these snapshots fit in memory, all samples come in one block, in
        order. Otherwise they come shard by shard, and memory holds one shard of each snapshot and the prefetched ones.

        Args:
            snapshots: positions of the snapshots.
            scoring: the score.
            by_layer: whether to score each layer alone; otherwise the only layer is "".

        Raises:
            TracInError: see `ingredients`; or the run has no scores by layer.
        """
        if by_layer:
            self.require_layers(scoring)
        if self._fits(snapshots, by_layer):
            if by_layer:
                every = (self._layered(one, self.ingredients(one, scoring, True), scoring) for one in snapshots)
            else:
                every = ({"": self._derived(one, scoring)} for one in snapshots)
            yield np.arange(self._train), every
            return
        each = [self._shards(snapshot, by_layer, self._whitening(snapshot, scoring)) for snapshot in snapshots]
        for train, found in side_by_side(each):
            named = self._layered if by_layer else self._whole
            yield train, (named(snapshot, one, scoring) for snapshot, one in zip(snapshots, found, strict=True))

    def summed(self, snapshots: Sequence[int], scoring: Scoring) -> Iterator[tuple[Indices, Scores]]:
        """Influence summed over snapshots, block by block of train samples: [block, queries].

        Raises:
            TracInError: see `ingredients`.
        """
        for train, each in self.blocks(snapshots, scoring):
            total = next(each)[""].copy()  # this scorer caches its arrays
            for one in each:
                total += one[""]
            yield train, total

    def rank(self, strongest: Strongest, snapshots: Sequence[int], scoring: Scoring, queries: Sequence[int]) -> None:
        """Add the influence on some queries, summed over snapshots, of all train samples.

        Where the scores are read shard by shard, only those that may be among the strongest are computed in double precision.

        Raises:
            TracInError: see `ingredients`.
        """
        if self._fits(snapshots, False):
            for train, total in self.summed(snapshots, scoring):
                strongest.add(train, total[:, list(queries)])
            return
        each = [self._shards(snapshot, False, self._whitening(snapshot, scoring)) for snapshot in snapshots]
        for train, found in side_by_side(each):
            terms = [
                factored_scores(*self._method.readable(one, scoring.similarity), self._weights(snapshot, scoring))
                for snapshot, one in zip(snapshots, found, strict=True)
            ]
            strongest.add_factored(train, [term.of_probes(queries) for term in terms])

    def _whole(self, snapshot: int, ingredients: Ingredients, scoring: Scoring) -> dict[str, Scores]:
        return {"": self._scores(ingredients, scoring.similarity, self._weights(snapshot, scoring))}

    def parts(self, snapshot: int) -> Parts:
        """The parts (optimizer group and layer) that the ingredients of a snapshot are stored by."""
        return parts_of(self._snapshot(snapshot).record.groups, self._options.per_layer)

    @property
    def _options(self) -> Options:
        return self._directory.record().options

    def preconditioner(self, scoring: Scoring) -> Preconditioner | None:
        """The preconditioner that scores are computed with.

        Raises:
            TracInError: the run does not support the requested one.
        """
        asked, chosen = scoring.preconditioner, self._options.preconditioner
        made = None if chosen == "auto" else chosen  # a fit decides and records it
        if asked is None or asked == made:
            return made
        if self._method.metric is not None:
            raise TracInError(
                f"{self._directory.path} holds products of method={self._method.metric!r}, so it has no scores with "
                f"preconditioner={asked!r}; leave `preconditioner` out, or run the fit without `method`."
            )
        if _SCALING.get(asked) == _SCALING.get(made or "none") and (self._method.whitens or asked not in WHITENED):
            return None if asked == "none" else asked
        remedy = {
            "adam": "run the fit with `TracInCallback(preconditioner='adam')`",
            "adam-factored": "run the fit with `TracInCallback(preconditioner='adam-factored')`",
            "fisher": "run the fit with a `projection_dim`" + (f" and without preconditioner={made!r}" if made in SCALED else ""),
            "adam-fisher": "run the fit with `TracInCallback(preconditioner='adam-fisher')` and a `projection_dim`",
            "none": "run the fit with `preconditioner=None`",
        }[asked]
        raise TracInError(f"{self._directory.path} holds nothing to score with preconditioner={asked!r}; {remedy}.")

    def metric(self, scoring: Scoring) -> str:
        """The name of the inner product that scores are computed with: the preconditioner, the method's own, or "none"."""
        return self.preconditioner(scoring) or self._method.metric or "none"

    def scores(self, snapshot: int, scoring: Scoring) -> Scores:
        """Influence at one snapshot: [train, queries]. The array is cached, so do not change it."""
        return self._derived(snapshot, scoring)

    def _derive(self, snapshot: int, scoring: Scoring) -> Scores:
        return self._scores(self.ingredients(snapshot, scoring), scoring.similarity, self._weights(snapshot, scoring))

    def _group_weights(self, snapshot: int, scoring: Scoring) -> npt.NDArray[np.float64]:
        chosen = self._snapshot(snapshot)
        return group_weights(scoring.weighting, chosen.learning_rates, chosen.visits)

    def nats(self, scoring: Scoring) -> list[float] | None:
        """What turns each snapshot's scores into first-order falls of a probe's loss, in nats; None if they are not such falls.

        Scores with `similarity="dot"` and `weighting="learning_rate"` follow the optimizer's steps if they are in its metric:
        preconditioned by Adam, factored or not, or plain after plain SGD. They then take each visit of a train sample for a
        step of its own. A batch's mean loss shares a step among its samples, so a visit is worth one part of the samples of a
        step: steps / (train samples x visits). What momentum adds and decay takes is left out. Whitened scores are such falls
        with `damping="steps"`, less what later steps of the interval make up for.
        """
        record, snapshots = self._directory.record(), self._directory.ledger.snapshots()
        metric = self.metric(scoring)
        follows = scoring.damping == "steps" or (metric not in WHITENED and self._directory.follows_steps(metric))
        if (scoring.similarity, scoring.weighting) != ("dot", "learning_rate") or not follows or "mean" not in record.loss:
            return None
        return [snapshot.steps / (self._train * snapshot.visits) if snapshot.visits > 0 else 0.0 for snapshot in snapshots]

    def _weights(self, snapshot: int, scoring: Scoring) -> npt.NDArray[np.float64]:
        """The weights still to be applied to the ingredients of each group: 1 for whitened ones, which are weighted already."""
        return np.ones(1) if self.preconditioner(scoring) in WHITENED else self._group_weights(snapshot, scoring)

    def require_layers(self, scoring: Scoring) -> None:
        """Check that the run has scores by layer.

        Raises:
            TracInError: products were not stored by layer, or this score cannot be computed from them.
        """
        if not self._options.per_layer:
            raise TracInError(
                f"{self._directory.path} keeps no products by layer; run the fit with `TracInCallback(per_layer=True)`."
            )
        if not self._method.layer_cosine and scoring.similarity == "cosine":
            raise TracInError(
                "Language means are over gradients divided by their whole norms, so a layer's own cosine does not follow from "
                "them; take similarity='dot' or 'relatif', or compute exact influence."
            )
        used = self.preconditioner(scoring)
        if used in WHITENED and scoring.blocks != "layer":
            raise TracInError(
                f"preconditioner={used!r} with blocks='whole' mixes the layers; take blocks='layer' for scores by layer."
            )

    def _layered(self, snapshot: int, whole: Ingredients, scoring: Scoring) -> dict[str, Scores]:
        """Influence by each layer's parameters alone, from the embeddings to the head.

        A layer's cosine is the cosine of the gradients with respect to the layer's own parameters.
        """
        parts = self.parts(snapshot)
        if self.preconditioner(scoring) in WHITENED:
            layers, weights = tuple(parts.depths), np.ones(len(parts.depths))
        else:
            layers, weights = parts.layers, self._weights(snapshot, scoring)[list(parts.groups)]
        scores = {}
        for layer in parts.depths:
            mine = [position for position, other in enumerate(layers) if other == layer]
            own = Ingredients(whole.dot[mine], whole.train_norm[mine], whole.probe_norm[mine])
            scores[layer] = self._scores(own, scoring.similarity, weights[mine])
        return scores

    def _scores(self, ingredients: Ingredients, similarity: Similarity, weights: npt.NDArray[np.float64]) -> Scores:
        return snapshot_scores(*self._method.readable(ingredients, similarity), weights)


def _indices(snapshots: object) -> list[int]:
    """The indices in order, each once.

    Raises:
        TracInError: it is no list of whole numbers, or empty.
    """
    if not isinstance(snapshots, Collection) or not all(is_index(one) for one in snapshots):
        raise TracInError(f"snapshots should be a list of indices, such as [0, 2], but is {snapshots!r}.")
    if len(snapshots) == 0:
        raise TracInError("snapshots is empty; name some, or leave it out for all.")
    return sorted({int(one) for one in snapshots})
