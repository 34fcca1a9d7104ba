"""The ingredients of one snapshot: inner products and norms of gradients, from which every score is derived.

On disk they are a folder `ingredients/0003-step375/` of shards, each a block (some train samples x some probes), each
complete or absent. The folder is complete when the blocks cover every pair once; what is missing can be computed later.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_tracin.errors import TracInError
from lightning_tracin.storage.files import read_tensor, read_tensors, write_tensors
from lightning_tracin.storage.filesystem import remove_tree
from lightning_tracin.storage.prefetch import Ahead
from lightning_tracin.storage.shards import FloatArray, Indices, Ingredients, OneShard, Shards


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

    @property
    def folder(self) -> Path:
        """Where the shards stand."""
        return self._folder

    def has(self, shard: str) -> bool:
        """Whether the shard of this name is there."""
        return self._path(shard).exists()

    def keep_only(self, shards: Collection[str]) -> None:
        """Delete shards of other names: those of a pass that took the probes in chunks of another size."""
        names = {self._path(shard).name for shard in shards}
        for path in self._folder.glob("*.safetensors") if self._folder.exists() else ():
            if path.name not in names:
                path.unlink(missing_ok=True)  # ranks clean up side by side

    def is_complete(self) -> bool:
        """Whether every pair of train sample and probe is there, undamaged; one file at a time is in memory."""
        try:
            files = self._rows_of_files()
            if files is None:
                self.read()
            for path in [path for paths in (files or {}).values() for path in paths]:
                self._tensors(path, None)
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
            tensors = self._tensors(path, into)
            numbers = range(len(tensors["dot"])) if into is None else into
            if whole is None:
                whole = _empty(max(numbers) + 1, self._train, self._probes)
            cells = np.ix_(tensors["train"], tensors["probes"])
            covered[cells] += 1
            _fill(whole, cells, tensors, numbers)
        if whole is None or not (covered == 1).all():
            missing, double = int((covered == 0).sum()), int((covered > 1).sum())
            raise TracInError(
                f"{self._folder} is incomplete: of {covered.size} pairs of train sample and probe {missing} are missing and "
                f"{double} stand in more than one file; run the attribution again."
            )
        return whole

    def some(self, train: Sequence[int], probes: Sequence[int]) -> Ingredients:
        """Some train samples and some probes alone, by part; only the files that hold these are read.

        Args:
            train: indices of the train samples, in the order of the result.
            probes: indices of the probes (of columns).

        Raises:
            TracInError: a pair is missing, or a file is damaged.
        """
        found: Ingredients | None = None
        covered = np.zeros((len(train), len(probes)), dtype=bool)
        wanted = np.asarray(train), np.asarray(probes)
        for path in sorted(self._folder.glob("*.safetensors")):
            index = [read_tensor(path, name, owner=self._owner) for name in ("train", "probes")]
            if any(one is None or not np.isin(other, one).any() for one, other in zip(index, wanted, strict=True)):
                continue
            tensors = self._tensors(path, None)
            if found is None:
                found = _empty(len(tensors["dot"]), len(train), len(probes))
            (rows, of_train), (columns, of_probes) = (
                np.nonzero(other[:, None] == tensors[name]) for name, other in zip(("train", "probes"), wanted, strict=True)
            )
            found.dot[:, rows[:, None], columns] = tensors["dot"][:, of_train[:, None], of_probes]
            found.train_norm[:, rows] = tensors["train_norm"][:, of_train]
            found.probe_norm[:, columns] = tensors["probe_norm"][:, of_probes]
            covered[rows[:, None], columns] = True
        if found is None or not covered.all():
            raise TracInError(f"{self._folder} is incomplete: not all of its pairs are there; run the attribution again.")
        return found

    def shards(self, into: Sequence[int] | None = None) -> Shards:
        """The same, shard by shard of the train samples, each with all probes and read when it is asked for.

        Args:
            into: see `read`.

        Raises:
            TracInError: see `read`.
        """
        files = self._rows_of_files()
        if files is None:
            return OneShard(self.read(into))  # cut in another way, or what it lacks is said there
        train = [np.frombuffer(key, np.int64) for key in files]

        def read(paths: list[Path]) -> list[dict[str, npt.NDArray[Any]]]:
            return [self._tensors(path, into) for path in paths]

        return _FileShards(train, Ahead(read, list(files.values())), self._probes, into)

    def _rows_of_files(self) -> dict[bytes, list[Path]] | None:
        """The files of each shard of train samples (as bytes of their indices), which together have all pairs once; else None.

        Raises:
            TracInError: a file is no shard.
        """
        files: dict[bytes, list[Path]] = {}
        probes: dict[bytes, list[int]] = {}
        for path in sorted(self._folder.glob("*.safetensors")):
            rows, columns = (read_tensor(path, name, owner=self._owner) for name in ("train", "probes"))
            if rows is None or columns is None:
                raise TracInError(f"{path} is not a shard of ingredients; delete it.")
            key = rows.numpy().tobytes()
            files.setdefault(key, []).append(path)
            probes.setdefault(key, []).extend(columns.tolist())
        train = [np.frombuffer(key, np.int64) for key in files]
        every = np.concatenate([np.zeros(0, np.int64), *train])
        complete = np.array_equal(np.sort(every), np.arange(self._train))
        if not complete or any(sorted(columns) != list(range(self._probes)) for columns in probes.values()):
            return None
        return files

    def _tensors(self, path: Path, into: Sequence[int] | None) -> dict[str, npt.NDArray[Any]]:
        """What a shard's file holds.

        Raises:
            TracInError: it is damaged, or no such file.
        """
        tensors = {name: tensor.numpy() for name, tensor in read_tensors(path, owner=self._owner).items()}
        self._check(path, tensors, into)
        return tensors

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


@dataclass(frozen=True)
class _FileShards:
    """Ingredients of a snapshot, of which each shard is read when it is asked for; see `shards.Shards`."""

    train: Sequence[Indices]  # the train samples of each shard
    files: Ahead[list[Path], list[dict[str, npt.NDArray[Any]]]]  # what the files of each shard hold
    probes: int  # number of all probes
    into: Sequence[int] | None

    @property
    def nbytes(self) -> int:
        """Bytes that are held between reads."""
        return sum(index.nbytes for index in self.train)

    def read(self, shard: int) -> Ingredients:
        """The ingredients of a shard's train samples, in the order of `train`, with all probes.

        Raises:
            TracInError: a file is missing or damaged.
        """
        files = self.files[shard]
        numbers = range(len(files[0]["dot"])) if self.into is None else self.into
        count = len(self.train[shard])
        whole = _empty(max(numbers) + 1, count, self.probes)
        for tensors in files:
            if not np.array_equal(tensors["train"], self.train[shard]):
                raise TracInError(f"A shard of {count} train samples was written anew while it was read; open the run again.")
            _fill(whole, np.ix_(np.arange(count), tensors["probes"]), tensors, numbers)
        return whole


def _empty(groups: int, train: int, probes: int) -> Ingredients:
    """Ingredients to be filled."""
    dot = np.zeros((groups, train, probes), np.float32)
    return Ingredients(dot, np.zeros((groups, train), np.float32), np.zeros((groups, probes), np.float32))


def _fill(whole: Ingredients, cells: tuple[Any, ...], tensors: dict[str, npt.NDArray[Any]], into: Sequence[int]) -> None:
    """Put what a file holds at its rows and columns, parts added up to groups."""
    rows, columns = cells[0][:, 0], cells[1][0]
    whole.dot[:, cells[0], cells[1]] = _sums(tensors["dot"], into)
    whole.train_norm[:, rows] = np.sqrt(_sums(np.square(tensors["train_norm"]), into))
    whole.probe_norm[:, columns] = np.sqrt(_sums(np.square(tensors["probe_norm"]), into))


def _are_indices(values: npt.NDArray[np.generic], bound: int) -> bool:
    """Whether these are different numbers from 0 up to the bound."""
    if values.ndim != 1 or values.dtype != np.int64:
        return False
    numbers = values.astype(np.int64, copy=False)
    return bool(((numbers >= 0) & (numbers < bound)).all()) and len(np.unique(numbers)) == len(numbers)


def _sums(values: npt.NDArray[np.generic], into: Sequence[int]) -> FloatArray:
    """Parts added up to groups along the first axis."""
    out = np.zeros((max(into) + 1, *values.shape[1:]), dtype=np.float32)
    for part, group in enumerate(into):
        out[group] += np.asarray(values[part], dtype=np.float32)
    return out
