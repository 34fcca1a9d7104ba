"""How many samples each batch of a fit holds: by the loader's batch size, or by the batch where the loader has none."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.utilities.data import extract_batch_size

from lightning_tracin.attribution.batch_sizes import Counter, counters_of, samples_in
from lightning_tracin.attribution.samples import SampleSet


class BatchCounts:
    """Counts the samples of one rank's batches.

    Args:
        loader: the train loader.
        train: its samples.

    Example:
        Ten samples in batches of four:

        >>> from torch.utils.data import DataLoader
        >>> from lightning_tracin.attribution.samples import from_loader
        >>> from lightning_tracin.config import SampleColumns
        >>> loader = DataLoader([{"language": "de", "x": 1.0}] * 10, batch_size=4)
        >>> counts = BatchCounts(loader, from_loader(loader, SampleColumns(), "train samples"))
        >>> [counts.samples_in(batch, number, loader) for number, batch in enumerate(loader)]
        [4, 4, 2]
    """

    def __init__(self, loader: Any, train: SampleSet) -> None:
        is_even = loader.batch_size is not None and hasattr(loader.sampler, "__len__")
        self._counters: tuple[Counter, ...] | None = None if is_even else counters_of(train)
        self._first: int | None = None  # number of the batch with which the loader began

    def samples_in(self, batch: Any, batch_idx: int, loader: Any) -> int:
        """Number of samples in a batch.

        Args:
            batch: the batch.
            batch_idx: its number in the epoch.
            loader: the train loader as it is now.
        """
        if self._first is None:  # a fit that goes on within an epoch: the loader begins again, unless it knows where it was
            self._first = 0 if hasattr(loader, "load_state_dict") else batch_idx
        self._first = min(self._first, batch_idx)
        if self._counters is None:
            return int(min(loader.batch_size, len(loader.sampler) - (batch_idx - self._first) * loader.batch_size))
        found = samples_in(batch, self._counters)
        return int(extract_batch_size(batch)) if found is None else found
