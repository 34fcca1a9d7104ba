"""Work on many files that several processes, also of several machines, share through a folder.

Each result is made by the process that holds the lock of its job, `NAME.claim/lock`, beside the result (`storage.lock`). A job
whose result exists is done. A process takes the jobs that nobody else has, and at the end waits for those of others. A claim ends
with its process, in whatever way, so that the others take up what a killed one left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from lightning_tracin.storage.lock import RunLock
from lightning_tracin.trainer.process_pool import run_all

#: Seconds between two looks at what other processes have done.
_POLL = 0.2


@dataclass(frozen=True)
class SharedJob:
    """A call that makes files.

    Attributes:
        results: the files, which are there when it is done.
        arguments: of the call.
        name: path without suffix of what tells the job from others; the claim is beside it. All processes must use the same.
    """

    results: tuple[Path, ...]
    arguments: tuple[Any, ...]
    name: Path

    @property
    def is_done(self) -> bool:
        """Whether the results are there."""
        return all(path.exists() for path in self.results)

    @property
    def claim(self) -> RunLock:
        """The lock of the process that makes them."""
        return RunLock(self.name.with_name(f"{self.name.name}.claim"))

    @property
    def is_free(self) -> bool:
        """Whether no process makes them now."""
        claim = self.claim
        if not claim.try_acquire():
            return False
        claim.release()
        return True


def run_shared(
    function: Callable[..., object], jobs: Sequence[SharedJob], workers: int, description: str, progress: bool
) -> None:
    """Make the results that are not there, together with other processes that were given the same jobs; returns when all are.

    Args:
        function: see `run_all`.
        jobs: what to call it with.
        workers: maximum number of processes here.
        description: of the progress bar.
        progress: whether to show a progress bar.

    Raises:
        TracInError: the function or its arguments cannot be sent to another process.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     paths = [Path(folder) / name for name in ("a", "b")]
        ...     run_shared(Path.touch, [SharedJob((path,), (path,), path) for path in paths], 1, "files", progress=False)
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['a', 'b']
    """
    left = [job for job in jobs if not job.is_done]
    free, is_said = left, False  # `make` leaves out those that are not
    while left:
        run_all(make, [(function, job) for job in free], workers, description, progress)
        left = [job for job in left if not job.is_done]
        free = [job for job in left if job.is_free]
        if left and not free:
            if progress and not is_said:
                tqdm.write(f"{description}: waiting for {len(left)} that other processes are making")
                is_said = True
            time.sleep(_POLL)


def make(function: Callable[..., object], job: SharedJob) -> None:
    """Make the results of a job, unless they are there or another process makes them."""
    claim = job.claim
    if job.is_done or not claim.try_acquire():
        return
    try:
        if not job.is_done:  # since the claim
            function(*job.arguments)
    finally:
        claim.release()
