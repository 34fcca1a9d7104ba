"""Files of a run directory: written whole or not at all, read without pickle, and compared with their checksums.

A file is in one of these states:

    absent ----> partial ----> complete ----> damaged

- *absent*: nothing of that name; also what a reader sees of a partial one.
- *partial*: `NAME.partial`, which `places.write_whole` fills and flushes to the disk. A killed process leaves it so, nobody
  reads it, and the next writer of that name begins it anew. Where the system refuses to write (a full disk), it is deleted
  again. Off this machine's disks there is no such state: a store takes a file in one request, or not at all.
- *complete*: `NAME`, to which the partial file was renamed in one step. A complete file is never changed in place: it is
  replaced whole by the same way, or deleted. A rename that had not reached the disk is lost with the machine's power, whole.
- *damaged*: changed by something else than this module. Tensors are safetensors files whose header holds a checksum of names,
  types, shapes and values, and what run and place they belong to; records are JSON with a sha256 of the rest in front; tables
  of samples are JSON lines whose sha256 stands in `run.json`. Reading compares, so that damage is an error that names the
  file, never data; it changes nothing. Files without checksums, of older versions, are checked for what they say only.
  Checksums find what went wrong, not what somebody made look right: who can write a file can write its checksum too. So
  tensors, which are large, have the 128 bits of XXH3, which costs little beside reading them (sha256 in older files).

What the files together say is told where they are put together: `directory` (a run), `snapshots` (its snapshots),
`ingredients` and `features` (what was computed of one).
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import safetensors
import safetensors.torch
import torch
import xxhash
from pydantic import BaseModel, ValidationError
from torch import Tensor

from lightning_tracin.errors import TracInError
from lightning_tracin.storage.filesystem import local_copy, read_whole, write_whole

_Model = TypeVar("_Model", bound=BaseModel)

#: How a record with a checksum begins, and under what name a file of tensors says what it is.
_CHECKED = re.compile(rb'\{\n "checksum": "([0-9a-f]{64})",')
_ABOUT = "lightning_tracin"

#: Checksums of tensors by their names in a file's header; the first is written.
_CHECKSUMS: Mapping[str, Callable[[], Any]] = {"xxh3_128": xxhash.xxh3_128, "sha256": hashlib.sha256}

_AGAIN = "delete it to have it computed again"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        TracInError: it cannot be written; what stood there before stands there still.
    """
    try:
        write_whole(path, content)
    except OSError as error:
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
    """Write a record as JSON; a checksum of the rest stands first."""
    write_bytes(path, as_record(record))


def as_record(record: BaseModel) -> bytes:
    """A record as it stands in its file."""
    content = (record.model_dump_json(indent=1) + "\n").encode()
    return b'{\n "checksum": "%s",' % hashlib.sha256(content).hexdigest().encode() + content[1:]


