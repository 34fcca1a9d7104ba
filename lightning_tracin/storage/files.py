"""Files of a run directory: written completely or not at all, read without pickle, and verified by checksums.

A file is in one of these states:

    absent ----> partial ----> complete ----> damaged

- *absent*: there is no file of that name; readers see a partial file as absent, too.
- *partial*: `NAME.partial`, which `filesystem.write_whole` fills and flushes to disk. A killed process leaves it behind. Nobody
  reads it, and the next writer of that name overwrites it. If the system refuses to write (a full disk), it is deleted. Stores
  that are not local have no such state: they take a file in one request, or not at all.
- *complete*: `NAME`, to which the partial file was renamed in one step. A complete file is never changed in place: it is replaced
  in the same way, or deleted. If the power fails before a rename has reached the disk, the whole rename is lost.
- *damaged*: changed by something other than this module. Tensors are safetensors files whose header holds a checksum of names,
  types, shapes and values, and the run and place they belong to; records are JSON that starts with a sha256 of the rest; tables
  of samples are JSON lines whose sha256 is in `run.json`. Reading verifies the checksum, so damage raises an error that names the
  file and is never taken for data; reading changes nothing. Files of older versions, without checksums, are only validated.
  Checksums detect accidents, not forgeries: whoever can write a file can also write its checksum. So tensors, which are large,
  have 128 bits of XXH3, which costs little compared with reading them (sha256 in older files).

`directory` (a run), `snapshots` (its snapshots), and `ingredients` and `features` (the results for one snapshot) describe how the
files belong together.
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
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
import xxhash
from pydantic import BaseModel, ValidationError
from torch import Tensor

from lightning_tracin.errors import TracInError
from lightning_tracin.storage.filesystem import local_copy, read_whole, write_whole

_Model = TypeVar("_Model", bound=BaseModel)

#: The beginning of a record with a checksum, and the metadata key of a file of tensors.
_CHECKED = re.compile(rb'\{\n "checksum": "([0-9a-f]{64})",')
_ABOUT = "lightning_tracin"

#: Checksum algorithms by their names in a file's header; the first is used for writing.
_CHECKSUMS: Mapping[str, Callable[[], Any]] = {"xxh3_128": xxhash.xxh3_128, "sha256": hashlib.sha256}

_AGAIN = "delete it to have it computed again"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file completely or not at all.

    Raises:
        TracInError: it cannot be written; the previous file, if any, is unchanged.
    """
    try:
        write_whole(path, content)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> TracInError:
    """The error for a file that the system refuses to write."""
    remedy = {
        errno.ENOSPC: "free space on that disk",
        errno.EDQUOT: "free space within your quota",
        errno.EFBIG: "raise the limit on the size of files",
    }.get(error.errno or 0, "make the folder writable, or choose another `dirpath`")
    return TracInError(
        f"{path} cannot be written ({error.strerror or error}); {remedy}. The previous file is unchanged, and a fit can be "
        "resumed with `ckpt_path`."
    )


def _unreadable(path: Path, error: OSError, when_missing: str) -> TracInError:
    """The error for a file that cannot be read, with what to say if it is missing."""
    if isinstance(error, FileNotFoundError):
        return TracInError(f"{path} is missing; {when_missing}.")
    return TracInError(f"{path} cannot be read ({error.strerror or error}); check that it is a file and that you may read it.")


def write_record(path: Path, record: BaseModel) -> None:
    """Write a record as JSON that starts with a checksum of the rest."""
    write_bytes(path, as_record(record))


def as_record(record: BaseModel) -> bytes:
    """The bytes of a record's file.

    Example:
        >>> class Person(BaseModel):
        ...     name: str
        >>> print(as_record(Person(name="Ada")).decode())  # doctest: +ELLIPSIS
        {
         "checksum": "...",
         "name": "Ada"
        }
        <BLANKLINE>
    """
    content = (record.model_dump_json(indent=1) + "\n").encode()
    return b'{\n "checksum": "%s",' % hashlib.sha256(content).hexdigest().encode() + content[1:]


def read_record(path: Path, model: type[_Model]) -> _Model:
    """Read a record, validate it, and verify its checksum if it has one.

    Raises:
        TracInError: the file is missing, damaged, or not such a record.
    """
    remedy = "restore it from a copy, or start a new run"
    try:
        content = read_whole(path)
    except OSError as error:
        when_missing = f"is {path.parent} a run directory of lightning-tracin? If so, restore the file from a copy"
        raise _unreadable(path, error, when_missing) from error
    checked = _CHECKED.match(content)
    if checked is not None:
        content = b"{" + content[checked.end() :]
    try:
        record = model.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise TracInError(f"{path} is damaged or of another version ({where}: {first['msg']}); {remedy}.") from error
    except TracInError as error:  # it holds an impossible option
        raise TracInError(f"{path} is damaged or of another version ({error}); {remedy}.") from error
    if checked is not None and hashlib.sha256(content).hexdigest().encode() != checked[1]:
        raise TracInError(f"{path} is damaged: its checksum does not fit; {remedy}.")
    return record


