"""The projected features of one snapshot on disk.

A folder `features/0003-step375/` holds the whole sketch that made the features, so that probes can be added at any time, and
shards of train samples and of probes, each complete or absent. Features are stored in half precision, rescaled to one norm, along
with their original norms.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
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
from lightning_tracin.storage.filesystem import remove_tree, will_read
from lightning_tracin.storage.prefetch import Ahead
from lightning_tracin.storage.shards import Indices, are_indices

Side = Literal["train", "probes"]


@dataclass(frozen=True)
class FeatureBlock:
    """Features of some train samples or some probes."""

    index: Sequence[int]  # indices of the samples
    features: Tensor  # [samples, features], half precision, rescaled to norm `SCALE`
    norm: Tensor  # [samples]
    label_losses: Tensor | None = None  # -log of the probability of each sample's label, where that is its whole loss: [samples]


def packed(index: Sequence[int], features: Tensor) -> FeatureBlock:
    """Pack features, [samples, features], for storage.

    Example:
        >>> block = packed([7], torch.tensor([[0.0, 5.0]]))
        >>> block.features.tolist(), block.norm.tolist()
        ([[0.0, 32768.0]], [5.0])
    """
    return FeatureBlock(index, *to_half(features))


@dataclass(frozen=True)
class StoredFeatures:
    """A shard of features as they are stored, in single precision: cheaper to multiply than to rescale first.

    Example:
        >>> shard = StoredFeatures(torch.tensor([7]), torch.tensor([[0.0, 2.0]]), torch.tensor([2.0]), torch.tensor([2.5]))
        >>> shard.rescaled().tolist()
        [[0.0, 5.0]]
    """

    index: Tensor  # indices of the samples
    features: Tensor  # [samples, features], rescaled to norm `SCALE`
    length: Tensor  # norms of these rows: [samples]
    scale: Tensor  # what a row is to be multiplied by: [samples]

    def rescaled(self) -> Tensor:
        """The features with their original norms; overwrites `features`."""
        return self.features.mul_(self.scale[:, None])


#: Name of what labels cost, in the files of train samples.
_LABELS = "label_losses"

#: Prefix of the names of shards of added probes.
_ADDED = "probes-added"

#: How many files the system is told of before they are read, and the bytes of a file in which its header and indices are.
_TOLD_AHEAD, _HEAD = 8, 1 << 16


class FeatureStore:
    """The features of one snapshot.

    Args:
        folder: the snapshot's folder under `features`.
        train: number of train samples of the run.
        probes: number of probes of the run, including added ones.
        additions: how many times probes were added.
        owner: what the files belong to; see `files.write_tensors`.
        fit: the features of the fit's own samples, where the train samples here are candidates; see `storage.candidates`.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     store = FeatureStore(Path(folder), train=2, probes=1)
        ...     store.write("train", "00000", packed([1, 0], torch.tensor([[3.0, 4.0], [0.0, 2.0]])))
        ...     store.some("train", [1]).round(decimals=2).tolist(), store.is_complete()  # the probes are missing
        ([[3.0, 4.0]], False)
    """

    def __init__(
        self, folder: Path, train: int, probes: int, additions: int = 0, owner: str = "", fit: FeatureStore | None = None
    ) -> None:
        self.folder, self.fit, self._additions, self._owner = folder, fit, additions, owner
        self._sketch = folder / "sketch.safetensors"
        self._counts: dict[Side, int] = {"train": train, "probes": probes}

    @property
    def has_sketch(self) -> bool:
        """Whether the sketch exists."""
        return self._sketch.exists()

    def write_sketch(self, sketch: Sketch) -> None:
        """Write the sketch, completely or not at all."""
        write_tensors(self._sketch, sketch.state(), self._owner)

    def sketch(self) -> Sketch:
        """The sketch that made the features.

        Raises:
            TracInError: it is missing or damaged.
        """
        remedy = f"restore it from a copy, or delete {self.folder} to have all of it computed again"
        return Sketch.from_state(read_tensors(self._sketch, remedy, self._owner))

    def copy_probes(self, other: FeatureStore) -> None:
        """Copy the sketch and the probes' features of another store, bit for bit.

        Raises:
            TracInError: the sketch is missing, or a file is damaged.
        """
        self.write_sketch(other.sketch())
        for number, path in enumerate(other._paths("probes")):
            write_tensors(self._path("probes", f"{number:05d}"), read_tensors(path, owner=other._owner), self._owner)

    def has(self, side: Side, shard: str) -> bool:
        """Whether the shard of this name exists."""
        return self._path(side, shard).exists()

    def keep_only(self, side: Side, shards: Collection[str]) -> None:
        """Delete all other shards, except those of added probes."""
        names = {self._path(side, shard).name for shard in shards}
        for path in self._paths(side):
            if path.name not in names and not path.name.startswith(_ADDED):
                path.unlink(missing_ok=True)

    def start_addition(self) -> None:
        """Delete the leftovers of a killed process from the next addition of probes."""
        for path in self.folder.glob(f"{_ADDED}{self._additions:04d}-*"):
            path.unlink(missing_ok=True)

    def write_addition(self, shard: int, block: FeatureBlock) -> None:
        """Write one shard of the next addition of probes; readers ignore it until the run's record includes the addition."""
        self.write("probes", f"added{self._additions:04d}-{shard:05d}", block)

    def write(self, side: Side, shard: str, block: FeatureBlock) -> None:
        """Write one shard, completely or not at all."""
        write_tensors(
            self._path(side, shard),
            {
                "index": torch.tensor(block.index, dtype=torch.int64),
                "features": block.features.cpu(),
                "norm": block.norm.float().cpu(),
                **({} if block.label_losses is None else {_LABELS: block.label_losses.detach().double().cpu()}),
            },
            self._owner,
        )

    def is_complete(self) -> bool:
        """Whether every sample's features are stored."""
        try:
            self.train_of_shards()
        except TracInError:
            return False
        return True

    def discard(self) -> None:
        """Delete the sketch and all shards."""
        remove_tree(self.folder)

    def blocks(self, side: Side) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the samples' indices, and their features in single precision with their original norms, shard by shard.

        Raises:
            TracInError: a shard is damaged or of another run.
        """
        shards = range(len(self._paths(side)))
        for shard in map(Ahead(self.reader(side), shards).__getitem__, shards):
            yield shard.index, shard.rescaled()

    def some(self, side: Side, indices: Sequence[int]) -> Tensor:
        """The features of some samples, in this order: [samples, features]; reads only the files that hold them.

        Raises:
            TracInError: one is missing, or a shard is damaged or of another run.
        """
        found: dict[int, Tensor] = {}
        for path in self._paths(side):
            index = read_tensor(path, "index", owner=self._owner)
            if index is not None and bool(torch.isin(index, torch.tensor(indices)).any()):
                shard = self._read(side, path)
                found |= {int(one): line for one, line in zip(shard.index, shard.rescaled(), strict=True) if int(one) in indices}
        missing = [one for one in indices if one not in found]
        if missing:
            raise TracInError(f"{self.folder} has no features of sample {missing[0]} ({side}); run the attribution again.")
        return torch.stack([found[one] for one in indices])

    def reader(self, side: Side) -> Callable[[int], StoredFeatures]:
        """A function that reads one shard by its position.

        The folder is listed here, once: a large index has thousands of files.

        Raises:
            TracInError: when it is called: the shard is damaged or of another run.
        """
        paths = self._paths(side)

        def read(shard: int) -> StoredFeatures:
            for path in paths[shard + _TOLD_AHEAD : shard + _TOLD_AHEAD + 1]:
                will_read(path)
            return self._read(side, paths[shard])

        return read

    def _read(self, side: Side, path: Path) -> StoredFeatures:
        """A shard, in single precision."""
        tensors = read_tensors(path, owner=self._owner)
        if set(tensors) - {_LABELS} != {"index", "features", "norm"}:
            raise TracInError(f"{path} is not a shard of features (it holds {sorted(tensors)}); delete it.")
        index, features, norm = tensors["index"], tensors["features"].float(), tensors["norm"]
        fits = features.ndim == 2 and features.shape[:1] == index.shape and norm.shape == index.shape
        if fits and are_indices(index.numpy(), self._counts[side]) and bool(torch.isfinite(norm).all()):
            length: Tensor = torch.linalg.vector_norm(features, dim=1)  # of half precision's range, so it does not overflow
            if bool(torch.isfinite(length).all()):
                return StoredFeatures(index, features, length, norm / SCALE)
        raise TracInError(f"{path} does not belong to this run, or is damaged; delete it to have it computed again.")

    def label_losses(self) -> Tensor | None:
        """-log of the probability of each train sample's label, [train], double precision; None where it is not its whole loss.

        They weigh the samples' curvature, see `analysis.predicted_need`.

        Raises:
            TracInError: a shard is damaged or of another run.
        """
        found = torch.full((self._counts["train"],), torch.nan, dtype=torch.float64)
        for path in self._paths("train"):
            index, losses = (read_tensor(path, name, owner=self._owner) for name in ("index", _LABELS))
            if losses is None:
                return None
            if index is None or index.shape != losses.shape or not are_indices(index.numpy(), self._counts["train"]):
                raise TracInError(f"{path} does not belong to this run, or is damaged; delete it to have it computed again.")
            found[index] = losses
        return None if bool(found.isnan().any()) else found

    def count(self, side: Side) -> int:
        """Number of train samples or of probes of the run."""
        return self._counts[side]

    def train_of_shards(self) -> list[Indices]:
        """The train samples of each shard.

        Raises:
            TracInError: the features of a train sample or probe are missing or stored twice.
        """
        found: dict[Side, list[Indices]] = {"train": [], "probes": []}
        for side, count in self._counts.items():
            seen = np.zeros(count, dtype=np.int32)
            paths = self._paths(side)
            for number, path in enumerate(paths):
                for later in paths[number + _TOLD_AHEAD : number + _TOLD_AHEAD + 1]:
                    will_read(later, _HEAD)
                index = read_tensor(path, "index", owner=self._owner)
                if index is None or not are_indices(index.numpy(), count):
                    raise TracInError(f"{path} does not belong to this run, or is damaged; delete it to have it computed again.")
                found[side].append(index.numpy().copy())
                seen[found[side][-1]] += 1  # no index comes twice in a file
            if not (seen == 1).all():
                what = "train samples" if side == "train" else "probes"
                raise TracInError(
                    f"{self.folder} is incomplete: of {count} {what} {int((seen == 0).sum())} are missing and "
                    f"{int((seen > 1).sum())} are in more than one file; run the attribution again."
                )
        return found["train"]

    def _path(self, side: Side, shard: str) -> Path:
        return self.folder / f"{side}-{shard}.safetensors"

    def _paths(self, side: Side) -> list[Path]:
        paths = sorted(self.folder.glob(f"{side}-*.safetensors"), key=lambda path: path.name)
        return [path for path in paths if not path.name.startswith(_ADDED) or _number(path) < self._additions]


def _number(path: Path) -> int:
    """The addition of probes that a shard belongs to."""
    return int(path.name.removeprefix(_ADDED).partition("-")[0])
