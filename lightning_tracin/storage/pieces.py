"""Tensors of a sharded model: each process writes the pieces that it holds, and a reader puts them together.

The pieces of `weights.safetensors` are in `weights-0000-of-0002.safetensors` and `weights-0001-of-0002.safetensors`, one file for
each process, written through `files`. A piece is a box of its tensor; beside its values, a file holds the shape of the whole and
the position of the box's first element. No two pieces share an element, and no process needs another one's.

    none ----> some ----> all

- *some*: a process has not written its file yet, or was killed before. Who writes them says that they are complete in a record of
  its own, after all processes have written theirs (`Ledger.complete`); so nobody reads them in this state. If a file is lost
  later, there is an error that names it.
- *all*: the name of each file says how many there are.

The functions below also read a file that one process wrote whole, under the name without numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from lightning_tracin.errors import TracInError
from lightning_tracin.storage.files import read_tensors, tensor_names, write_tensors

_VALUES, _PLACE = "values/", "place/"

#: The end of a name without suffix: number of the file, and how many there are.
_NUMBERED = re.compile(r"(.+)-(\d{4,})-of-(\d{4,})")


@dataclass(frozen=True)
class Piece:
    """A box of a tensor.

    Attributes:
        values: the elements in it.
        shape: of the whole tensor.
        start: position of the box's first element, one number for each dimension.

    Example:
        >>> whole = torch.arange(6).view(3, 2)
        >>> Piece(whole[1:], (3, 2), (1, 0)).values.tolist()
        [[2, 3], [4, 5]]
    """

    values: Tensor
    shape: tuple[int, ...]
    start: tuple[int, ...]


def write_pieces(path: Path, pieces: Mapping[str, Piece], number: int, count: int, owner: str = "") -> None:
    """Write the pieces that one process holds.

    Args:
        path: of the file that would hold the whole tensors.
        pieces: by the names of their tensors.
        number: of the process, from 0.
        count: number of processes.
        owner: see `files.write_tensors`.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> whole = torch.arange(6).view(3, 2)
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "weights.safetensors"
        ...     write_pieces(path, {"weight": Piece(whole[:1], (3, 2), (0, 0))}, number=0, count=2)
        ...     write_pieces(path, {"weight": Piece(whole[1:], (3, 2), (1, 0))}, number=1, count=2)
        ...     sorted(one.name for one in Path(folder).iterdir())
        ...     read_stored(path)
        ['weights-0000-of-0002.safetensors', 'weights-0001-of-0002.safetensors']
        {'weight': tensor([[0, 1],
                [2, 3],
                [4, 5]])}
    """
    tensors: dict[str, Tensor] = {}
    for name, piece in pieces.items():
        tensors[f"{_VALUES}{name}"] = piece.values
        tensors[f"{_PLACE}{name}"] = torch.tensor([piece.shape, piece.start], dtype=torch.int64).view(2, len(piece.shape))
    write_tensors(_file_of(path, number, count), tensors, owner)


def require_all_pieces(path: Path, count: int) -> None:
    """Check that the pieces of all processes can be seen from here.

    Args:
        path: of the file that would hold the whole tensors.
        count: number of processes.

    Raises:
        TracInError: one is missing.

    Example:
        >>> require_all_pieces(Path("runs/a/weights.safetensors"), count=2)
        Traceback (most recent call last):
        ...
        lightning_tracin.errors.TracInError: runs/a/weights-0000-of-0002.safetensors, which rank 0 wrote, is not there: all \
