"""The processes that share a pass, and work that rank 0 does for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from torch import Tensor

from lightning_tracin.errors import TracInError
from lightning_tracin.storage.lock import RunLock

_Value = TypeVar("_Value")


class Processes(Protocol):
    """What a pass asks of the processes that it runs in."""

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

    def to_device(self, batch: Any) -> Any:
        """A batch as a fit gives it to a step: the module's own hooks around its way to the device."""


def done_by_first(processes: Processes, work: Callable[[], _Value]) -> _Value:
    """What rank 0 finds, on all ranks, which do not look for themselves.

    Raises:
        TracInError: rank 0 met an error; on all ranks, so that none waits for the others.
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
    done_by_first(processes, lock.acquire)
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
