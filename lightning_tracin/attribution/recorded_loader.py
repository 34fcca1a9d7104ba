"""A DataLoader that remembers which samples each batch holds, while the batch itself stays what it was.

Of a dataset with positions, the indices of the batch sampler are recorded; workers may fetch batches ahead of time. Of a stream,
some columns of each raw sample travel beside the batch, from the worker that collates it; the collate function gets what it
always got.

The user's loader is not changed: the fit goes over a copy, of a class of its own, whose iterator does this.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data._utils.pin_memory import pin_memory

from lightning_tracin.errors import TracInError


@dataclass(frozen=True)
class BatchFacts:
    """What is known of the samples of a batch, in its order.

    Attributes:
        indices: their positions in the dataset; None for a stream.
        columns: the values of each column that was asked for; None if the raw samples have no such column.
    """

    indices: list[int] | None
    columns: Mapping[str, list[Any] | None]


@dataclass
class _Beside:
    """A batch with what travels beside it."""

    batch: Any
    columns: dict[str, list[Any] | None]

    def pin_memory(self) -> _Beside:
        """What the loader's thread for pinned memory calls."""
        return _Beside(pin_memory(self.batch), self.columns)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class _Collate:
    """A collate function that also returns some columns of the raw samples."""

    collate: Callable[[Any], Any]
    columns: tuple[str, ...]
    is_batched: bool  # False: the dataset yields whole batches

    def __call__(self, samples: Any) -> _Beside:
        found = {name: _values(samples, name, self.is_batched) for name in self.columns}
        return _Beside(self.collate(samples), found)


def _values(samples: Any, name: str, is_batched: bool) -> list[Any] | None:
    if not is_batched:
        values = samples.get(name) if isinstance(samples, Mapping) else None
        return list(values) if isinstance(values, Sequence) and not isinstance(values, str) else None
    if not all(isinstance(sample, Mapping) and name in sample for sample in samples):
        return None
    return [sample[name] for sample in samples]


class _Indices:
    """A sampler whose indices are remembered, those of each of its iterators apart."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self.drawn: deque[list[int]] = deque()

    def __iter__(self) -> Iterator[Any]:
        self.drawn = deque()
        return self._remembered(iter(self._sampler), self.drawn)

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    @staticmethod
    def _remembered(indices: Iterator[Any], drawn: deque[list[int]]) -> Iterator[Any]:
        for some in indices:
            drawn.append(list(some) if isinstance(some, Sequence) else [some])
            yield some


class RecordedLoader:
    """What is added to the class of a loader; see `recorded`.

    Attributes:
        delivered: facts of the batches that the current iterator has returned, oldest first; whoever uses a batch takes one.
    """

    delivered: deque[BatchFacts]
    _columns: tuple[str, ...]
    _sampler: _Indices | None = None

    def __iter__(self) -> Iterator[Any]:
        """The batches, as the loader itself returns them."""
        loader = cast("DataLoader[Any]", self)
        self.delivered = deque()
        own, is_batched = vars(loader), loader.batch_sampler is not None
        has_positions = not isinstance(loader.dataset, IterableDataset)
        replaced = {"collate_fn": _Collate(loader.collate_fn, self._columns, is_batched)}
        sampler = self._sampler  # persistent workers go on with the first one
        if sampler is None and is_batched and has_positions:
            own["_sampler"] = sampler = _Indices(loader.batch_sampler)
        if sampler is not None:
            replaced["batch_sampler"] = cast("Any", sampler)
        kept = {name: own[name] for name in replaced}
        own.update(replaced)
        try:
            iterator = super().__iter__()  # type: ignore[misc]
        finally:
            own.update(kept)
        return self._noted(iterator, sampler, self.delivered)

    @staticmethod
    def _noted(iterator: Iterator[_Beside], sampler: _Indices | None, delivered: deque[BatchFacts]) -> Iterator[Any]:
        drawn = None if sampler is None else sampler.drawn
        for beside in iterator:
            indices = None if drawn is None else drawn.popleft()
            if beside.batch is not None:  # the fit skips such a batch
                delivered.append(BatchFacts(indices, beside.columns))
            yield beside.batch


def recorded(loader: Any, columns: Sequence[str]) -> Any:
    """A copy of a loader that remembers the samples of its batches.

    Args:
        loader: a DataLoader.
        columns: columns of the raw samples to remember.

    Raises:
        TracInError: it is no DataLoader, or its batches may come in another order than they were drawn.

    Example:
        >>> rows = [{"language": one, "x": 1.0} for one in ("de", "en", "sw")]
        >>> loader = recorded(DataLoader(rows, batch_size=2, collate_fn=len), ["language"])
        >>> list(loader), loader.delivered[1]
        ([2, 1], BatchFacts(indices=[2], columns={'language': ['sw']}))
    """
    if not isinstance(loader, DataLoader):
        raise TracInError(
            f"ContributionCallback needs to know the samples of each batch, but the train batches come from "
            f"{type(loader).__name__}; use a torch DataLoader."
        )
    if getattr(loader, "in_order", True) is False:
        raise TracInError(
            "The train DataLoader has in_order=False, so nothing tells which samples a batch holds; leave it out for this fit."
        )
    kind = type(loader)
    twin: Any = object.__new__(type(kind.__name__, (RecordedLoader, kind), {"__module__": kind.__module__}))
    vars(twin).update(vars(loader))
    vars(twin).update(
        _iterator=None, _columns=tuple(columns), delivered=deque()
    )  # the iterator of persistent workers is not ours
    return twin
