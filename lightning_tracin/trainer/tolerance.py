"""What may fail at the end of a fit without ending it: functions that return the warning with reason and remedy, or None."""

from __future__ import annotations

import errno
import shlex
from collections.abc import Callable
from pathlib import Path

from lightning_tracin.attribution.processes import Processes
from lightning_tracin.config import Options
from lightning_tracin.errors import TracInError
from lightning_tracin.reporting.attempts import Attempts, attribute_line, listed, reason, results_command
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.snapshots import Snapshot


def end_recorded(directory: RunDirectory, options: Options) -> str | None:
    """Record that the fit has ended.

    Args:
        directory: the run.
        options: the callback's.
    """
    attempts = Attempts()
    with attempts.at("run.json"):
        directory.end()
    if not attempts.failed:
        return None
    return (
        f"TracIn: the end of the fit could not be written to {listed(attempts.failed)}. Once the cause is gone, "
        f"`{results_command(directory.path, options, options)}` does it."
    )


def window_written(write: Callable[[], None], number: int, folder: Path) -> str | None:
    """Write a window of an account, which the system may refuse to store.

    Args:
        write: does so.
        number: of the window.
        folder: of the account.

    Raises:
        TracInError: it cannot be written, for another reason.
    """
    try:
        write()
    except TracInError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        return (
            f"TracIn: window {number} could not be written to {folder} ({reason(error)}): the fit goes on, and the account ends "
            "with the window before. To have the rest, mend the cause and resume the fit from an earlier checkpoint."
        )
    return None


def appended(append: Callable[[], None], name: str, directory: RunDirectory) -> str | None:
    """Write a snapshot, for which the disk may turn out to be full.

    Args:
        append: writes it.
        name: of its folder.
        directory: the run.

    Raises:
        TracInError: it cannot be written, for another reason.
    """
    try:
        append()
    except TracInError as error:
        cause = error.__cause__
        if not isinstance(cause, OSError) or cause.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return (
            f"TracIn: the snapshot {name} could not be written to {directory.path} ({reason(error)}): the fit goes on, and no "
            "more snapshots are taken. To have them, free space and resume the fit from a checkpoint that was saved before this."
        )
    return None


def stored(
    compute: Callable[[], None], snapshot: Snapshot, directory: RunDirectory, options: Options, processes: Processes
) -> str | None:
    """Compute the influence at a snapshot, which the system may refuse to store.

    Args:
        compute: does so.
        snapshot: the snapshot.
        directory: the run.
        options: the callback's.
        processes: the processes of the pass; an error of one of several ends them all.

    Raises:
        TracInError: the influence cannot be computed, later neither, or other ranks wait for this one.
    """
    try:
        compute()
    except TracInError as error:
        if not isinstance(error.__cause__, OSError) or processes.ranks > 1 or not snapshot.kept:
            raise
        return (
            f"TracIn: the influence at snapshot {snapshot.name} could not be stored ({reason(error)}). The fit and its snapshots "
            f"are complete. Once the cause is gone, `{attribute_line(directory.path, options, directory.record())}`, with the "
            "fit's module and loaders, computes what is missing and writes the results."
        )
    return None


def logged(log: Callable[[], None], directory: RunDirectory, command: str = "reliance") -> str | None:
    """Log something; results must not be lost with a logger that fails.

    Args:
        log: does so.
        directory: the run.
        command: prints what could not be logged.
    """
    try:
        log()
    except Exception as error:
        return (
            f"A logger failed ({type(error).__name__}: {reason(error).removeprefix(f'{type(error).__name__}: ')}), so its curves "
            f"and tables are incomplete. The results are in {directory.results} after the fit; `lightning-tracin {command} --run "
            f"{shlex.quote(str(directory.path))}` prints them."
        )
    return None
