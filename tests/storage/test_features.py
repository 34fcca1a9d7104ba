"""Shards of features come back as they were, whichever way they are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_tracin import TracInError
from lightning_tracin.storage.features import FeatureStore, packed

_SHARDS, _EACH = 12, 5


def stored(folder: Path) -> tuple[FeatureStore, torch.Tensor]:
    """A store of one probe, and train samples whose features have norms from 1e-15 to 1e15."""
    generator = torch.Generator().manual_seed(0)
    count = _SHARDS * _EACH
    features = torch.randn(count, 16, generator=generator) * torch.logspace(-15, 15, count)[:, None]
    store = FeatureStore(folder, count, 1)
    store.write("probes", "00000", packed([0], features[:1]))
    for shard in range(_SHARDS):
        rows = range(shard, count, _SHARDS)
        store.write("train", f"{shard:05d}", packed(list(rows), features[list(rows)]))
    return store, features


def test_features_and_their_lengths_are_those_that_were_written(tmp_path: Path) -> None:
    store, features = stored(tmp_path)
    read = store.reader("train")
    norms = torch.linalg.vector_norm(features.double(), dim=1)
    for shard in range(_SHARDS):
        one = read(shard)
        torch.testing.assert_close(one.length * one.scale, norms[one.index].float(), rtol=5e-4, atol=0.0)
        error = torch.linalg.vector_norm(one.rescaled().double() - features[one.index], dim=1)
        assert bool((error <= 1e-3 * norms[one.index]).all())
    found = dict(pair for index, rows in store.blocks("train") for pair in zip(index.tolist(), rows, strict=True))
    torch.testing.assert_close(torch.stack([found[i] for i in range(len(features))]), store.some("train", range(len(features))))


def test_a_file_that_vanishes_is_named_when_it_is_read_and_not_before(tmp_path: Path) -> None:
    """The system is told of later files, which may have gone."""
    store, features = stored(tmp_path)
    read = store.reader("train")
    (tmp_path / "train-00009.safetensors").unlink()
    for shard in range(9):
        torch.testing.assert_close(read(shard).rescaled(), features[shard::_SHARDS], rtol=2e-2, atol=0.0)
    with pytest.raises(TracInError, match=r"train-00009\.safetensors is missing"):
        read(9)
