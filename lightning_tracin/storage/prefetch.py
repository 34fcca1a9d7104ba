"""Working ahead: what comes next is read, compared with its checksum and worked on in other threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier
from typing import Generic, TypeVar

import torch

_Item = TypeVar("_Item")
_Found = TypeVar("_Found")


class Ahead(Generic[_Item, _Found]):
    """What a function finds of each item, by the item's position; the items behind it are worked on meanwhile.

    There are as many threads as torch has, and as many items ahead: hashing and products of tensors run without Python's lock.

    Args:
        find: works on one item, in a thread whose products of tensors have no other threads to help.
        items: mostly asked for in order.
    """

    def __init__(self, find: Callable[[_Item], _Found], items: Sequence[_Item]) -> None:
        self._find, self._items = find, items
        self._workers = torch.get_num_threads()
        self._pool = _pool(self._workers, os.getpid())
        self._begun: dict[int, Future[_Found]] = {}

    def __getitem__(self, position: int) -> _Found:
        """What was found of the item at this position; an error is raised here."""
        coming = range(position, min(position + self._workers + 1, len(self._items)))
        self._begun = {number: self._begun.get(number) or self._pool.submit(self._find, self._items[number]) for number in coming}
        return self._begun.pop(position).result()

    def __len__(self) -> int:
        return len(self._items)


@lru_cache(maxsize=4)
def _pool(workers: int, process: int) -> ThreadPoolExecutor:
    """Threads of which each has one thread of torch: they work on different items, not all on the same.

    All that is read in a process shares them; a process that was forked from it has its own.
    """
    del process
    here, ready = torch.get_num_threads(), Barrier(workers + 1)
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        for _ in range(workers):
            pool.submit(ready.wait)
    except RuntimeError:  # no more threads may be started: let go those that wait
        ready.abort()
        raise
    ready.wait()
    torch.set_num_threads(here)  # what a thread sets counts for threads that come later too
    return pool
