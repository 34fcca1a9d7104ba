"""Snapshots of a fit, and the ledger that orders them.

A snapshot is a folder `snapshots/0003-step375/` with the weights, a record and, for `preconditioner="adam"`, the scales from
Adam's second moments. Those of a sharded fit are written by its processes, each its own pieces (`pieces`), and hold the second
moments themselves. A snapshot is in one of these states:

    absent --append--> begun --append--> taken --discard_weights--> light
       ^                 |                 |                          |
       +----- next append of that index / cut_back (a resumed fit) ---+

- *begun*: weights without a record, left by a killed process. It is not in the ledger; the next snapshot of that name replaces
  the folder.
- *taken*: the record, which is written last, exists. From now on ingredients may be computed from it. Ingredients that a killed
  fit left under that name are deleted before the record is written (`Session.snapshot`).
- *light*: the weights were deleted after the ingredients were complete (`keep_snapshots=False`). The record stays, so the ledger
  stays complete.
- `cut_back` removes snapshots in the opposite order: ingredients first (`RunDirectory.resume`), then the record, then the rest.
  It starts with the last snapshot, so the ledger has no gap at any moment.

The ledger consists of the taken and light snapshots. Their indices count from 0 without a gap. `run.json` holds their number from
the end of the fit (`RunDirectory.end`) until it is resumed. During a fit, a last snapshot that lost its record cannot be
distinguished from one that was only begun.

A snapshot holds the parameters that were trainable when it was taken. The values of parameters that are unfrozen later are
written once, before their first step, to `snapshots/unfrozen-step375.safetensors`. Earlier snapshots read them from there, and
every later record names that file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator
from torch import Tensor, nn

from lightning_tracin.errors import TracInError
from lightning_tracin.storage.files import read_record, read_tensors, write_record, write_tensors
from lightning_tracin.storage.filesystem import remove_tree
from lightning_tracin.storage.pieces import (
    Piece,
    delete_stored,
    is_stored,
    read_stored,
    require_all_pieces,
    stored_names,
    whole_path,
    write_pieces,
)

_RECORD = "snapshot.json"
_WEIGHTS = "weights.safetensors"
_SCALES = "adam.safetensors"
_MOMENTS = "moments.safetensors"


class SnapshotRecord(BaseModel):
    """Everything stored for a snapshot apart from its tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int = Field(ge=0, description="position in the ledger")
    epoch: int = Field(ge=1, description="number of the epoch it was taken in, from 1")
    step: int = Field(ge=0, description="optimizer steps made so far")
    steps: int = Field(ge=0, description="optimizer steps since the previous snapshot")
    visits: FiniteFloat = Field(ge=0, description="how often a train sample was seen on average since the previous snapshot")
    learning_rates: tuple[FiniteFloat, ...] = Field(description="of each group, mean over those steps")
    last_learning_rates: tuple[FiniteFloat, ...] = Field(description="of each group, at the last of those steps")
    groups: dict[str, int] = Field(description="scored parameter -> its group")
    elements: int = Field(ge=1, description="number of elements of the scored parameters")
    frozen: str | None = Field(default=None, description="digest of the parameters whose values are not stored; null = unknown")
    run: str = Field(default="", description="identity of the fit")
    global_step: int | None = Field(default=None, ge=0, description="the Trainer's own count of steps; null = unknown")
    witnesses: tuple[float, ...] = Field(default=(), description="losses of a few train samples when it was taken")
    plain_steps: bool = Field(default=False, description="whether the fit's steps are rates times gradients, as in plain SGD")
    unfrozen: tuple[int, ...] = Field(default=(), description="steps after which parameters were unfrozen")

    @property
    def digest(self) -> str:
        """Digest of the whole record, which tells the snapshots of two fits at the same step apart."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @model_validator(mode="after")
    def _agrees(self) -> SnapshotRecord:
        groups = len(self.learning_rates)
        if len(self.last_learning_rates) != groups or not all(0 <= group < groups for group in self.groups.values()):
            raise ValueError("groups and learning rates do not agree")
        return self


@dataclass(frozen=True)
class Snapshot:
    """Weights at one moment of the fit, with epoch, optimizer step and learning rates."""

    record: SnapshotRecord
    path: Path

    @property
    def index(self) -> int:
        """Position in the ledger."""
        return self.record.index

    @property
    def epoch(self) -> int:
        """Number of the epoch in which it was taken, from 1."""
        return self.record.epoch

    @property
    def step(self) -> int:
        """Optimizer steps made so far."""
        return self.record.step

    @property
    def steps(self) -> int:
        """Optimizer steps since the previous snapshot."""
        return self.record.steps

    @property
    def visits(self) -> float:
        """How often a train sample was seen on average since the previous snapshot (1 for a whole epoch)."""
        return self.record.visits

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """Learning rate of each parameter group, averaged over the optimizer steps since the previous snapshot."""
        return self.record.learning_rates

    @property
    def name(self) -> str:
        """The name of its folder, and of the folders computed from it."""
        return self.path.name

    @property
    def kept(self) -> bool:
        """Whether the weights still exist."""
        return is_stored(self.path / _WEIGHTS)

    @property
    def own_names(self) -> frozenset[str]:
        """Names in its own weights file: parameters that were trainable when it was taken, and buffers.

        Raises:
            TracInError: the weights were discarded or are damaged.
        """
        self._require_kept()
        return stored_names(self.path / _WEIGHTS, self._remedy, self._owner)

    def _require_kept(self) -> None:
        if not self.kept:
            raise TracInError(
                f"The weights of snapshot {self.name} were not kept: {self.path / _WEIGHTS} is not there; use "
                "`keep_snapshots=True` to have them, or restore the file where it was deleted."
            )

    def state_dict(self) -> dict[str, Tensor]:
        """The weights: trainable parameters and all buffers, by name.

        Raises:
            TracInError: the weights were discarded or are damaged.
        """
        self._require_kept()
        weights = read_stored(self.path / _WEIGHTS, self._remedy, self._owner)
        for step, path in _unfrozen(self.path.parent):
            if step >= self.step:
                weights = {**read_stored(path, self._remedy, _owner(self.record.run)), **weights}
        return weights

    @property
    def _owner(self) -> str:
        return _owner(self.record.run, self.name)

    @property
    def _remedy(self) -> str:
        return f"restore it from a copy, or resume the fit from a checkpoint of a step before {self.step}"

    def scales(self) -> dict[str, Tensor]:
        """The factors by which Adam scales gradients, by parameter (`adam.adam_scales`).

        Raises:
            TracInError: they were not stored or are damaged.
        """
        return read_tensors(self.path / _SCALES, self._remedy, self._owner)

    def second_moments(self) -> dict[str, Tensor] | None:
        """Adam's second moments, which a sharded fit stores instead of scales (`adam.moments_of`); None if there are none.

        Raises:
            TracInError: they are damaged.
        """
        path = self.path / _MOMENTS
        return read_stored(path, self._remedy, self._owner) if is_stored(path) else None

    def discard_weights(self) -> None:
        """Delete the weights, and the scales or second moments; keep the record."""
        for name in (_WEIGHTS, _SCALES, _MOMENTS):
            delete_stored(self.path / name)


def _owner(run: str, *parts: str) -> str:
    """What files of snapshots belong to; empty for old runs, which have no identity."""
    return "/".join((run, "snapshots", *parts)) if run else ""


def _unfrozen(folder: Path) -> list[tuple[int, Path]]:
    """Files of parameters that were unfrozen during the fit, with their steps, in order; the first file that names one counts."""
    found = {whole_path(path) for path in folder.glob("unfrozen-step*.safetensors")}
    return sorted((int(path.stem.rpartition("step")[2]), path) for path in found)


def trainable_names(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that currently require a gradient.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> _ = layer.bias.requires_grad_(False)
        >>> trainable_names(layer)
        frozenset({'weight'})
    """
    return frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)


