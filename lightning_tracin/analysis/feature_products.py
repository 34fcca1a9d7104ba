"""Inner products and norms of projected features: estimates of those of the gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import singledispatch

import numpy as np
import torch
from torch import Tensor

from lightning_tracin.analysis.fisher import Whitener, whitener_of
from lightning_tracin.config import Blocks
from lightning_tracin.errors import TracInError
from lightning_tracin.gradients import Sketch
from lightning_tracin.gradients.partition import Parts
from lightning_tracin.storage.features import FeatureStore
from lightning_tracin.storage.ingredients import IngredientStore
from lightning_tracin.storage.prefetch import Ahead
from lightning_tracin.storage.shards import FloatArray, Indices, Ingredients, Shards


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
    store: FeatureStore, parts: Parts, into: Sequence[int] | None, fisher: tuple[float, Blocks] | None = None
) -> Ingredients:
    """Inner products and norms of the features: estimates of those of the gradients.

    Args:
        store: holds the features.
        parts: maps parameters to parts.
        into: group that each part is added to; None keeps the parts.
        fisher: damping and blocks of the whitening; None does not whiten.

    Raises:
        TracInError: features are missing or damaged.
    """
    shards = feature_shards(store, parts, into, fisher)
    groups, count, probes = len(shards.probe_norm), store.count("train"), store.count("probes")
    whole = Ingredients(np.zeros((groups, count, probes), np.float32), np.zeros((groups, count), np.float32), shards.probe_norm)
    for number, index in enumerate(shards.train):
        part = shards.read(number)
        whole.dot[:, index], whole.train_norm[:, index] = part.dot, part.train_norm
    return whole


def feature_shards(
    store: FeatureStore, parts: Parts, into: Sequence[int] | None, fisher: tuple[float, Blocks] | None = None
) -> FeatureShards:
    """Like `feature_ingredients`, but computes each shard of train samples when it is read.

    Raises:
        TracInError: features are missing or damaged.
    """
    train = store.train_of_shards()
    into = range(len(parts)) if into is None else into
    sketch = store.sketch()
    columns = _columns(sketch, parts, into)
    whitener, norms_into = _whitener(store, sketch, parts, columns, into, fisher)
    probes = _gathered(store.blocks("probes"), store.count("probes"))
    right = probes if whitener is None else whitener.dual(probes)
    probe_norm = _norms(probes, whitener, columns, norms_into).numpy()

    def computed(shard: int) -> Ingredients:
        index, features = store.read("train", shard)
        if not np.array_equal(index.numpy(), train[shard]):
            raise TracInError(f"{store.folder} was rewritten while it was read; open the run again.")
        dot = np.stack([(_select(features, chosen) @ _select(right, chosen).T).numpy() for chosen in columns])
        return Ingredients(dot, _norms(features, whitener, columns, norms_into).numpy(), probe_norm)

    return FeatureShards(train, Ahead(computed, range(len(train))), probe_norm, right.nbytes)


def _whitener(
    store: FeatureStore,
    sketch: Sketch,
    parts: Parts,
    columns: Sequence[Tensor],
    into: Sequence[int],
    fisher: tuple[float, Blocks] | None,
) -> tuple[Whitener | None, list[int]]:
    """The whitener, and the group that each block's norms are added to.

    A block's norm is not a sum over the groups in it, so the block's first group gets all of it. Only the sum over groups is
    then a norm, unless groups are layers.
    """
    if fisher is None:
        return None, []
    damping, kind = fisher
    if kind == "whole":
        blocks, norms_into = [torch.cat(list(columns))], [0]
    else:
        layers = _columns(sketch, parts, [parts.depths.index(layer) for layer in parts.layers])
        blocks, norms_into = layers, [into[parts.layers.index(layer)] for layer in parts.depths]
    fit = store.fit or store
    return whitener_of((features for _, features in fit.blocks("train")), blocks, damping), norms_into


def _columns(sketch: Sketch, parts: Parts, into: Sequence[int]) -> list[Tensor]:
    """The feature indices of each group."""
    indices: list[list[Tensor]] = [[] for _ in range(max(into) + 1)]
    for name, where in sketch.layout.items():
        indices[into[parts.of[name]]].append(torch.arange(where.start, where.stop))
    return [torch.cat(chosen) if chosen else torch.zeros(0, dtype=torch.int64) for chosen in indices]


def _select(features: Tensor, chosen: Tensor) -> Tensor:
    """The chosen columns; no copy if all are chosen."""
    whole = len(chosen) == features.shape[1] and bool((chosen == torch.arange(len(chosen))).all())
    return features if whole else features[:, chosen]


def _norms(features: Tensor, whitener: Whitener | None, columns: Sequence[Tensor], norms_into: Sequence[int]) -> Tensor:
    """Norms by group: [groups, samples]."""
    if whitener is None:
        return torch.stack([torch.linalg.vector_norm(_select(features, chosen), dim=1) for chosen in columns])
    squared = torch.zeros(len(columns), len(features))
    return squared.index_add_(0, torch.tensor(norms_into), whitener.squared_norms(features)).sqrt()


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
def ingredients_of(
    store: IngredientStore, parts: Parts, into: Sequence[int] | None, fisher: tuple[float, Blocks] | None
) -> Ingredients:
    """Inner products and norms from the store of any method; a new kind of store registers its function here.

    Args:
        store: the store of one snapshot.
        parts: maps parameters to parts.
        into: group that each part is added to; None keeps the parts.
        fisher: damping and blocks of the whitening of features; None does not whiten.

    Raises:
        TracInError: something is missing or damaged.
    """
    del parts, fisher
    return store.read(into)


@singledispatch
def product_shards(
    store: IngredientStore, parts: Parts, into: Sequence[int] | None, fisher: tuple[float, Blocks] | None
) -> Shards:
    """Like `ingredients_of`, but reads each shard of train samples on demand."""
    del parts, fisher
    return store.shards(into)


ingredients_of.register(FeatureStore, feature_ingredients)
product_shards.register(FeatureStore, feature_shards)
