"""A DataLoader that remembers which samples each batch holds, while the batch itself stays what it was.

Of a dataset with positions, the indices of the batch sampler are recorded; workers may fetch batches ahead of time. Some columns
of each raw sample travel beside the batch, from the worker that collates it; the collate function gets what it always got.

The user's loader is not changed: the fit goes over a copy, of a class of its own, whose iterator does this.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data._utils.pin_memory import pin_memory

from lightning_tracin.errors import TracInError

#: Batches of a pass that are remembered (a fit may have fetched one more than it uses), and passes that have ended.
_REMEMBERED, _ENDED = 2, 2


@dataclass(frozen=True)
class BatchFacts:
    """What is known of the samples of a batch, in its order.

    Attributes:
        indices: their positions in the dataset; None if it has none, as a stream.
        columns: the values of each column that was asked for; None if the raw samples have no such column.
    """

    indices: list[Any] | None
    columns: Mapping[str, list[Any] | None]


@dataclass
class _Carried:
    """A batch with what travels beside it."""

    batch: Any
    columns: dict[str, list[Any] | None]
    count: int | None  # raw samples

    def pin_memory(self) -> _Carried:
        """What the loader's thread for pinned memory calls."""
        return _Carried(pin_memory(self.batch), self.columns, self.count)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class _Collate:
    """A collate function that also returns some columns of the raw samples."""

    collate: Callable[[Any], Any]
    columns: tuple[str, ...]
    is_batched: bool  # False: the dataset yields whole batches

    def __call__(self, samples: Any) -> _Carried:
        found = {name: _values(samples, name) for name in self.columns}
        count = len(samples) if self.is_batched and isinstance(samples, list | tuple) else None
        return _Carried(self.collate(samples), found, count)


def _values(samples: Any, name: str) -> list[Any] | None:
    """The values of a column in samples, or in a batch that the dataset made."""
    if isinstance(samples, Mapping):
        values = samples.get(name)
        return [values] if isinstance(values, str) else _listed(values)
    if not isinstance(samples, Sequence) or not all(isinstance(sample, Mapping) and name in sample for sample in samples):
        return None
    return [_plain(sample[name]) for sample in samples]


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _listed(values: Any) -> list[Any] | None:
    values = _plain(values)
    return [_plain(value) for value in values] if isinstance(values, Sequence) and not isinstance(values, str | bytes) else None