def weights_of(model: nn.Module, trainable: Collection[str]) -> dict[str, Tensor]:
    """The named parameters and all buffers, detached and not copied; tied parameters appear once.

    Example:
        >>> list(weights_of(nn.BatchNorm1d(2), ["weight"]))
        ['weight', 'running_mean', 'running_var', 'num_batches_tracked']
    """
    tensors: dict[str, Tensor] = {name: parameter for name, parameter in model.named_parameters() if name in trainable}
    tensors.update(model.named_buffers())
    return {name: tensor.detach() for name, tensor in tensors.items()}


def copied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of weights on the CPU.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> kept = copied(layer.state_dict())
        >>> _ = nn.init.constant_(layer.bias, 5.0)
        >>> kept["bias"].item() == 5.0
        False
    """
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights.items()}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load a snapshot's weights into a model of the same shape, in the model's own data type.

    Raises:
        TracInError: the model has no tensor of that name and shape.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> load_weights(layer, {"bias": Tensor([3.0])})
        >>> layer.bias.item()
        3.0
    """
    places: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, value in weights.items():
        place = places.get(name)
        if place is None or place.shape != value.shape:
            got = "no such tensor" if place is None else f"one of shape {list(place.shape)}"
            raise TracInError(
                f"The snapshot's {name!r} has shape {list(value.shape)}, but the model has {got}; use the model of the fit."
            )
        place.data.copy_(value)


