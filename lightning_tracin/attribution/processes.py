"""The processes that share a pass: what it needs from them, and running work on rank 0 only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from lightning_tracin.errors import TracInError
from lightning_tracin.storage.lock import RunLock

Value = TypeVar("Value")


class Processes(Protocol):
    """What a pass needs from the processes that share it."""

    @property
    def rank(self) -> int:
        """Rank of this process."""

    @property
    def ranks(self) -> int:
        """Number of processes."""

    def barrier(self, name: str) -> None:
        """Wait for all processes."""

    def broadcast(self, value: Value) -> Value:
        """Rank 0's value, on all ranks."""

    def gather(self, values: Tensor) -> Tensor:
        """Gather CPU values that have the same shape on all ranks: [ranks, *shape]."""

    def set_moment(self, model: Any, epoch: int, step: int | None) -> None:
        """Make a copy of a module see an epoch (from 0) and step of its fit."""

    def prepared(self, model: Any, dtype: torch.dtype) -> Callable[[Any], Any]:
        """A function that turns a collated batch into the input of a step: on the device, floating-point tensors in `dtype`."""

    def info(self, message: str) -> None:
        """Print a message, on rank 0 only."""


def on_rank_zero(processes: Processes, work: Callable[[], Value]) -> Value:
    """Run on rank 0 and broadcast the result.

    Raises:
        TracInError: rank 0 raised an error. It is raised on all ranks, so that none waits forever.
    """
    if processes.ranks == 1:
        return work()
    found: tuple[Value | None, str] = None, ""
    if processes.rank == 0:
        try:
            found = work(), ""
        except Exception as error:  # of any kind: the other ranks are waiting for the broadcast
            found = None, str(error) or repr(error)
    value, refusal = processes.broadcast(found)
    if refusal:
        raise TracInError(refusal)
    return cast("Value", value)


def acquired(folder: Path, processes: Processes) -> RunLock | None:
    """Lock a run directory: rank 0 takes and returns the lock, the other ranks return None.

    Raises:
        TracInError: another process has the lock, or the directory is not writable. It is raised on all ranks.
    """
    lock = RunLock(folder)
    on_rank_zero(processes, lock.acquire)
    return lock if processes.rank == 0 else None


@contextmanager
def working_in(folder: Path, processes: Processes) -> Iterator[None]:
    """Hold the lock of a run directory inside the context; see `acquired`."""
    lock = acquired(folder, processes)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()