def read_record(path: Path, model: type[_Model]) -> _Model:
    """Read a record and check it against its model, and its checksum where it has one.

    Raises:
        TracInError: the file is missing or is not such a record.
    """
    remedy = "restore it from a copy, or start a new run"
    try:
        content = read_whole(path)
    except FileNotFoundError as error:
        raise TracInError(
            f"{path} is missing; is {path.parent} a run directory of lightning-tracin? If so, restore the file from a copy."
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    checked = _CHECKED.match(content)
    if checked is not None:
        content = b"{" + content[checked.end() :]
    try:
        record = model.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise TracInError(f"{path} is damaged or of another version ({where}: {first['msg']}); {remedy}.") from error
    except TracInError as error:  # an option in it that is not possible
        raise TracInError(f"{path} is damaged or of another version ({error}); {remedy}.") from error
    if checked is not None and hashlib.sha256(content).hexdigest().encode() != checked[1]:
        raise TracInError(f"{path} is damaged: its checksum does not fit; {remedy}.")
    return record


def write_tensors(path: Path, tensors: Mapping[str, Tensor], owner: str = "") -> None:
    """Write tensors as a safetensors file, with a checksum of names, shapes, types and values in its header.

    Args:
        path: of the file.
        tensors: by name.
        owner: what the file belongs to, such as a run's identity and a folder in it; it is no other's of the same name.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    kind = next(iter(_CHECKSUMS))
    about = {kind: _digest(plain, kind), "belongs_to": _named(path, owner)}
    write_bytes(path, safetensors.torch.save(plain, {_ABOUT: json.dumps(about)}))  # one entry: their order is random


def read_tensors(path: Path, remedy: str = _AGAIN, owner: str = "") -> dict[str, Tensor]:
    """Read a safetensors file, and compare it with its checksum where it has one.

    Args:
        path: of the file.
        remedy: what to do where it is missing or damaged, for the message.
        owner: what the file has to belong to, where it says so; see `write_tensors`.

    Raises:
        TracInError: the file is missing, damaged, or belongs to something else.
    """
    with _opened(path, remedy, owner) as (file, checksum):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        intact = checksum is None or _digest(tensors, checksum.kind) == checksum.value
    if not intact:
        raise TracInError(f"{path} is damaged (its checksum does not fit); {remedy}.")
    return tensors


def read_tensor(path: Path, name: str, remedy: str = _AGAIN, owner: str = "") -> Tensor | None:
    """One tensor of a file, as it stands there, if it does: the checksum is left to who reads the file whole.

    Raises:
        TracInError: as `read_tensors`, as far as it shows.
    """
    with _opened(path, remedy, owner) as (file, _):
        return file.get_tensor(name) if name in file.keys() else None  # noqa: SIM118 - it is no mapping


class _Checksum(NamedTuple):
    kind: str  # of `_CHECKSUMS`
    value: str


@contextmanager
def _opened(path: Path, remedy: str, owner: str) -> Iterator[tuple[Any, _Checksum | None]]:
    """A safetensors file, and the checksum of its tensors; None where it has none."""
    try:
        with local_copy(path) as here, safetensors.safe_open(here, framework="pt") as file:
            said = (file.metadata() or {}).get(_ABOUT)
            checksum = None
            if said is not None:
                about = json.loads(said)
                kind, found = next((kind for kind in _CHECKSUMS if kind in about), None), about["belongs_to"]
                if kind is None:
                    raise ValueError(f"its checksum is none of {', '.join(_CHECKSUMS)}")
                checksum = _Checksum(kind, about[kind])
                if owner and found != _named(path, owner):
                    raise TracInError(
                        f"{path} belongs to another run or snapshot ({found}, not {_named(path, owner)}); {remedy}."
                    )
            yield file, checksum
    except (TracInError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise TracInError(f"{path} is missing; {remedy.replace('delete it to have', 'run the attribution to have')}.") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    except Exception as error:  # a damaged header can say anything
        raise TracInError(f"{path} is damaged ({error}); {remedy}.") from error


def tensor_names(path: Path, remedy: str = _AGAIN, owner: str = "") -> frozenset[str]:
    """What a safetensors file holds, without reading the tensors: the checksum is left to who reads the file whole.

    Raises:
        TracInError: as `read_tensors`, as far as it shows.
    """
    with _opened(path, remedy, owner) as (file, _):
        return frozenset(file.keys())


def _named(path: Path, owner: str) -> str:
    return f"{owner}/{path.name}" if owner else ""


def _digest(tensors: Mapping[str, Tensor], kind: str) -> str:
    """Of names, types, shapes and values."""
    digest = _CHECKSUMS[kind]()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return str(digest.hexdigest())


def as_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Records as JSON lines."""
    return as_utf8("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def as_utf8(text: str) -> bytes:
    """Text as UTF-8; a lone surrogate, which UTF-8 cannot hold, as its escape (which JSON reads back as what it was)."""
    return text.encode("utf-8", "backslashreplace")


def read_lines(path: Path) -> tuple[str, Iterator[Any]]:
    """The sha256 of a file of JSON lines, and what the lines say, each read when it is asked for.

    Raises:
        TracInError: the file is missing or, once the lines are read, damaged.
    """
    try:
        content = read_whole(path)
    except FileNotFoundError as error:
        raise TracInError(f"{path} is missing; restore it from a copy.") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    return hashlib.sha256(content).hexdigest(), _lines(path, content)


def _lines(path: Path, content: bytes) -> Iterator[Any]:
    try:
        for line in io.TextIOWrapper(io.BytesIO(content), "utf-8", newline="\n"):
            if line != "\n":
                yield json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TracInError(f"{path} is damaged ({error}); restore it from a copy.") from error