class _Indices:
    """A sampler whose indices are remembered, those of its last iterator."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self.drawn: deque[Any] = deque()

    def __iter__(self) -> Iterator[Any]:
        self.drawn = deque()
        return _Drawing(iter(self._sampler), self.drawn)

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_sampler"], name)


class _Drawing:
    """An iterator of a sampler, in all but that its indices are remembered."""

    def __init__(self, indices: Iterator[Any], drawn: deque[Any]) -> None:
        self._indices, self._drawn = indices, drawn

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        some = next(self._indices)
        if isinstance(some, Iterator):
            some = list(some)
        self._drawn.append(some)
        return some

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_indices"], name)


@dataclass(frozen=True)
class _Delivered:
    """A batch that was returned; while it is kept, no other object has its identity."""

    batch: Any
    facts: BatchFacts
    of: deque[int]  # its pass


class RecordedLoader:
    """What is added to the class of a loader; see `recorded`.

    Attributes:
        passes: how often it has been iterated over.
    """

    passes: int
    _columns: tuple[str, ...]
    _delivered: dict[int, _Delivered]  # the last batches, by identity
    _ended: deque[deque[int]]  # passes that have ended, as identities of their last batches
    _sampler: _Indices | None = None

    def facts_of(self, batch: Any) -> BatchFacts | None:
        """What is known of one of the last batches, which has to be the very object; None if it is not known."""
        found = self._delivered.get(id(batch))
        return None if found is None else found.facts

    def remember(self, columns: Sequence[str]) -> None:
        """Remember more columns, from the next pass on."""
        self._columns = tuple(dict.fromkeys((*self._columns, *columns)))

    def __iter__(self) -> Iterator[Any]:
        """The batches, as the loader itself returns them."""
        loader = cast("DataLoader[Any]", self)
        self.passes += 1
        own, is_batched = vars(loader), loader.batch_sampler is not None
        replaced = {"collate_fn": _Collate(loader.collate_fn, self._columns, is_batched)}
        sampler = self._sampler  # persistent workers go on with the first one
        place = "batch_sampler" if is_batched else "sampler"
        if sampler is None and not isinstance(loader.dataset, IterableDataset):
            own["_sampler"] = sampler = _Indices(own[place])
        if sampler is not None:
            replaced[place] = cast("Any", sampler)
        kept = {name: own[name] for name in replaced}
        own.update(replaced)
        try:
            iterator = super().__iter__()  # type: ignore[misc]
        finally:
            own.update(kept)
        return self._noted(iterator, None if sampler is None else sampler.drawn)

    def _noted(self, iterator: Iterator[_Carried], drawn: deque[Any] | None) -> Iterator[Any]:
        mine: deque[int] = deque()
        try:
            for given, beside in enumerate(iterator):
                indices = None if drawn is None else _positions(drawn, getattr(iterator, "_send_idx", given + 1) - given)
                _require_count(indices, beside.count)
                mine.append(id(beside.batch))
                self._delivered[mine[-1]] = _Delivered(beside.batch, BatchFacts(indices, beside.columns), mine)
                self._forget(mine, _REMEMBERED)
                yield beside.batch
        finally:
            self._ended.append(mine)
            while len(self._ended) > _ENDED:
                self._forget(self._ended.popleft(), 0)

    def _forget(self, mine: deque[int], most: int) -> None:
        """Forget all batches of a pass but the last ones; another pass may have delivered the same object since."""
        while len(mine) > most:
            oldest = mine.popleft()
            if oldest not in mine and oldest in self._delivered and self._delivered[oldest].of is mine:
                del self._delivered[oldest]


def _positions(drawn: deque[Any], outstanding: int) -> list[Any] | None:
    """The indices of the batch that has arrived, the first of so many that were asked for; those before it were skipped."""
    while len(drawn) > outstanding:
        drawn.popleft()
    some = _plain(drawn.popleft())
    return list(some) if isinstance(some, Iterable) and not isinstance(some, str | bytes | Mapping) else None


def _require_count(indices: Sequence[Any] | None, count: int | None) -> None:
    if indices is not None and count not in (None, len(indices)):
        raise TracInError(
            f"The train DataLoader drew {len(indices)} samples for a batch of {count}, so nothing tells which samples it holds; "
            "use a sampler of whole batches, or give each raw sample its language."
        )


def recorded(loader: Any, columns: Sequence[str]) -> Any:
    """A copy of a loader that remembers the samples of its batches; a copy itself remembers these columns, too.

    Args:
        loader: a DataLoader.
        columns: columns of the raw samples to remember.

    Raises:
        TracInError: it is no DataLoader, or its batches may come in another order than they were drawn.

    Example:
        >>> rows = [{"language": one, "x": 1.0} for one in ("de", "en", "sw")]
        >>> loader = recorded(DataLoader(rows, batch_size=2, collate_fn=tuple), ["language"])
        >>> for batch in loader:
        ...     print(len(batch), loader.facts_of(batch))
        2 BatchFacts(indices=[0, 1], columns={'language': ['de', 'en']})
        1 BatchFacts(indices=[2], columns={'language': ['sw']})
    """
    if isinstance(loader, RecordedLoader):
        loader.remember(columns)
        return loader
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
    # The iterator of persistent workers is not ours.
    vars(twin).update(_iterator=None, _columns=tuple(columns), _delivered={}, _ended=deque(), passes=0)
    return twin