class Ledger:
    """The ordered, durable record of a run's snapshots.

    Args:
        folder: the run's `snapshots` folder.
        run: identity of the fit.
        count: how many snapshots there must be; None if the fit has not ended, when any number is fine.
    """

    def __init__(self, folder: Path, run: str = "", count: int | None = None) -> None:
        self._folder, self._run, self._count = folder, run, count
        self._known: tuple[Snapshot, ...] | None = None

    def snapshots(self) -> tuple[Snapshot, ...]:
        """All snapshots in order. They are read once; then this ledger's own changes keep the cache up to date.

        Raises:
            TracInError: a record is damaged or of another run, or one is missing.
        """
        if self._known is None:
            self._known = self._read()
        return self._known

    def reload(self) -> None:
        """Drop the cache, because another process has written."""
        self._known = None

    def _read(self) -> tuple[Snapshot, ...]:
        records = sorted(self._folder.glob(f"*/{_RECORD}"))
        found = tuple(Snapshot(read_record(path, SnapshotRecord), path.parent) for path in records)
        for position, snapshot in enumerate(found):
            if snapshot.index != position or snapshot.name != folder_name(snapshot.record):
                raise TracInError(
                    f"{snapshot.path} is at position {position} of the ledger but its record says index {snapshot.index}, "
                    f"step {snapshot.step}; {self._missing(position)} is missing or was moved. Restore {self._folder} as it was."
                )
            if snapshot.record.run not in ("", self._run):
                raise TracInError(
                    f"{snapshot.path / _RECORD} is of another run ({snapshot.record.run}) than "
                    f"{self._folder.parent / 'run.json'} ({self._run}); restore the one that was replaced, or start a new run."
                )
        if self._count not in (None, len(found)):
            raise TracInError(
                f"{self._folder} holds {len(found)} snapshots, but the fit ended with {self._count}: "
                f"{self._missing(len(found))} is missing. Restore it from a copy, or start a new run."
            )
        known = {step for step, _ in _unfrozen(self._folder)}
        for step in found[-1].record.unfrozen if found else ():
            if step not in known:
                raise TracInError(f"{self._folder / _unfrozen_name(step)} is missing; restore it from a copy.")
        return found

    def _missing(self, position: int) -> str:
        """The record that is missing at a position, if its folder exists."""
        empty = [path / _RECORD for path in self._folder.glob(f"{position:04d}-step*") if not (path / _RECORD).exists()]
        return str(empty[0]) if empty else "a snapshot"

    def append(
        self, record: SnapshotRecord, weights: Mapping[str, Tensor] | None, scales: Mapping[str, Tensor] | None = None
    ) -> Snapshot:
        """Add a snapshot; without weights, only its record is stored."""
        path, owner = self.begin(record), _owner(self._run, folder_name(record))
        if weights is not None:
            write_tensors(path / _WEIGHTS, weights, owner)
            if scales is not None:
                write_tensors(path / _SCALES, scales, owner)
        return self._recorded(record)

    def begin(self, record: SnapshotRecord) -> Path:
        """Make room for a snapshot, and return its folder: what a killed fit left there is deleted."""
        path = self._folder / folder_name(record)
        remove_tree(path)
        return path

    def append_pieces(
        self, record: SnapshotRecord, weights: Mapping[str, Piece], moments: Mapping[str, Piece] | None, rank: int, ranks: int
    ) -> None:
        """Write one process's pieces of a snapshot; `begin` comes before those of all processes, `complete` after them."""
        path, owner = self._folder / folder_name(record), _owner(self._run, folder_name(record))
        write_pieces(path / _WEIGHTS, weights, rank, ranks, owner)
        if moments is not None:
            write_pieces(path / _MOMENTS, moments, rank, ranks, owner)

    def complete(self, record: SnapshotRecord, ranks: int) -> Snapshot:
        """Add a snapshot whose pieces all processes have written.

        Raises:
            TracInError: those of one of them are not there.
        """
        require_all_pieces(self._folder / folder_name(record) / _WEIGHTS, ranks)
        return self._recorded(record)

    def _recorded(self, record: SnapshotRecord) -> Snapshot:
        unfrozen = tuple(step for step, _ in _unfrozen(self._folder))
        record = record.model_copy(update={"run": self._run, "unfrozen": unfrozen})
        added = Snapshot(record, self._folder / folder_name(record))
        known = self.snapshots()[: record.index]
        write_record(added.path / _RECORD, record)
        self._known = (*known, added)
        return added

    def append_unfrozen(self, step: int, parameters: Mapping[str, Tensor]) -> None:
        """Store the values of parameters that are unfrozen after this step, which the snapshots so far do not have."""
        write_tensors(self._folder / _unfrozen_name(step), parameters, _owner(self._run))

    def append_unfrozen_pieces(self, step: int, parameters: Mapping[str, Piece], rank: int, ranks: int) -> None:
        """Store one process's pieces of parameters that are unfrozen after this step."""
        write_pieces(self._folder / _unfrozen_name(step), parameters, rank, ranks, _owner(self._run))

    def cut_back(self, step: int) -> tuple[Snapshot, ...]:
        """Drop the snapshots after this step, which a resumed fit takes again, and return them."""
        dropped = tuple(snapshot for snapshot in self.snapshots() if snapshot.step > step)
        for snapshot in reversed(dropped):
            (snapshot.path / _RECORD).unlink()
            remove_tree(snapshot.path)
        for unfrozen, path in _unfrozen(self._folder):
            if unfrozen > step:
                delete_stored(path)
        self._known = None
        return dropped


def _unfrozen_name(step: int) -> str:
    return f"unfrozen-step{step}.safetensors"


def folder_name(record: SnapshotRecord) -> str:
    """The name of a snapshot's folder, such as `0003-step375`."""
    return f"{record.index:04d}-step{record.step}"
