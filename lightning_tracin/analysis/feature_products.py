"""Inner products and norms of projected features: estimates of those of the gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, singledispatch

import numpy as np
import torch
from torch import Tensor

from lightning_tracin.analysis.fisher import Whitener, whitener_of
from lightning_tracin.config import Blocks
from lightning_tracin.errors import TracInError
from lightning_tracin.gradients import Sketch
from lightning_tracin.gradients.partition import Parts, depths_of, layer_labels
from lightning_tracin.gradients.sketch import SCALE
from lightning_tracin.storage.features import FeatureStore
from lightning_tracin.storage.ingredients import IngredientStore
from lightning_tracin.storage.prefetch import Ahead
from lightning_tracin.storage.shards import FloatArray, Indices, Ingredients, Shards


@dataclass(frozen=True)
class Whitening:
    """How to whiten features. Products are weighted by it already, because weights enter before the whitening (`fisher`)."""

    damping: float  # the ridge, as a fraction of F's trace
    blocks: Blocks
    weights: tuple[float, ...]  # of each optimizer group
    steps: float | None = None  # optimizer steps per unit of the weights, if the ridge is the fit's own


@dataclass(frozen=True)
class FeatureShards:
    """Ingredients from a snapshot's features, computed shard by shard; see `shards.Shards`."""

    train: Sequence[Indices]  # the train samples of each shard
    computed: Ahead[int, Ingredients]  # computes the shards, some ahead of the reader
    probe_norm: FloatArray  # [groups, probes]
    held: int  # bytes of the probes' features

    @property
    def nbytes(self) -> int:
        """Bytes held in memory between reads."""
        return self.held + sum(index.nbytes for index in self.train)

    def read(self, shard: int) -> Ingredients:
        """The ingredients of a shard's train samples, in the order of `train`, with all probes.

        Raises:
            TracInError: the shard is damaged, or was rewritten during the read.
        """
        return self.computed[shard]


def feature_ingredients(
    store: FeatureStore, parts: Parts, into: Sequence[int] | None, whitening: Whitening | None = None
) -> Ingredients:
    """Inner products and norms of the features: estimates of those of the gradients.

    Args:
        store: holds the features.
        parts: maps parameters to parts.
        into: group that each part is added to; None keeps the parts.
        whitening: None does not whiten. Whitened products are not split into groups: all are one group, or each layer is one if
            `into` is None.

    Raises:
        TracInError: features are missing or damaged.
    """
    shards = feature_shards(store, parts, into, whitening)
    groups, count, probes = len(shards.probe_norm), store.count("train"), store.count("probes")
    whole = Ingredients(np.zeros((groups, count, probes), np.float32), np.zeros((groups, count), np.float32), shards.probe_norm)
    for number, index in enumerate(shards.train):
        part = shards.read(number)
        whole.dot[:, index], whole.train_norm[:, index] = part.dot, part.train_norm
    return whole


def feature_shards(
    store: FeatureStore, parts: Parts, into: Sequence[int] | None, whitening: Whitening | None = None
) -> FeatureShards:
    """Like `feature_ingredients`, but computes each shard of train samples when it is read.

    Raises:
        TracInError: features are missing or damaged.
    """
    train, read = store.train_of_shards(), store.reader("train")
    sketch = store.sketch()
    probes = _gathered(store.blocks("probes"), store.count("probes"))
    if whitening is not None:
        whitener = _whitener(store, sketch, parts, whitening)
        columns = [torch.arange(sketch.dim)] if into is not None else list(whitener.blocks)
        right, norms = whitener.dual(probes), partial(_whitened_norms, whitener=whitener, together=into is not None)
    else:
        columns = _columns(sketch, parts.of, range(len(parts)) if into is None else into)
        right, norms = probes, partial(_norms, columns=columns)
    probe_norm = norms(probes).numpy()
    is_whole = whitening is None and len(columns) == 1 and _is_whole(probes, columns[0])
    unit = right / SCALE  # so that products with stored features, whose norm is SCALE, stay in range

    def computed(shard: int) -> Ingredients:
        stored = read(shard)
        if not np.array_equal(stored.index.numpy(), train[shard]):
            raise TracInError(f"{store.folder} was rewritten while it was read; open the run again.")
        if is_whole:  # rows of products are shorter than rows of features
            dot = (stored.features @ unit.T).mul_(stored.scale[:, None] * SCALE)[None]
            return Ingredients(dot.numpy(), (stored.length * stored.scale)[None].numpy(), probe_norm)
        features = stored.rescaled()
        dot = torch.empty(len(columns), len(features), len(right))
        for group, chosen in enumerate(columns):
            torch.mm(_select(features, chosen), _select(right, chosen).T, out=dot[group])
        return Ingredients(dot.numpy(), norms(features).numpy(), probe_norm)

    return FeatureShards(train, Ahead(computed, range(len(train))), probe_norm, right.nbytes)


