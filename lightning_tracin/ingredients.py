"""The ingredients of one snapshot: inner products and norms of gradients, from which every score is derived.

On disk they are a folder `ingredients/0003-step375/` of shards, each a block (some train samples x some probes), each
complete or absent. The folder is complete when the blocks cover every pair once; what is missing can be computed later.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_tracin.errors import TracInError
from lightning_tracin.places import remove_tree
from lightning_tracin.store import read_tensors, write_tensors

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Ingredients:
    """Products and norms by parameter group (or by part, or layer)."""

    dot: FloatArray  # [groups, train, probes]
    train_norm: FloatArray  # [groups, train]
    probe_norm: FloatArray  # [groups, probes]


@dataclass(frozen=True)
class Block:
    """Ingredients of some train samples and some probes."""

    train: Sequence[int]  # indices of the train samples
    probes: Sequence[int]  # indices of the probes
    dot: Tensor  # [parts, len(train), len(probes)]
    train_norm: Tensor  # [parts, len(train)]
    probe_norm: Tensor  # [parts, len(probes)]


class IngredientStore:
    """The shards of one snapshot.

    Args:
        folder: the snapshot's folder under `ingredients`.
        train: number of train samples of the run.
        probes: number of probes of the run (of columns, where sums of probes stand in their place).
        owner: what the shards belong to; see `store.write_tensors`.
    """

    def __init__(self, folder: Path, train: int, probes: int, owner: str = "") -> None:
        self._folder, self._owner = folder, owner
        self._train, self._probes = train, probes

    def has(self, shard: str) -> bool:
        """Whether the shard of this name is there."""
        return self._path(shard).exists()

    def keep_only(self, shards: Collection[str]) -> None:
        """Delete shards of other names: those of a pass that took the probes in chunks of another size."""
        names = {self._path(shard).name for shard in shards}
        for path in self._folder.glob("*.safetensors") if self._folder.exists() else ():
            if path.name not in names:
                path.unlink()

    def is_complete(self) -> bool:
        """Whether every pair of train sample and probe is there."""
        try:
            self.read()
        except TracInError:
            return False
        return True

    def write(self, shard: str, block: Block) -> None:
        """Write one shard, whole or not at all."""
        write_tensors(
            self._path(shard),
            {
                "train": torch.tensor(block.train, dtype=torch.int64),
                "probes": torch.tensor(block.probes, dtype=torch.int64),
                "dot": block.dot.float().cpu(),
                "train_norm": block.train_norm.float().cpu(),
                "probe_norm": block.probe_norm.float().cpu(),
            },
            self._owner,
        )

    def read(self, into: Sequence[int] | None = None) -> Ingredients:
        """All shards as one.

        Args:
            into: for each part, the number of the group that it is added to; None keeps the parts.

        Raises:
            TracInError: a shard is missing or damaged, or two overlap.
        """
        paths = sorted(self._folder.glob("*.safetensors")) if self._folder.exists() else []
        if not paths:
            raise TracInError(
                f"{self._folder} holds no ingredients: the attribution of this snapshot has not been run; run it, or restore the "
                "files where they were deleted."
            )
        whole: Ingredients | None = None
        covered = np.zeros((self._train, self._probes), dtype=np.int8)
        for path in paths:
            tensors = {name: tensor.numpy() for name, tensor in read_tensors(path, owner=self._owner).items()}
            self._check(path, tensors, into)
            numbers = range(len(tensors["dot"])) if into is None else into
            if whole is None:
                groups = max(numbers) + 1
                whole = Ingredients(
                    np.zeros((groups, self._train, self._probes), np.float32),
                    np.zeros((groups, self._train), np.float32),
                    np.zeros((groups, self._probes), np.float32),
                )
            cells = np.ix_(tensors["train"], tensors["probes"])
            covered[cells] += 1
            whole.dot[:, cells[0], cells[1]] = _sums(tensors["dot"], numbers)
            whole.train_norm[:, tensors["train"]] = np.sqrt(_sums(np.square(tensors["train_norm"]), numbers))
            whole.probe_norm[:, tensors["probes"]] = np.sqrt(_sums(np.square(tensors["probe_norm"]), numbers))
        if whole is None or not (covered == 1).all():
            missing, double = int((covered == 0).sum()), int((covered > 1).sum())
            raise TracInError(
                f"{self._folder} is incomplete: of {covered.size} pairs of train sample and probe {missing} are missing and "
                f"{double} stand in more than one file; run the attribution again."
            )
        return whole

    def discard(self) -> None:
        """Delete all shards."""
        remove_tree(self._folder)

    def _path(self, shard: str) -> Path:
        return self._folder / f"{shard}.safetensors"

    def _check(self, path: Path, tensors: dict[str, npt.NDArray[np.generic]], into: Sequence[int] | None) -> None:
        names = {"train", "probes", "dot", "train_norm", "probe_norm"}
        if set(tensors) != names:
            raise TracInError(f"{path} is not a shard of ingredients (it holds {sorted(tensors)}); delete it.")
        dot, sizes = tensors["dot"], (tensors["train"].size, tensors["probes"].size)
        parts = len(into) if into is not None else len(dot) if dot.ndim else 0
        shapes = {"dot": (parts, *sizes), "train_norm": (parts, sizes[0]), "probe_norm": (parts, sizes[1])}
        fits = parts > 0 and all(tensors[name].shape == shape for name, shape in shapes.items())
        inside = _are_indices(tensors["train"], self._train) and _are_indices(tensors["probes"], self._probes)
        finite = all(np.isfinite(np.asarray(tensors[name], dtype=np.float32)).all() for name in shapes)
        if not fits or not inside or not finite:
            raise TracInError(f"{path} does not belong to this run, or is damaged; delete it to have it computed again.")


def _are_indices(values: npt.NDArray[np.generic], bound: int) -> bool:
    """Whether these are different numbers from 0 up to the bound."""
    if values.ndim != 1 or values.dtype != np.int64:
        return False
    numbers = set(values.tolist())
    return len(numbers) == len(values) and numbers <= set(range(bound))


def _sums(values: npt.NDArray[np.generic], into: Sequence[int]) -> FloatArray:
    """Parts added up to groups along the first axis."""
    out = np.zeros((max(into) + 1, *values.shape[1:]), dtype=np.float32)
    for part, group in enumerate(into):
        out[group] += np.asarray(values[part], dtype=np.float32)
    return out
