"""Paths on this machine or on any file system that fsspec supports.

A place is a `pathlib.Path`, or for a URL such as `s3://bucket/run` an object with the same methods (universal_pathlib). The
differences between the two are handled here; apart from `lock`, no other module needs to know which one it has.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias, cast

from lightning_tracin.errors import TracInError

#: What users may pass: a path or a URL. (A UPath with its own storage options works, too.)
Place: TypeAlias = str | Path


def place(location: Place) -> Path:
    """The path object for a path or a URL.

    Directory listings of URLs are not cached, because other processes may write there.

    Raises:
        TracInError: no file system is known for the URL, or its package is not installed.

    Example:
        >>> place("file:///data/run").as_posix(), place("memory://bucket/run").name
        ('/data/run', 'run')
    """
    text = str(location)
    if "://" not in text:
        return Path(text)
    if text.startswith(("file://", "local://")):
        return Path(text.partition("://")[2])
    from upath import UPath  # slow to import, and rarely needed

    if isinstance(cast("object", location), UPath):
        return cast("Path", location)
    try:
        found = UPath(text, use_listings_cache=False)
        _ = found.fs
    except (ValueError, ImportError) as error:
        raise TracInError(f"{text} names no file system that can be used here: {error}") from error
    return cast("Path", found)


def is_local(path: Path) -> bool:
    """Whether the path is on this machine's file system.

    Example:
        >>> is_local(place("runs/xnli")), is_local(place("memory://runs/xnli"))
        (True, False)
    """
    return isinstance(path, Path)


def free_bytes(folder: Path) -> int | None:
    """Free space on a folder's disk, whether or not the folder exists yet; None if unknown."""
    if not is_local(folder):
        return None
    return shutil.disk_usage(next(one for one in (folder, *folder.parents) if one.exists())).free


def write_whole(path: Path, content: bytes) -> None:
    """Write a file completely or not at all: locally under another name first, elsewhere in one request.

    Raises:
        OSError: it cannot be written; the previous file, if any, is unchanged.
    """
    if not is_local(path):
        with _only_os_errors():
            _fs(path).pipe_file(_inside(path), content)
        return
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise


def write_first(path: Path, content: bytes) -> bool:
    """Create a file, unless it exists, and return whether this process created it. For paths that are not local.

    Raises:
        OSError: it cannot be written.
    """
    try:
        with _only_os_errors():
            if _fs(path).exists(_inside(path)):  # not every store supports mode="create"
                return False
            _fs(path).pipe_file(_inside(path), content, mode="create")
    except FileExistsError:
        return False
    return True


def read_whole(path: Path) -> bytes:
    """All bytes of a file.

    Raises:
        OSError: it is missing, or cannot be read.
    """
    with _only_os_errors():
        return path.read_bytes()


def will_read(path: Path, size: int = 0) -> None:
    """Tell the system that a file is read soon, so that it fetches the bytes in the background; a hint, which never fails.

    Args:
        path: of the file.
        size: bytes from its start; 0 is all of it.
    """
    if not is_local(path) or not hasattr(os, "posix_fadvise"):
        return
    with suppress(OSError):  # the read that follows reports it
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, size, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)


@contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """The file itself if it is local, otherwise a temporary local copy.

    Raises:
        OSError: it is missing, or cannot be read.
    """
    if is_local(path):
        yield path
        return
    with TemporaryDirectory(prefix="lightning-tracin-") as folder:
        copy = Path(folder) / path.name
        with _only_os_errors():
            _fs(path).get_file(_inside(path), str(copy))
        yield copy


def remove_tree(folder: Path) -> None:
    """Delete a folder and its contents, if it exists."""
    if is_local(folder):
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists():
        _fs(folder).rm(_inside(folder), recursive=True)


def move_tree(folder: Path, target: Path) -> None:
    """Move a folder to a path that does not exist yet: in one step locally, file by file elsewhere.

    Raises:
        OSError: it cannot be moved.
    """
    if is_local(folder):
        folder.rename(target)
    else:
        with _only_os_errors():
            files, inside = _fs(folder), _inside(folder)
            for path in files.find(inside):
                files.copy(path, _inside(target) + str(path)[str(path).index(inside) + len(inside) :])
            files.rm(inside, recursive=True)


def _fs(path: Path) -> Any:
    return cast("Any", path).fs


def _inside(path: Path) -> str:
    """The path within its file system."""
    return str(cast("Any", path).path)


@contextmanager
def _only_os_errors() -> Iterator[None]:
    """Turn exceptions of a store's client (no credentials, no connection) into OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(None, f"{type(error).__name__}: {error}") from error