def write_tensors(path: Path, tensors: Mapping[str, Tensor], owner: str = "") -> None:
    """Write tensors as a safetensors file, with a checksum of names, shapes, types and values in its header.

    Args:
        path: path of the file.
        tensors: the tensors by name.
        owner: what the file belongs to, such as a run's identity and a folder in it; it tells files of the same name apart.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_tensors(Path(folder) / "weights.safetensors", {"bias": torch.tensor([1.0, 2.0])})
        ...     read_tensors(Path(folder) / "weights.safetensors")
        {'bias': tensor([1., 2.])}
    """
    plain: dict[str, Tensor] = {}
    written: set[int] = set()
    for name, tensor in tensors.items():
        one = tensor.detach().cpu().contiguous()
        place = one.untyped_storage().data_ptr()
        plain[name] = one.clone() if place in written else one  # safetensors refuses tensors that share memory
        written.add(place)
    kind = next(iter(_CHECKSUMS))
    about = {kind: _digest(plain, kind), "belongs_to": _named(path, owner)}
    write_bytes(
        path, safetensors.torch.save(plain, {_ABOUT: json.dumps(about)})
    )  # a single entry, because safetensors writes several in random order


def read_tensors(path: Path, remedy: str = _AGAIN, owner: str = "") -> dict[str, Tensor]:
    """Read a safetensors file, and verify its checksum if it has one.

    Args:
        path: path of the file.
        remedy: what to do if it is missing or damaged, for the message.
        owner: what the file must belong to, if it names an owner; see `write_tensors`.

    Raises:
        TracInError: the file is missing, damaged, or belongs to something else.
    """
    with _opened(path, remedy, owner) as (file, checksum):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a mapping
        intact = checksum is None or _digest(tensors, checksum[0]) == checksum[1]
    if not intact:
        raise TracInError(f"{path} is damaged (its checksum does not fit); {remedy}.")
    return tensors


def read_tensor(path: Path, name: str, remedy: str = _AGAIN, owner: str = "") -> Tensor | None:
    """One tensor of a file, if the file has it, without verifying the checksum, which needs the whole file.

    Raises:
        TracInError: as for `read_tensors`, apart from damaged values.
    """
    with _opened(path, remedy, owner) as (file, _):
        return file.get_tensor(name) if name in file.keys() else None  # noqa: SIM118 - it is not a mapping


@contextmanager
def _opened(path: Path, remedy: str, owner: str) -> Iterator[tuple[Any, tuple[str, str] | None]]:
    """A safetensors file, and the algorithm and value of its tensors' checksum; None if it has none."""
    try:
        with local_copy(path) as here, safetensors.safe_open(here, framework="pt") as file:
            said = (file.metadata() or {}).get(_ABOUT)
            checksum = None
            if said is not None:
                about = json.loads(said)
                kind, found = next((kind for kind in _CHECKSUMS if kind in about), None), about["belongs_to"]
                if kind is None:
                    raise ValueError(f"its checksum is none of {', '.join(_CHECKSUMS)}")
                checksum = kind, about[kind]
                if owner and found != _named(path, owner):
                    raise TracInError(
                        f"{path} belongs to another run or snapshot ({found}, not {_named(path, owner)}); {remedy}."
                    )
            yield file, checksum
    except (TracInError, MemoryError):
        raise
    except OSError as error:
        raise _unreadable(path, error, remedy.replace("delete it to have", "run the attribution to have")) from error
    except Exception as error:  # a damaged header can contain anything
        raise TracInError(f"{path} is damaged ({error}); {remedy}.") from error


def tensor_names(path: Path, remedy: str = _AGAIN, owner: str = "") -> frozenset[str]:
    """The names of the tensors in a safetensors file, without reading the tensors or verifying the checksum.

    Raises:
        TracInError: as for `read_tensors`, apart from damaged values.
    """
    with _opened(path, remedy, owner) as (file, _):
        return frozenset(file.keys())


def _named(path: Path, owner: str) -> str:
    return f"{owner}/{path.name}" if owner else ""


def _digest(tensors: Mapping[str, Tensor], kind: str) -> str:
    """Digest of names, types, shapes and values."""
    digest = _CHECKSUMS[kind]()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return str(digest.hexdigest())


def as_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    r"""Rows as JSON lines.

    Example:
        >>> as_lines([{"language": "ko"}, {"language": "de"}])
        b'{"language": "ko"}\n{"language": "de"}\n'
    """
    return as_utf8("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def as_utf8(text: str) -> bytes:
    r"""Text as UTF-8, with lone surrogates, which UTF-8 cannot encode, escaped as JSON escapes them.

    Example:
        >>> as_utf8("é \ud800")
        b'\xc3\xa9 \\ud800'
    """
    return text.encode("utf-8", "backslashreplace")


def read_lines(path: Path) -> tuple[str, Iterator[Any]]:
    """The sha256 of a file of JSON lines, and an iterator over the parsed lines.

    Raises:
        TracInError: the file is missing or, while the lines are read, found damaged.
    """
    try:
        content = read_whole(path)
    except OSError as error:
        raise _unreadable(path, error, "restore it from a copy") from error
    return hashlib.sha256(content).hexdigest(), _lines(path, content)


def _lines(path: Path, content: bytes) -> Iterator[Any]:
    try:
        for line in io.TextIOWrapper(io.BytesIO(content), "utf-8", newline="\n"):
            if line != "\n":
                yield json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TracInError(f"{path} is damaged ({error}); restore it from a copy.") from error