def _whitener(store: FeatureStore, sketch: Sketch, parts: Parts, whitening: Whitening) -> Whitener:
    """The whitener of a snapshot, with one block, or one for each layer in the order of `Parts.depths`."""
    rates = torch.zeros(sketch.dim, dtype=torch.float64)
    for name, where in sketch.layout.items():
        rates[where] = whitening.weights[parts.groups[parts.of[name]]]
    labels = layer_labels(parts.of) if whitening.blocks == "layer" else dict.fromkeys(parts.of, "")
    depths = depths_of(labels.values())
    blocks = _columns(sketch, {name: depths.index(label) for name, label in labels.items()}, range(len(depths)))
    fit = store.fit or store
    shards = (features for _, features in fit.blocks("train"))
    return whitener_of(shards, fit.count("train"), blocks, whitening.damping, rates, whitening.steps)


def _columns(sketch: Sketch, part_of: Mapping[str, int], into: Sequence[int]) -> list[Tensor]:
    """The feature indices of each group, from the part of each parameter and the group of each part."""
    indices: list[list[Tensor]] = [[] for _ in range(max(into) + 1)]
    for name, where in sketch.layout.items():
        indices[into[part_of[name]]].append(torch.arange(where.start, where.stop))
    return [torch.cat(chosen) if chosen else torch.zeros(0, dtype=torch.int64) for chosen in indices]


def _select(features: Tensor, chosen: Tensor) -> Tensor:
    """The chosen columns; no copy if all are chosen."""
    return features if _is_whole(features, chosen) else features[:, chosen]


def _is_whole(features: Tensor, chosen: Tensor) -> bool:
    """Whether all columns are chosen, in order."""
    return len(chosen) == features.shape[1] and bool((chosen == torch.arange(len(chosen))).all())


def _norms(features: Tensor, columns: Sequence[Tensor]) -> Tensor:
    """Norms by group: [groups, samples]."""
    return torch.stack([torch.linalg.vector_norm(_select(features, chosen), dim=1) for chosen in columns])


def _whitened_norms(features: Tensor, whitener: Whitener, together: bool) -> Tensor:
    """Norms under the whitener's inner product, of all blocks together or of each: [1 or blocks, samples]."""
    squared = whitener.squared_norms(features)
    return (squared.sum(0, keepdim=True) if together else squared).sqrt()


def _gathered(blocks: Iterator[tuple[Tensor, Tensor]], count: int) -> Tensor:
    whole: Tensor | None = None
    for index, features in blocks:
        if whole is None:
            whole = torch.zeros(count, features.shape[1])
        whole[index] = features
    if whole is None:
        raise TracInError("There are no features to read; run the attribution first.")
    return whole


@singledispatch
def ingredients_of(store: IngredientStore, parts: Parts, into: Sequence[int] | None, whitening: Whitening | None) -> Ingredients:
    """Inner products and norms from the store of any method; a new kind of store registers its function here.

    Args:
        store: the store of one snapshot.
        parts: maps parameters to parts.
        into: group that each part is added to; None keeps the parts.
        whitening: of features, see `feature_ingredients`.

    Raises:
        TracInError: something is missing or damaged, or the store cannot be whitened.
    """
    del parts
    _require_plain(store, whitening)
    return store.read(into)


@singledispatch
def product_shards(store: IngredientStore, parts: Parts, into: Sequence[int] | None, whitening: Whitening | None) -> Shards:
    """Like `ingredients_of`, but reads each shard of train samples on demand."""
    del parts
    _require_plain(store, whitening)
    return store.shards(into)


def _require_plain(store: IngredientStore, whitening: Whitening | None) -> None:
    if whitening is not None:
        raise TracInError(
            f"Preconditioners that whiten need features, but {store.folder} holds finished products; take preconditioner='none', "
            "or run the fit with a `projection_dim`."
        )


ingredients_of.register(FeatureStore, feature_ingredients)
product_shards.register(FeatureStore, feature_shards)
