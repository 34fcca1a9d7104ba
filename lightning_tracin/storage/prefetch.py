"""Prefetching: background threads read, check and process the next items."""

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
    """The results of a function for each item, by position; background threads work on the items that follow.

    It uses as many threads as torch, and works that many items ahead: hashing and tensor products release Python's lock.

    Args:
        find: processes one item, in a thread in which torch uses no further threads.
        items: mostly asked for in order.

    Example:
        >>> squares = Ahead(lambda number: number**2, [1, 2, 3])
        >>> squares[0], squares[1]
        (1, 4)
    """

    def __init__(self, find: Callable[[_Item], _Found], items: Sequence[_Item]) -> None:
        self._find, self._items = find, items
        self._workers = torch.get_num_threads()
        self._pool = _pool(self._workers, os.getpid())
        self._begun: dict[int, Future[_Found]] = {}

    def __getitem__(self, position: int) -> _Found:
        """The result for the item at this position; an exception in the thread is raised here."""
        coming = range(position, min(position + self._workers + 1, len(self._items)))
        self._begun = {number: self._begun.get(number) or self._pool.submit(self._find, self._items[number]) for number in coming}
        return self._begun.pop(position).result()


def _use_one_thread() -> None:
    torch.get_num_threads()  # a thread's first question sets it to the process's number, which must not come after the 1
    torch.set_num_threads(1)


@lru_cache(maxsize=4)
def _pool(workers: int, process: int) -> ThreadPoolExecutor:
    """Threads that each use one torch thread, so that they work on different items and not all on the same.

    All readers in a process share them; a forked process has its own.
    """
    del process
    here, ready = torch.get_num_threads(), Barrier(workers + 1)
    pool = ThreadPoolExecutor(workers, initializer=_use_one_thread)
    try:
        for _ in range(workers):
            pool.submit(ready.wait)
    except RuntimeError:  # no more threads can be started: release the waiting ones
        ready.abort()
        raise
    ready.wait()
    torch.set_num_threads(here)  # a thread's setting also applies to threads that start later
    return pool
