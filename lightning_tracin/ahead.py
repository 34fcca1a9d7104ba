"""Reading ahead: what comes next is read, and compared with its checksum, while what was read is worked on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

_Item = TypeVar("_Item")
_Found = TypeVar("_Found")

#: Reads that are under way beside the one that is asked for; hashing runs without Python's lock, so threads are enough.
_AHEAD = 2


class Ahead(Generic[_Item, _Found]):
    """What a function reads of each item, by the item's position; the items behind it are read meanwhile.

    Args:
        read: reads one item; it runs in threads.
        items: to be read, mostly in order.
    """

    def __init__(self, read: Callable[[_Item], _Found], items: Sequence[_Item]) -> None:
        self._read, self._items = read, items
        self._pool = ThreadPoolExecutor(_AHEAD)
        self._begun: dict[int, Future[_Found]] = {}

    def __getitem__(self, position: int) -> _Found:
        """What was read of the item at this position; an error of reading is raised here."""
        coming = range(position, min(position + _AHEAD + 1, len(self._items)))
        self._begun = {number: self._begun.get(number) or self._pool.submit(self._read, self._items[number]) for number in coming}
        return self._begun.pop(position).result()

    def __len__(self) -> int:
        return len(self._items)
