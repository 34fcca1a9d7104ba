"""The ingredients of one snapshot: inner products and norms of gradients, from which every score is derived.

On disk they are a folder `ingredients/0003-step375/` of shards. A shard is a block (some train samples x some probes), and is
either complete or absent. The folder is complete when the blocks cover every pair once; missing blocks can be computed later.
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
from lightning_tracin.storage.shards import FloatArray, Indices, Ingredients, OneShard, Shards, are_indices


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
        probes: number of probes of the run (or of columns, if there are sums of probes instead).
        owner: what the shards belong to; see `files.write_tensors`.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     store = IngredientStore(Path(folder), train=1, probes=2)
        ...     store.write("00000", Block([0], [1, 0], torch.tensor([[[5.0, 6.0]]]), torch.ones(1, 1), torch.ones(1, 2)))
        ...     store.is_complete(), store.read().dot.tolist()
        (True, [[[6.0, 5.0]]])
    """

    def __init__(self, folder: Path, train: int, probes: int, owner: str = "") -> None:
        self.folder, self._owner = folder, owner
        self._train, self._probes = train, probes

    def has(self, shard: str) -> bool:
        """Whether the shard of this name exists."""
        return self._path(shard).exists()

    def keep_only(self, shards: Collection[str]) -> None:
        """Delete all other shards, which a pass with another chunk size left."""
        names = {self._path(shard).name for shard in shards}
        for path in self._paths():
            if path.name not in names:
                path.unlink(missing_ok=True)  # another rank may have deleted it

    def is_complete(self) -> bool:
        """Whether every pair of train sample and probe is stored, undamaged; reads one file at a time."""
        try:
            if self._rows_of_files() is None:
                self.read()
            else:
                for path in self._paths():
                    self._tensors(path, None)
        except TracInError:
            return False
        return True

    def write(self, shard: str, block: Block) -> None:
        """Write one shard, completely or not at all."""
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
        """All shards joined.

        Args:
            into: for each part, the group that it is added to; None keeps the parts separate.

        Raises:
            TracInError: a shard is missing or damaged, or two overlap.
        """
        paths = self._paths()
        if not paths:
            raise TracInError(
                f"{self.folder} holds no ingredients: the attribution of this snapshot has not been run; run it, or restore the "
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
                f"{self.folder} is incomplete: of {covered.size} pairs of train sample and probe {missing} are missing and "
                f"{double} are in more than one file; run the attribution again."
            )
        return whole

    def some(self, train: Sequence[int], probes: Sequence[int]) -> Ingredients:
        """The ingredients of some train samples and probes, by part; reads only the files that hold them.

        Args:
            train: indices of the train samples, in the order of the result.
            probes: indices of the probes (or columns), in the order of the result.

        Raises:
            TracInError: a pair is missing, or a file is damaged.
        """
        found: Ingredients | None = None
        covered = np.zeros((len(train), len(probes)), dtype=bool)
        wanted = np.asarray(train), np.asarray(probes)
        for path in self._paths():
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
            raise TracInError(f"{self.folder} is incomplete: not all of its pairs are there; run the attribution again.")
        return found

    def shards(self, into: Sequence[int] | None = None) -> Shards:
        """All ingredients, by shards of train samples; each has all probes and is read when it is asked for.

        Args:
            into: see `read`.

        Raises:
            TracInError: see `read`.
        """
        files = self._rows_of_files()
        if files is None:
            return OneShard(self.read(into))  # the blocks are cut in another way, or some are missing, which `read` reports
        train = [np.frombuffer(key, np.int64) for key in files]

        def read(paths: list[Path]) -> list[dict[str, npt.NDArray[Any]]]:
            return [self._tensors(path, into) for path in paths]

        return _FileShards(train, Ahead(read, list(files.values())), self._probes, into)

    def _rows_of_files(self) -> dict[bytes, list[Path]] | None:
        """The files of each shard of train samples (as bytes of their indices); None unless together they cover each pair once.

        Raises:
            TracInError: a file is not a shard.
        """
        files: dict[bytes, list[Path]] = {}
        probes: dict[bytes, list[int]] = {}
        for path in self._paths():
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
        """The contents of a shard's file.

        Raises:
            TracInError: it is damaged, or not a shard of this run.
        """
        tensors = {name: tensor.numpy() for name, tensor in read_tensors(path, owner=self._owner).items()}
        if set(tensors) != {"train", "probes", "dot", "train_norm", "probe_norm"}:
            raise TracInError(f"{path} is not a shard of ingredients (it holds {sorted(tensors)}); delete it.")
        dot, sizes = tensors["dot"], (tensors["train"].size, tensors["probes"].size)
        parts = len(into) if into is not None else len(dot) if dot.ndim else 0
        shapes = {"dot": (parts, *sizes), "train_norm": (parts, sizes[0]), "probe_norm": (parts, sizes[1])}
        fits = parts > 0 and all(tensors[name].shape == shape for name, shape in shapes.items())
        inside = are_indices(tensors["train"], self._train) and are_indices(tensors["probes"], self._probes)
        finite = all(np.isfinite(np.asarray(tensors[name], dtype=np.float32)).all() for name in shapes)
        if not fits or not inside or not finite:
            raise TracInError(f"{path} does not belong to this run, or is damaged; delete it to have it computed again.")
        return tensors

    def discard(self) -> None:
        """Delete all shards."""
        remove_tree(self.folder)

    def _path(self, shard: str) -> Path:
        return self.folder / f"{shard}.safetensors"

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))


@dataclass(frozen=True)
class _FileShards:
    """Ingredients of a snapshot whose shards are read when they are asked for; see `shards.Shards`."""

    train: Sequence[Indices]  # the train samples of each shard
    files: Ahead[list[Path], list[dict[str, npt.NDArray[Any]]]]  # the contents of each shard's files
    probes: int  # number of all probes
    into: Sequence[int] | None

    @property
    def nbytes(self) -> int:
        """Bytes held between reads."""
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
                raise TracInError(f"A shard of {count} train samples was rewritten while it was read; open the run again.")
            _fill(whole, np.ix_(np.arange(count), tensors["probes"]), tensors, numbers)
        return whole


def _empty(groups: int, train: int, probes: int) -> Ingredients:
    """Ingredients full of zeros."""
    dot = np.zeros((groups, train, probes), np.float32)
    return Ingredients(dot, np.zeros((groups, train), np.float32), np.zeros((groups, probes), np.float32))


def _fill(whole: Ingredients, cells: tuple[Any, ...], tensors: dict[str, npt.NDArray[Any]], into: Sequence[int]) -> None:
    """Write a file's contents to its rows and columns, with parts added up to groups."""
    rows, columns = cells[0][:, 0], cells[1][0]
    whole.dot[:, cells[0], cells[1]] = _sums(tensors["dot"], into)
    whole.train_norm[:, rows] = np.sqrt(_sums(np.square(tensors["train_norm"]), into))
    whole.probe_norm[:, columns] = np.sqrt(_sums(np.square(tensors["probe_norm"]), into))


def _sums(values: npt.NDArray[np.generic], into: Sequence[int]) -> FloatArray:
    """Add up parts to groups along the first axis."""
    out = np.zeros((max(into) + 1, *values.shape[1:]), dtype=np.float32)
    for part, group in enumerate(into):
        out[group] += np.asarray(values[part], dtype=np.float32)
    return out
