"""What each train sample's label costs at one snapshot: -log of its probability, beside the snapshot's features.

They are there only if that is the whole loss of every sample: the cross-entropy of one label. They weigh the samples' curvature,
see `analysis.predicted_need`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lightning_tracin.errors import TracInError
from lightning_tracin.storage.files import read_tensors, write_tensors
from lightning_tracin.storage.shards import are_indices


class LabelLosses:
    """The losses of one snapshot.

    Args:
        folder: the folder of the snapshot's features.
        count: number of train samples.
        owner: what the files belong to; see `files.write_tensors`.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     store = LabelLosses(Path(folder), count=2)
        ...     store.write("00000", [1], torch.tensor([0.5]))
        ...     print(store.read())  # sample 0 is missing
        ...     store.write("00001", [0], torch.tensor([0.25]))
        ...     store.read().tolist()
        None
        [0.25, 0.5]
    """

    def __init__(self, folder: Path, count: int, owner: str = "") -> None:
        self._folder, self._count, self._owner = folder, count, owner

    def write(self, shard: str, index: Sequence[int], losses: Tensor) -> None:
        """Write one shard, completely or not at all."""
        tensors = {"index": torch.tensor(index, dtype=torch.int64), "losses": losses.detach().double().cpu()}
        write_tensors(self._folder / f"labels-{shard}.safetensors", tensors, self._owner)

    def read(self) -> Tensor | None:
        """The loss of each train sample, [train], double precision; None if one is missing.

        Raises:
            TracInError: a file is damaged or of another run.
        """
        found = torch.full((self._count,), torch.nan, dtype=torch.float64)
        for path in sorted(self._folder.glob("labels-*.safetensors")):
            stored = read_tensors(path, owner=self._owner)
            index, losses = stored["index"], stored["losses"]
            if index.shape != losses.shape or not are_indices(index.numpy(), self._count) or not bool((losses >= 0).all()):
                raise TracInError(f"{path} does not belong to this run, or is damaged; delete it to have it computed again.")
            found[index] = losses  # files of other shards, of a pass with another batch size, say the same
        return None if bool(found.isnan().any()) else found
