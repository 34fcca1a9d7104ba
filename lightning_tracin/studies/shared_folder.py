"""The folder of a study, on which several processes may work, also of several machines.

What is done once (reading the data, the encoder, choosing probes, masks, tables, the page) is done by one process at a time,
which holds the folder's lock; the others wait for it, and find it done. Fits and refits are shared (`trainer.shared_jobs`);
meanwhile the lock is free for the next process. Each process has a lock of its own in `workers/`, so that nobody changes the
settings under it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from lightning_tracin.storage.lock import RunLock


class SharedFolder:
    """One process's part in a study, as a context manager in which it holds the folder's lock.

    Args:
        folder: of the study.
        say: called with a sentence if it has to wait for another process.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder, SharedFolder(Path(folder), print) as shared:
        ...     shared.has_others
        False
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._workers, self._say = folder / "workers", say
        self._lock = RunLock(folder)
        self._own = RunLock(self._workers / f"{socket.gethostname()}-{os.getpid()}")

    @property
    def has_others(self) -> bool:
        """Whether other processes work on the study now."""
        here = f"{socket.gethostname()}-{os.getpid()}"
        busy = [one for one in self._workers.iterdir() if one.name != here and not _is_free(one)]  # all, to tidy up
        return bool(busy)

    @contextmanager
    def unlocked(self) -> Iterator[None]:
        """Leave the folder's lock to others inside the context, for work that is shared; after an error it is not taken again."""
        self._lock.release()
        yield
        self._lock.acquire_when_free(self._say)

    def __enter__(self) -> SharedFolder:
        self._lock.acquire_when_free(self._say)
        try:
            self._own.acquire()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        _ = self.has_others  # removes what killed processes left
        self._own.release()
        with suppress(OSError):  # others are in there
            self._workers.rmdir()
        self._lock.release()


def _is_free(folder: Path) -> bool:
    """Whether the process that this lock belonged to has ended; then its leftovers are removed."""
    lock = RunLock(folder)
    if not lock.try_acquire():
        return False
    lock.release()
    return True
