"""Files of a run directory: written whole or not at all, read without pickle.

Every file is written under a temporary name beside its place and then renamed, so under its own name a file is either
complete or absent; what a killed process leaves behind is a `.partial` file, which nobody reads and the next writer
replaces. Tensors are safetensors files, records are JSON, tables of text are JSON lines.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from lightning_tracin.errors import TracInError

_Model = TypeVar("_Model", bound=BaseModel)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        TracInError: it cannot be written; what stood there before stands there still.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> TracInError:
    """What to say where the system refuses to write."""
    remedy = {
        errno.ENOSPC: "free space on that disk",
        errno.EDQUOT: "free space within your quota",
        errno.EFBIG: "raise the limit on the size of files",
    }.get(error.errno or 0, "make the folder writable, or choose another `dirpath`")
    return TracInError(
        f"{path} cannot be written ({error.strerror or error}); {remedy}. What stood there before is unchanged, and a fit can be "
        "resumed with `ckpt_path`."
    )


def _unreadable(path: Path, error: OSError) -> TracInError:
    return TracInError(f"{path} cannot be read ({error.strerror or error}); see to it that it is a file that you may read.")


def write_record(path: Path, record: BaseModel) -> None:
    """Write a record as JSON."""
    write_bytes(path, (record.model_dump_json(indent=1) + "\n").encode())


def read_record(path: Path, model: type[_Model]) -> _Model:
    """Read a record and check it against its model.

    Raises:
        TracInError: the file is missing or is not such a record.
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise TracInError(f"{path} is missing; is {path.parent} a run directory of lightning-tracin?") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise TracInError(
            f"{path} is damaged or of another version ({where}: {first['msg']}); restore it from a copy, or start a new run."
        ) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as a safetensors file."""
    write_bytes(path, safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def read_tensors(path: Path, remedy: str = "delete it to have it computed again") -> dict[str, Tensor]:
    """Read a safetensors file.

    Args:
        path: of the file.
        remedy: what to do where it is damaged, for the message.

    Raises:
        TracInError: the file is missing or damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError as error:
        raise TracInError(f"{path} is missing.") from error
    except safetensors.SafetensorError as error:
        raise TracInError(f"{path} is damaged ({error}); {remedy}.") from error


def tensor_names(path: Path) -> frozenset[str]:
    """What a safetensors file holds, without reading the tensors.

    Raises:
        TracInError: the file is missing or damaged.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            return frozenset(file.keys())
    except FileNotFoundError as error:
        raise TracInError(f"{path} is missing.") from error
    except safetensors.SafetensorError as error:
        raise TracInError(f"{path} is damaged ({error}); restore it from a copy.") from error


def as_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Records as JSON lines."""
    return as_utf8("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def as_utf8(text: str) -> bytes:
    """Text as UTF-8; a lone surrogate, which UTF-8 cannot hold, as its escape (which JSON reads back as what it was)."""
    return text.encode("utf-8", "backslashreplace")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines.

    Raises:
        TracInError: the file is missing or damaged.
    """
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except FileNotFoundError as error:
        raise TracInError(f"{path} is missing.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TracInError(f"{path} is damaged ({error}).") from error
