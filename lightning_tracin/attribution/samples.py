"""Which samples: a data loader becomes indexed samples with language, item, text and label.

Samples are known by their position in the dataset behind the loader, so shuffling, `drop_last` and distributed samplers do
not matter; the loader's own collate function turns any of them into a batch. Where ranks share the work, rank 0 reads the facts
about samples for all of them, and each rank looks through its own part for the lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler
from tqdm.auto import tqdm

from lightning_tracin.attribution.dataset_columns import read_table
from lightning_tracin.attribution.processes import Processes, on_rank_zero
from lightning_tracin.config import SampleColumns
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.sample_table import SampleTable


@dataclass(frozen=True)
class SampleSet:
    """Samples that can be fetched: where each one stands, and how its loader makes a batch."""

    table: SampleTable
    datasets: tuple[Any, ...]
    collates: tuple[Callable[[list[Any]], Any], ...]
    places: tuple[tuple[int, int], ...]  # of each sample: (dataset, position in it)
    lengths: tuple[int, ...] | None = None  # where these are known already; see `sizes`
    progress: bool = False  # whether a long look through the samples shows a bar

    def __len__(self) -> int:
        return len(self.places)

    def take(self, indices: Sequence[int]) -> SampleSet:
        """The samples at these indices, renumbered from 0."""
        lengths = None if self.lengths is None else tuple(self.lengths[i] for i in indices)
        return replace(self, table=self.table.take(indices), places=tuple(self.places[i] for i in indices), lengths=lengths)

    def source(self, index: int) -> int:
        """Which dataset a sample comes from; a batch holds samples of one only."""
        return self.places[index][0]

    def items(self, indices: Sequence[int]) -> list[Any]:
        """The samples as their dataset gives them."""
        dataset = self.datasets[self.source(indices[0])]
        positions = [self.places[i][1] for i in indices]
        if hasattr(dataset, "__getitems__"):
            return list(dataset.__getitems__(positions))
        return [dataset[position] for position in positions]

    def batch(self, indices: Sequence[int]) -> Any:
        """The samples collated by their loader's own function."""
        sources = {self.source(i) for i in indices}
        if len(sources) != 1:
            raise ValueError("A batch holds samples of one dataset.")
        return self.collates[sources.pop()](self.items(indices))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """A measure of each sample's length, by which batches of similar length are made: its number of elements."""
        if self.lengths is not None:
            return self.lengths
        sizes = [0] * len(self)
        by_source: dict[int, list[int]] = {}
        for index, (source, _) in enumerate(self.places):
            by_source.setdefault(source, []).append(index)
        chunks = [indices[at : at + 256] for indices in by_source.values() for at in range(0, len(indices), 256)]
        for chunk in tqdm(chunks, desc="lengths of samples", delay=2, disable=not self.progress):
            for index, item in zip(chunk, self.items(chunk), strict=True):
                sizes[index] = size_of(item)
        return tuple(sizes)


def size_of(value: Any) -> int:
    """How long a sample is: numbers and characters in all that it holds. Batches are of samples of similar length."""
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
    """Several sets one after the other."""
    tables = [one.table for one in sets]
    table = SampleTable(
        *(tuple(entry for one in tables for entry in getattr(one, column)) for column in ("language", "item", "text", "label"))
    )
    datasets: list[Any] = []
    collates: list[Callable[[list[Any]], Any]] = []
    places: list[tuple[int, int]] = []
    for one in sets:
        places += [(source + len(datasets), position) for source, position in one.places]
        datasets += one.datasets
        collates += one.collates
    return SampleSet(table, tuple(datasets), tuple(collates), tuple(places))


def measured(samples: SampleSet, environment: Processes) -> SampleSet:
    """The samples with their lengths, of which each rank has read its part."""
    ranks, count = environment.ranks, len(samples)
    mine = samples.take(range(environment.rank, count, ranks)).sizes
    filled = torch.zeros(-(-count // ranks), dtype=torch.int64)
    filled[: len(mine)] = torch.tensor(mine, dtype=torch.int64)
    return replace(samples, lengths=tuple(environment.gather(filled).T.flatten()[:count].tolist()))


def from_loader(
    loader: Any, columns: SampleColumns, role: str, languages: Sequence[str] | None = None, environment: Processes | None = None
) -> SampleSet:
    """The samples behind a data loader.

    Args:
        loader: a `DataLoader` over a map-style dataset.
        columns: where the facts stand.
        role: "train samples" or "probes", for messages.
        languages: each sample's language, given outright.
        environment: the processes that ask for the same samples, of which rank 0 reads the facts and alone has the texts;
            None = this process alone.

    Raises:
        TracInError: the loader or its dataset cannot be indexed, or languages are missing; the message says what to do.
    """
    require_loader(loader, role)
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise TracInError(
            f"The {role} come from {type(dataset).__name__}, an iterable dataset: its samples have no position to be known by. "
            "Use a map-style dataset (for a streamed Hugging Face dataset: load it without `streaming=True`)."
        )
    if loader.batch_sampler is None:
        raise TracInError(
            f"The DataLoader of the {role} has batch_size=None, so its dataset yields whole batches; let the dataset yield "
            "single samples and give the DataLoader a batch size."
        )
    if isinstance(loader.sampler, SubsetRandomSampler):
        raise TracInError(
            f"The DataLoader of the {role} draws from a part of its dataset only (SubsetRandomSampler), and the rest would "
            "count as samples too; give the DataLoader a `torch.utils.data.Subset` of the dataset instead."
        )
    count = len(dataset)
    if count == 0:
        raise TracInError(f"The dataset of the {role} is empty.")
    read = partial(read_table, dataset, columns, role, languages)
    table = read() if environment is None else _shared(read, environment)
    places = tuple((0, position) for position in range(count))
    return SampleSet(table, (dataset,), (loader.collate_fn,), places)


def _shared(read: Callable[[], SampleTable], environment: Processes) -> SampleTable:
    """What rank 0 reads, for all ranks; only rank 0, which writes them, keeps the texts."""
    own: list[SampleTable] = []

    def facts() -> SampleTable:
        own.append(read())
        return replace(own[0], text=("",) * len(own[0]))

    received = on_rank_zero(environment, facts)
    return own[0] if own else received


def require_loader(loader: Any, role: str) -> None:
    """Refuse anything but one DataLoader.

    Raises:
        TracInError: it is something else.
    """
    if not isinstance(loader, DataLoader):
        raise TracInError(
            f"The {role} should come from one torch DataLoader, but got {_described(loader)}. For several data sets, use one "
            "DataLoader over a `torch.utils.data.ConcatDataset`."
        )


def _described(loader: Any) -> str:
    if isinstance(loader, list | tuple | Mapping):
        return f"{len(loader)} loaders in a {type(loader).__name__}"
    return type(loader).__name__
