"""Projected features on disk, and the ingredients that follow from them.

A folder `features/0003-step375/` holds the sketch that made the features (all of it, so that probes can be added at any
time), and shards of train samples and of probes, each complete or absent. Features are stored in half precision, divided by
their norm, with the norm beside them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lightning_tracin.errors import TracInError
from lightning_tracin.gradients import Sketch
from lightning_tracin.gradients.sketch import SCALE, to_half
from lightning_tracin.storage.files import read_tensor, read_tensors, write_tensors
from lightning_tracin.storage.filesystem import remove_tree
from lightning_tracin.storage.prefetch import Ahead
from lightning_tracin.storage.shards import Indices

Side = Literal["train", "probes"]


@dataclass(frozen=True)
class FeatureBlock:
    """Features of some samples of one side."""

    index: Sequence[int]  # of the samples
    features: Tensor  # [samples, features], half precision, of norm `SCALE`
    norm: Tensor  # [samples]


def packed(index: Sequence[int], features: Tensor) -> FeatureBlock:
    """Features as they are stored: [samples, features]."""
    return FeatureBlock(index, *to_half(features))


#: What the shards of added probes begin with.
_ADDED = "probes-added"


class FeatureStore:
    """The features of one snapshot.

    Args:
        folder: the snapshot's folder under `features`.
        train: number of train samples of the run.
        probes: number of probes of the run, added ones included.
        additions: how often probes were added.
        owner: what the files belong to; see `store.write_tensors`.
    """

    def __init__(self, folder: Path, train: int, probes: int, additions: int = 0, owner: str = "") -> None:
        self._folder, self._additions, self._owner = folder, additions, owner
        self._counts: dict[Side, int] = {"train": train, "probes": probes}

    @property
    def has_sketch(self) -> bool:
        """Whether the sketch is there."""
        return self._sketch.exists()

    def write_sketch(self, sketch: Sketch) -> None:
        """Write the sketch, whole or not at all."""
        write_tensors(self._sketch, sketch.state(), self._owner)

    def sketch(self) -> Sketch:
        """The sketch that made the features.

        Raises:
            TracInError: it is missing or damaged.
        """
        remedy = f"restore it from a copy, or delete {self._folder} to have all of it computed again"
        return Sketch.from_state(read_tensors(self._sketch, remedy, self._owner))

    @property
    def folder(self) -> Path:
        """Where sketch and shards stand."""
        return self._folder

    def has(self, side: Side, shard: str) -> bool:
        """Whether the shard of this name is there."""
        return self._path(side, shard).exists()

    def keep_only(self, side: Side, shards: Collection[str]) -> None:
        """Delete shards of other names."""
        names = {self._path(side, shard).name for shard in shards}
        for path in self._paths(side):
            if path.name not in names and not path.name.startswith(_ADDED):
                path.unlink(missing_ok=True)

    def start_addition(self) -> None:
        """Delete what a killed process left of the next addition of probes."""
        for path in self._folder.glob(f"{_ADDED}{self._additions:04d}-*"):
            path.unlink(missing_ok=True)

    def write_addition(self, shard: int, block: FeatureBlock) -> None:
        """Write one shard of the next addition of probes; it counts once the run's record says so."""
        self.write("probes", f"added{self._additions:04d}-{shard:05d}", block)

    def write(self, side: Side, shard: str, block: FeatureBlock) -> None:
        """Write one shard, whole or not at all."""
        write_tensors(
            self._path(side, shard),
            {
                "index": torch.tensor(block.index, dtype=torch.int64),
                "features": block.features.cpu(),
                "norm": block.norm.float().cpu(),
            },
            self._owner,
        )

    def is_complete(self) -> bool:
        """Whether every sample's features are there."""
        try:
            self.train_of_shards()
        except TracInError:
            return False
        return True

    def discard(self) -> None:
        """Delete all of it."""
        remove_tree(self._folder)

    def blocks(self, side: Side) -> Iterator[tuple[Tensor, Tensor]]:
        """The samples' indices, and their features in single precision and at their own norm, shard by shard.

        Raises:
            TracInError: a shard is damaged or of another run.
        """
        paths = self._paths(side)
        found = Ahead(lambda path: self._read(side, path), paths)
        for number in range(len(paths)):
            yield found[number]

    def some(self, side: Side, indices: Sequence[int]) -> Tensor:
        """The features of some samples alone, in this order: [samples, features]; only the files that hold these are read.

        Raises:
            TracInError: one is missing, or a shard is damaged or of another run.
        """
        found: dict[int, Tensor] = {}
        for path in self._paths(side):
            index = read_tensor(path, "index", owner=self._owner)
            if index is not None and bool(torch.isin(index, torch.tensor(indices)).any()):
                held, features = self._read(side, path)
                found |= {int(one): line for one, line in zip(held, features, strict=True) if int(one) in indices}
        missing = [one for one in indices if one not in found]
        if missing:
            raise TracInError(f"{self._folder} has no features of sample {missing[0]} ({side}); run the attribution again.")
        return torch.stack([found[one] for one in indices])

    def read(self, side: Side, shard: int) -> tuple[Tensor, Tensor]:
        """One shard's indices and features, as `blocks` yields them, by its position.

        Raises:
            TracInError: the shard is damaged or of another run.
        """
        return self._read(side, self._paths(side)[shard])

    def _read(self, side: Side, path: Path) -> tuple[Tensor, Tensor]:
        """A shard's indices, and its features in single precision and at their own norm."""
        tensors = read_tensors(path, owner=self._owner)
        if set(tensors) != {"index", "features", "norm"}:
            raise TracInError(f"{path} is not a shard of features (it holds {sorted(tensors)}); delete it.")
        index, features, norm = tensors["index"], tensors["features"].float(), tensors["norm"]
        if (
            features.ndim != 2
            or features.shape[:1] != index.shape
            or norm.shape != index.shape
            or not _are_indices(index, self._counts[side])
            or not bool(torch.isfinite(features.sum(1)).all())
            or not bool(torch.isfinite(norm).all())
        ):
            raise TracInError(f"{path} does not belong to this run, or is damaged; delete it to have it computed again.")
        return index, features.mul_((norm / SCALE)[:, None])  # its own copy: features are stored in half precision

    def count(self, side: Side) -> int:
        """Number of the run's samples on a side."""
        return self._counts[side]

    def train_of_shards(self) -> list[Indices]:
        """The train samples of each shard.

        Raises:
            TracInError: a sample's features are missing or stored twice, on either side.
        """
        found: dict[Side, list[Indices]] = {"train": [], "probes": []}
        for side, count in self._counts.items():
            seen = np.zeros(count, dtype=np.int32)
            for path in self._paths(side):
                index = read_tensor(path, "index", owner=self._owner)
                if index is None or not _are_indices(index, count):
                    raise TracInError(f"{path} does not belong to this run, or is damaged; delete it to have it computed again.")
                found[side].append(index.numpy().copy())
                np.add.at(seen, found[side][-1], 1)
            if not (seen == 1).all():
                what = "train samples" if side == "train" else "probes"
                raise TracInError(
                    f"{self._folder} is incomplete: of {count} {what} {int((seen == 0).sum())} are missing and "
                    f"{int((seen > 1).sum())} stand in more than one file; run the attribution again."
                )
        return found["train"]

    @property
    def _sketch(self) -> Path:
        return self._folder / "sketch.safetensors"

    def _path(self, side: Side, shard: str) -> Path:
        return self._folder / f"{side}-{shard}.safetensors"

    def _paths(self, side: Side) -> list[Path]:
        paths = sorted(self._folder.glob(f"{side}-*.safetensors"))
        return [path for path in paths if not path.name.startswith(_ADDED) or _number(path) < self._additions]


def _are_indices(values: Tensor, bound: int) -> bool:
    """Whether these are numbers from 0 up to the bound."""
    return values.ndim == 1 and values.dtype == torch.int64 and bool(((values >= 0) & (values < bound)).all())


def _number(path: Path) -> int:
    """Which addition of probes a shard belongs to."""
    return int(path.name.removeprefix(_ADDED).partition("-")[0])
