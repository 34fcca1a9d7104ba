"""One process at a time works in a run directory.

`lock` is locked by the operating system for the process that works there, and free again as soon as that process has ended, in
whatever way: no lock is left to clean up. `lock.json` says whose it is, for the message to others; what a killed process leaves
of it means nothing and is overwritten by the next. Readers take no lock: every file is complete or absent.
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
from lightning_tracin.store import read_record, unwritable, write_record

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
    """The right to write into a run directory; a context, or taken and given back by hand.

    Args:
        folder: the run directory; it is made where there is none.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._holder = folder, folder / "lock.json"
        self._lock = FileLock(folder / "lock", thread_local=False)

    def acquire(self) -> None:
        """Take it.

        Raises:
            TracInError: another process has it, or the directory cannot be written to.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._take()
        except OSError as error:
            raise unwritable(self._folder, error) from error
        write_record(self._holder, Holder.here())

    def _take(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            holder = self._read()
            if holder is not None and holder.has_ended:
                try:
                    self._lock.acquire(timeout=_PATIENCE)
                    return
                except Timeout:
                    holder = self._read()
            raise TracInError(self._refusal(holder)) from None

    def _read(self) -> Holder | None:
        try:
            return read_record(self._holder, Holder)
        except TracInError:  # it is written right after the lock is taken
            return None

    def _refusal(self, holder: Holder | None) -> str:
        who = "another process" if holder is None else f"process {holder.pid} on {holder.host}"
        since = "" if holder is None else f" since {holder.since}"
        return (
            f"{self._folder} is in use: {who} has been working there{since}. Wait until it has ended, or choose another "
            "`dirpath`; two fits in one directory would overwrite each other."
        )

    def release(self) -> None:
        """Give it back, if it is held; a directory that nothing was written to is removed."""
        if not self._lock.is_locked:
            return
        with suppress(OSError):  # the lock counts, and the system gives that back
            self._holder.unlink(missing_ok=True)
            if [path.name for path in self._folder.iterdir()] == ["lock"]:
                (self._folder / "lock").unlink()
                self._folder.rmdir()
        self._lock.release()

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.release()
