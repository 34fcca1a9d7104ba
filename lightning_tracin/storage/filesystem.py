"""Where files stand: on this machine, or on any file system that fsspec reaches.

A place is a `pathlib.Path`, or for a URL such as `s3://bucket/run` an object with the same methods (universal_pathlib). What
the two do differently is here; but for `lock`, nothing else asks which of them it has.
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

#: What users may give: a path or a URL. (A UPath, with storage options of its own, will do as well.)
Place: TypeAlias = str | Path


def place(location: Place) -> Path:
    """The place that a path or a URL names.

    Directory listings of URLs are not cached: other processes write there too.

    Raises:
        TracInError: no file system is known for the URL, or its package is not installed.
    """
    text = str(location)
    if "://" not in text:
        return Path(text)
    if text.startswith(("file://", "local://")):
        return Path(text.partition("://")[2])
    from upath import UPath  # slow to import, and seldom needed

    if isinstance(cast("object", location), UPath):
        return cast("Path", location)
    try:
        found = UPath(text, use_listings_cache=False)
        _ = found.fs
    except (ValueError, ImportError) as error:
        raise TracInError(f"{text} names no file system that can be used here: {error}") from error
    return cast("Path", found)


def is_local(path: Path) -> bool:
    """Whether it is on this machine's own file system."""
    return isinstance(path, Path)


def free_bytes(folder: Path) -> int | None:
    """Free space where a folder stands, or is to stand; None = there is no telling."""
    if not is_local(folder):
        return None
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: here under another name first, elsewhere in one request.

    Raises:
        OSError: it cannot be written; what stood there before stands there still.
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
    """Write a file, unless there is one; returns whether this process was the first. For places that are not local.

    Raises:
        OSError: it cannot be written.
    """
    try:
        with _only_os_errors():
            if _fs(path).exists(_inside(path)):  # not every store refuses what follows
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


@contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """The file itself, or for this context a copy of it on this machine.

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
    """Delete a folder and what is in it, if it is there."""
    if is_local(folder):
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists():
        _fs(folder).rm(_inside(folder), recursive=True)


def move_tree(folder: Path, target: Path) -> None:
    """Move a folder to where none is: at once here, file by file elsewhere.

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
    """The path as its file system has it."""
    return str(cast("Any", path).path)


@contextmanager
def _only_os_errors() -> Iterator[None]:
    """What a store's own client raises (no credentials, no connection), as the error of a system."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(None, f"{type(error).__name__}: {error}") from error
