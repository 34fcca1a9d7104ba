"""The eigenbases and damped scales of one snapshot, from which EK-FAC's products are computed.

A folder `factors/0003-step375/` holds two files, each complete or absent: the bases come first, and the scales, which are
measured in them, second. Both stay after the products are computed, because candidates are scored with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lightning_tracin.storage.files import read_tensors, write_tensors


class FactorStore:
    """The factors of one snapshot.

    Args:
        folder: the snapshot's folder under `factors`.
        owner: what the files belong to; see `files.write_tensors`.

    Example:
        >>> import torch
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     store = FactorStore(Path(folder))
        ...     store.write("bases", {"right/weight": torch.eye(2)})
        ...     store.has("bases"), store.has("scales"), sorted(store.read("bases"))
        (True, False, ['right/weight'])
    """

    def __init__(self, folder: Path, owner: str = "") -> None:
        self.folder, self._owner = folder, owner

    def has(self, name: str) -> bool:
        """Whether the file of this name exists."""
        return self._path(name).exists()

    def write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a file, completely or not at all."""
        write_tensors(self._path(name), tensors, f"{self._owner}/{name}" if self._owner else "")

    def read(self, name: str) -> dict[str, Tensor]:
        """The tensors of a file.

        Raises:
            TracInError: it is missing or damaged, or belongs to another run.
        """
        remedy = f"restore it from a copy, or delete {self.folder} and the snapshot's products to have all of it computed again"
        return read_tensors(self._path(name), remedy, f"{self._owner}/{name}" if self._owner else "")

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"