processes of a fit must see the same `dirpath`; choose one in a folder that their machines share.
    """
    for number in range(count):
        file = _file_of(path, number, count)
        if not file.exists():
            raise TracInError(
                f"{file}, which rank {number} wrote, is not there: all processes of a fit must see the same `dirpath`; choose "
                "one in a folder that their machines share."
            )


def is_stored(path: Path) -> bool:
    """Whether there is a file, whole or in pieces (all or some)."""
    return path.exists() or bool(_files_of(path))


def stored_names(path: Path, remedy: str, owner: str = "") -> frozenset[str]:
    """The names of the tensors in a file, whole or in pieces, without reading the tensors.

    Args:
        path: of the file, whole.
        remedy: see `files.read_tensors`.
        owner: see `files.read_tensors`.

    Raises:
        TracInError: a file is missing or damaged.
    """
    files = _all_files_of(path, remedy)
    if not files:
        return tensor_names(path, remedy, owner)
    names = (name for file in files for name in tensor_names(file, remedy, owner))
    return frozenset(name.removeprefix(_VALUES) for name in names if name.startswith(_VALUES))


def read_stored(path: Path, remedy: str = "restore it from a copy", owner: str = "") -> dict[str, Tensor]:
    """Read a file of tensors, whole or in pieces; pieces are put together.

    Args:
        path: of the file, whole.
        remedy: see `files.read_tensors`.
        owner: see `files.read_tensors`.

    Raises:
        TracInError: a file is missing or damaged, or the pieces do not make whole tensors.
    """
    files = _all_files_of(path, remedy)
    if not files:
        return read_tensors(path, remedy, owner)
    wholes: dict[str, Tensor] = {}
    boxes: dict[str, list[tuple[slice, ...]]] = {}
    for file in files:
        held = read_tensors(file, remedy, owner)
        for key in [key for key in held if key.startswith(_VALUES)]:
            name, values = key.removeprefix(_VALUES), held.pop(key)
            shape, start = held.pop(f"{_PLACE}{name}").tolist()
            whole = wholes.setdefault(name, torch.empty(shape, dtype=values.dtype))
            box = tuple(slice(at, at + size) for at, size in zip(start, values.shape, strict=True))
            boxes.setdefault(name, []).append(box)
            if whole[box].shape != values.shape:
                raise TracInError(f"{file} is damaged: its piece of {name!r} lies outside of the tensor; {remedy}.")
            whole[box] = values
    for name, whole in wholes.items():
        _require_whole(path, name, whole, boxes[name], remedy)
    return wholes


def delete_stored(path: Path) -> None:
    """Delete a file, whole or in pieces, if it is there."""
    for file in (path, *_files_of(path)):
        file.unlink(missing_ok=True)


def whole_path(path: Path) -> Path:
    """The path of the whole tensors whose pieces, or themselves, are in a file.

    Example:
        >>> whole_path(Path("a/weights-0001-of-0002.safetensors")).name, whole_path(Path("a/weights.safetensors")).name
        ('weights.safetensors', 'weights.safetensors')
    """
    numbered = _NUMBERED.fullmatch(path.stem)
    return path if numbered is None else path.with_name(f"{numbered[1]}{path.suffix}")


def _file_of(path: Path, number: int, count: int) -> Path:
    return path.with_name(f"{path.stem}-{number:04d}-of-{count:04d}{path.suffix}")


def _files_of(path: Path) -> list[Path]:
    """The files with pieces that are there."""
    found = path.parent.glob(f"{path.stem}-*-of-*{path.suffix}")
    return sorted(one for one in found if whole_path(one).name == path.name)


def _all_files_of(path: Path, remedy: str) -> list[Path]:
    """All files with pieces; none if the file is whole, or not there at all.

    Raises:
        TracInError: some are missing.
    """
    found = [] if path.exists() else _files_of(path)
    counts = {int(numbered[3]) for one in found if (numbered := _NUMBERED.fullmatch(one.stem)) is not None}
    for count in counts:
        for number in range(count):
            if _file_of(path, number, count).name not in {one.name for one in found}:
                raise TracInError(f"{_file_of(path, number, count)} is missing; {remedy}.")
    if len(counts) > 1:
        listed = " and ".join(map(str, sorted(counts)))
        raise TracInError(f"{path.parent} holds the pieces of {path.name} twice, in {listed} files; {remedy}.")
    return found


def _require_whole(path: Path, name: str, whole: Tensor, boxes: list[tuple[slice, ...]], remedy: str) -> None:
    """Check that boxes fill a tensor, each element once."""
    elements = sum(whole[box].numel() for box in boxes)
    twice = any(_share_elements(one, other) for one, other in combinations(boxes, 2))
    if twice or elements != whole.numel():
        raise TracInError(
            f"The pieces of {path.name} in {path.parent} do not make the whole of {name!r}: they hold {elements} elements"
            f"{', some of them twice' if twice else ''}, and it has {whole.numel()}; {remedy}."
        )


def _share_elements(one: tuple[slice, ...], other: tuple[slice, ...]) -> bool:
    return all(max(a.start, b.start) < min(a.stop, b.stop) for a, b in zip(one, other, strict=True))
