"""The processes that share a pass, and work that rank 0 does for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from lightning_tracin.errors import TracInError
from lightning_tracin.storage.lock import RunLock

_Value = TypeVar("_Value")


class Processes(Protocol):
    """What a pass needs from the processes that share it."""

    @property
    def rank(self) -> int:
        """Number of this process."""

    @property
    def ranks(self) -> int:
        """How many processes there are."""

    def barrier(self, name: str) -> None:
        """Wait until all processes are here."""

    def broadcast(self, value: _Value) -> _Value:
        """Rank 0's value, on all ranks."""

    def gather(self, values: Tensor) -> Tensor:
        """Every rank's values, which have one shape and are on the CPU: [ranks, *shape]."""

    def prepared(self, dtype: torch.dtype) -> Callable[[Any], Any]:
        """A function that turns a collated batch into what a step gets: on its device, floating-point tensors in one type."""

    def info(self, message: str) -> None:
        """Say something to the user, on rank 0."""


def on_rank_zero(processes: Processes, work: Callable[[], _Value]) -> _Value:
    """Run on rank 0 and broadcast the result.

    Raises:
        TracInError: rank 0 raised an error; on all ranks, so that none waits for the others.
    """
    if processes.ranks == 1:
        return work()
    found: tuple[_Value | None, str] = None, ""
    if processes.rank == 0:
        try:
            found = work(), ""
        except Exception as error:  # whatever it is, the others wait for an answer
            found = None, str(error) or repr(error)
    value, refusal = processes.broadcast(found)
    if refusal:
        raise TracInError(refusal)
    return cast("_Value", value)


def acquired(folder: Path, processes: Processes) -> RunLock | None:
    """The lock of a run directory, taken by rank 0 for all ranks; None on the others.

    Raises:
        TracInError: another process has it, or the directory cannot be written to; on all ranks.
    """
    lock = RunLock(folder)
    on_rank_zero(processes, lock.acquire)
    return lock if processes.rank == 0 else None


@contextmanager
def working_in(folder: Path, processes: Processes) -> Iterator[None]:
    """A context in which other processes are kept out of a run directory; see `acquired`."""
    lock = acquired(folder, processes)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()
