"""Turns a DataLoader into indexed samples with language, item, text and label.

A sample is identified by its position in the dataset behind the loader, so shuffling, `drop_last` and distributed samplers do
not matter; the loader's collate function makes batches. With several ranks, rank 0 reads the table of samples and broadcasts it,
and each rank measures the lengths of its own part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler

from lightning_tracin.attribution.dataset_columns import read_table
from lightning_tracin.attribution.own_collate import own_collate
from lightning_tracin.attribution.processes import Processes, on_rank_zero
from lightning_tracin.attribution.progress import Progress, tracked
from lightning_tracin.config import SampleColumns
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.sample_table import SampleTable


@dataclass(frozen=True)
class SampleSet:
    """Samples of one or several datasets: a table of them, where to fetch each one, and how to collate a batch."""

    table: SampleTable
    datasets: tuple[Any, ...]
    collates: tuple[Callable[[list[Any]], Any], ...]
    places: tuple[tuple[int, int], ...]  # of each sample: (dataset, position in it)
    lengths: tuple[int, ...] | None = None  # if already measured; see `sizes`
    progress: Progress = False  # the bar that is shown if measuring takes long

    def __len__(self) -> int:
        return len(self.places)

    def take(self, indices: Sequence[int]) -> SampleSet:
        """The samples at these indices, renumbered from 0."""
        lengths = None if self.lengths is None else tuple(self.lengths[i] for i in indices)
        return replace(self, table=self.table.take(indices), places=tuple(self.places[i] for i in indices), lengths=lengths)

    def source(self, index: int) -> int:
        """Which dataset a sample comes from; a batch has samples of one dataset only."""
        return self.places[index][0]

    def items(self, indices: Sequence[int]) -> list[Any]:
        """Fetch samples from their dataset."""
        dataset = self.datasets[self.source(indices[0])]
        positions = [self.places[i][1] for i in indices]
        if hasattr(dataset, "__getitems__"):
            return list(dataset.__getitems__(positions))
        return [dataset[position] for position in positions]

    def batch(self, indices: Sequence[int]) -> Any:
        """Fetch samples and collate them with their loader's function."""
        sources = {self.source(i) for i in indices}
        if len(sources) != 1:
            raise ValueError("A batch holds samples of one dataset.")
        return self.collates[sources.pop()](self.items(indices))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The length of each sample (see `size_of`), for batches of similar length."""
        if self.lengths is not None:
            return self.lengths
        sizes = [0] * len(self)
        by_source: dict[int, list[int]] = {}
        for index, (source, _) in enumerate(self.places):
            by_source.setdefault(source, []).append(index)
        chunks = [indices[at : at + 256] for indices in by_source.values() for at in range(0, len(indices), 256)]
        for chunk in tracked(self.progress, chunks, desc="lengths of samples", delay=2):
            for index, item in zip(chunk, self.items(chunk), strict=True):
                sizes[index] = size_of(item)
        return tuple(sizes)


def size_of(value: Any) -> int:
    """The length of a sample: the number of numbers and characters in it.

    Example:
        >>> size_of({"input_ids": torch.zeros(7), "label": 1, "text": "abc"})
        11
    """
    if isinstance(value, Tensor):
        return value.numel()
    if isinstance(value, Mapping):
        return sum(size_of(part) for part in value.values())
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, Sequence):
        return sum(size_of(part) for part in value) if value and not isinstance(value[0], int | float) else len(value)
    size = getattr(value, "size", 1)
    return size if isinstance(size, int) else 1


def joined(sets: Sequence[SampleSet]) -> SampleSet:
    """Concatenate several sets."""
    columns = ("language", "item", "text", "label")
    table = SampleTable(*(tuple(entry for one in sets for entry in getattr(one.table, column)) for column in columns))
    starts = accumulate((len(one.datasets) for one in sets), initial=0)
    return SampleSet(
        table,
        datasets=tuple(dataset for one in sets for dataset in one.datasets),
        collates=tuple(collate for one in sets for collate in one.collates),
        places=tuple((start + source, place) for start, one in zip(starts, sets, strict=False) for source, place in one.places),
    )


def measured(samples: SampleSet, environment: Processes) -> SampleSet:
    """Measure the lengths of samples; each rank measures a part."""
    ranks, count = environment.ranks, len(samples)
    mine = samples.take(range(environment.rank, count, ranks)).sizes
    filled = torch.zeros(-(-count // ranks), dtype=torch.int64)
    filled[: len(mine)] = torch.tensor(mine, dtype=torch.int64)
    return replace(samples, lengths=tuple(environment.gather(filled).T.flatten()[:count].tolist()))


def from_loader(
    loader: Any, columns: SampleColumns, role: str, languages: Sequence[Any] | None = None, environment: Processes | None = None
) -> SampleSet:
    """The samples behind a DataLoader.

    Args:
        loader: a `DataLoader` over a map-style dataset.
        columns: which columns hold language, item, text and label.
        role: "train samples" or "probes", for messages.
        languages: each sample's language, instead of a column.
        environment: the processes that read the same samples; only rank 0 reads the table and keeps the texts. None: this process
            alone.

    Raises:
        TracInError: the loader or its dataset is not supported, or languages are missing; the message says what to do.

    Example:
        >>> rows = [{"language": "de", "x": 1.0}, {"language": "sw", "x": 2.0}, {"language": "de", "x": 3.0}]
        >>> samples = from_loader(DataLoader(rows, batch_size=2, shuffle=True), SampleColumns(), "probes")
        >>> samples.table.language, samples.batch([2, 0])["x"]
        (('de', 'sw', 'de'), tensor([3., 1.], dtype=torch.float64))
    """
    require_loader(loader, role)
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise TracInError(
            f"The {role} come from {type(dataset).__name__}, an iterable dataset, whose samples have no fixed position. "
            "Use a map-style dataset (for a streamed Hugging Face dataset: load it without `streaming=True`), or a "
            "`ContributionCallback`, whose train samples may be a stream."
        )
    if loader.batch_sampler is None:
        raise TracInError(
            f"The DataLoader of the {role} has batch_size=None, so its dataset yields whole batches; let the dataset yield "
            "single samples and give the DataLoader a batch size."
        )
    if isinstance(loader.sampler, SubsetRandomSampler):
        raise TracInError(
            f"The DataLoader of the {role} draws from a part of its dataset only (SubsetRandomSampler), but the rest would "
            "count as samples too; give the DataLoader a `torch.utils.data.Subset` of the dataset instead."
        )
    count = len(dataset)
    if count == 0:
        raise TracInError(f"The dataset of the {role} is empty.")
    read = partial(read_table, dataset, columns, role, languages)
    table = read() if environment is None else _shared(read, environment)
    places = tuple((0, position) for position in range(count))
    return SampleSet(table, (dataset,), (own_collate(loader.collate_fn),), places)


def _shared(read: Callable[[], SampleTable], environment: Processes) -> SampleTable:
    """Read a table on rank 0 and broadcast it without texts; only rank 0 needs these, to write them."""
    own: list[SampleTable] = []

    def without_texts() -> SampleTable:
        own.append(read())
        return replace(own[0], text=("",) * len(own[0]))

    received = on_rank_zero(environment, without_texts)
    return own[0] if own else received


def require_loader(loader: Any, role: str) -> None:
    """Check that a loader is one DataLoader.

    Raises:
        TracInError: it is something else.
    """
    if not isinstance(loader, DataLoader):
        name = type(loader).__name__
        got = f"{len(loader)} loaders in a {name}" if isinstance(loader, list | tuple | Mapping) else name
        raise TracInError(
            f"The {role} should come from one torch DataLoader, but got {got}. For several datasets, use one "
            "DataLoader over a `torch.utils.data.ConcatDataset`."
        )
