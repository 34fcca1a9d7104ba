"""A lock, so that only one process at a time works in a run directory, on a fit of a study, or on what its fits share.

The operating system locks the file `lock` for the process and releases it when the process ends, in whatever way, so no lock
needs cleaning up. `lock.json` names the process for messages to others; the leftovers of a killed process mean nothing and are
overwritten. Readers take no lock: every file is complete or absent.

If the directory is not on a local file system, `lock.json` itself is the lock: a process holds it if it created the file. The
leftovers of a killed process can be taken over on the machine where it ran; elsewhere somebody has to delete them by hand.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType

import psutil
from filelock import FileLock, Timeout
from pydantic import BaseModel

from lightning_tracin.errors import TracInError
from lightning_tracin.storage.files import as_record, read_record, unwritable, write_record
from lightning_tracin.storage.filesystem import is_local, write_first

#: Seconds that the child processes of a killed process (workers of data loaders) may take to notice that it is gone.
_PATIENCE = 15

#: Seconds between two attempts of a process that waits.
_POLL = 0.2


class Holder(BaseModel):
    """The process that works in a run directory."""

    pid: int
    host: str
    since: str

    @classmethod
    def here(cls) -> Holder:
        """This process, from now on."""
        return cls(pid=os.getpid(), host=socket.gethostname(), since=datetime.now(timezone.utc).isoformat(" ", "seconds"))

    @property
    def has_ended(self) -> bool:
        """Whether it is known to have ended, which only its own machine can tell.

        Example:
            >>> Holder.here().has_ended, Holder(pid=2**22 + 1, host=socket.gethostname(), since="yesterday").has_ended
            (False, True)
        """
        return self.host == socket.gethostname() and not psutil.pid_exists(self.pid)


class RunLock:
    """The right to write into a directory, as a context manager or by `acquire` and `release`.

    Args:
        folder: the directory; it is created if it does not exist.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder, RunLock(Path(folder)), RunLock(Path(folder)):  # doctest: +ELLIPSIS
        ...     pass
        Traceback (most recent call last):
        lightning_tracin.errors.TracInError: ... is in use: process ... Wait until it has ended, or choose another `dirpath`; ...
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._holder = folder, folder / "lock.json"
        self._system = FileLock(folder / "lock", thread_local=False) if is_local(folder) else None
        self._mine: Holder | None = None  # set while the lock is held

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            TracInError: another process holds it, or the directory cannot be written to.
        """
        if not self.try_acquire():
            message = (
                f"{self._folder} is in use: {self._described_holder()}. Wait until it has ended, or choose another `dirpath`; "
                "two in one directory would overwrite each other."
            )
            if self._system is None:
                message += f" If that process was killed, delete {self._holder}: nobody else can tell from here."
            raise TracInError(message)

    def acquire_when_free(self, say: Callable[[str], None]) -> None:
        """Wait for the lock, and take it.

        Args:
            say: called once, with a sentence that names the process that holds it, if there is one.

        Raises:
            TracInError: the directory cannot be written to.
        """
        is_said = False
        while not self.try_acquire():
            if not is_said:
                say(f"Waiting for {self._folder}: {self._described_holder()}.")
                is_said = True
            time.sleep(_POLL)

    def try_acquire(self) -> bool:
        """Take the lock, unless another process holds it; whether it was taken.

        Raises:
            TracInError: the directory cannot be written to.
        """
        mine = Holder.here()
        try:
            if not self._taken(mine) and not self._taken_over(mine):
                return False
        except OSError as error:
            raise unwritable(self._folder, error) from error
        self._mine = mine
        if self._system is not None:
            try:
                write_record(self._holder, mine)
            except BaseException:
                self.release()
                raise
        return True

    def _taken(self, mine: Holder, patience: float = 0) -> bool:
        """Try to take the lock; False if another process holds it."""
        if self._system is None:
            return write_first(self._holder, as_record(mine))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._system.acquire(timeout=patience)
        except (Timeout, FileNotFoundError):  # not found: who had the lock has just removed the empty directory
            return False
        return True

    def _taken_over(self, mine: Holder) -> bool:
        """Try to take the lock over from a process that has ended."""
        holder = self._read()
        if holder is None or not holder.has_ended:
            return False
        if self._system is None and self._read() == holder:  # nobody else has taken it over in the meantime
            self._holder.unlink(missing_ok=True)
        return self._taken(mine, _PATIENCE)

    def _described_holder(self) -> str:
        holder = self._read()
        who = "another process" if holder is None else f"process {holder.pid} on {holder.host}"
        return f"{who} has been working there{'' if holder is None else f' since {holder.since}'}"

    def _read(self) -> Holder | None:
        try:
            return read_record(self._holder, Holder)
        except TracInError:  # the file is written just after the system's lock is taken
            return None

    def release(self) -> None:
        """Release the lock, if it is held; a directory that nothing was written to is removed."""
        if self._mine is None:
            return
        mine, self._mine = self._mine, None
        with suppress(OSError):  # the system's own lock is released in any case
            if self._system is not None or self._read() == mine:  # on a store, somebody may have deleted it by hand and taken it
                self._holder.unlink(missing_ok=True)
            if self._system is not None and [path.name for path in self._folder.iterdir()] == ["lock"]:
                (self._folder / "lock").unlink()
                self._folder.rmdir()
        if self._system is not None:
            self._system.release()

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.release()
