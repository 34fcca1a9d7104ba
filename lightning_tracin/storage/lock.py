"""One process at a time works in a run directory, or in the folder of a study.

`lock` is locked by the operating system for the process that works there, and free again as soon as that process has ended, in
whatever way: no lock is left to clean up. `lock.json` says whose it is, for the message to others; what a killed process leaves
of it means nothing and is overwritten by the next. Readers take no lock: every file is complete or absent.

Where a directory is not on this machine's file system, `lock.json` itself is the lock: it is made if it is not there. What a
killed process leaves of it is taken over on the machine where that process ran; elsewhere it has to be deleted by hand.
"""

from __future__ import annotations

import os
import socket
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

#: Seconds in which processes that a killed one had started (workers of data loaders) notice that it is gone.
_PATIENCE = 15


class Holder(BaseModel):
    """Who works in a run directory."""

    pid: int
    host: str
    since: str

    @classmethod
    def here(cls) -> Holder:
        """This process, from now on."""
        return cls(pid=os.getpid(), host=socket.gethostname(), since=datetime.now(timezone.utc).isoformat(" ", "seconds"))

    @property
    def has_ended(self) -> bool:
        """Whether it is known to run no more: it was a process of this machine."""
        return self.host == socket.gethostname() and not psutil.pid_exists(self.pid)


class RunLock:
    """The right to write into a directory; a context, or taken and given back by hand.

    Args:
        folder: the directory; it is made where there is none.
        otherwise: what else a second process can do than wait, for the message.
    """

    def __init__(self, folder: Path, otherwise: str = "choose another `dirpath`") -> None:
        self._folder, self._holder, self._otherwise = folder, folder / "lock.json", otherwise
        self._system = FileLock(folder / "lock", thread_local=False) if is_local(folder) else None
        self._mine: Holder | None = None  # while it is held

    def acquire(self) -> None:
        """Take it.

        Raises:
            TracInError: another process has it, or the directory cannot be written to.
        """
        mine = Holder.here()
        try:
            if self._system is None:
                self._make(mine)
            else:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._take(self._system)
        except OSError as error:
            raise unwritable(self._folder, error) from error
        self._mine = mine
        if self._system is not None:
            try:
                write_record(self._holder, mine)
            except BaseException:
                self.release()
                raise

    def _take(self, lock: FileLock) -> None:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            holder = self._read()
            if holder is not None and holder.has_ended:
                try:
                    lock.acquire(timeout=_PATIENCE)
                    return
                except Timeout:
                    holder = self._read()
            raise TracInError(self._refusal(holder)) from None

    def _make(self, mine: Holder) -> None:
        """Write whose it is, where nothing says so yet or only a process that has ended."""
        if write_first(self._holder, as_record(mine)):
            return
        holder = self._read()
        if holder is not None and holder.has_ended:
            if self._read() == holder:  # nobody else took it over meanwhile
                self._holder.unlink(missing_ok=True)
            if write_first(self._holder, as_record(mine)):
                return
            holder = self._read()
        by_hand = f" If that process was killed, delete {self._holder}: nobody else can tell from here."
        raise TracInError(self._refusal(holder) + by_hand)

    def _read(self) -> Holder | None:
        try:
            return read_record(self._holder, Holder)
        except TracInError:  # it is written right after the system's lock is taken
            return None

    def _refusal(self, holder: Holder | None) -> str:
        who = "another process" if holder is None else f"process {holder.pid} on {holder.host}"
        since = "" if holder is None else f" since {holder.since}"
        return (
            f"{self._folder} is in use: {who} has been working there{since}. Wait until it has ended, or "
            f"{self._otherwise}; two in one directory would overwrite each other."
        )

    def release(self) -> None:
        """Give it back, if it is held; a directory that nothing was written to is removed."""
        if self._mine is None:
            return
        mine, self._mine = self._mine, None
        with suppress(OSError):  # the system gives its own lock back in any case
            if self._system is not None or self._read() == mine:  # elsewhere somebody may have deleted it by hand and gone on
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
