"""Timing two sides in turn, so that other load on the machine affects both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

#: Pairs that are always measured, however long they take.
FEWEST = 3


@dataclass(frozen=True)
class Spread:
    """The median, smallest and largest of some runs."""

    value: float
    low: float
    high: float
    runs: int


def spread(values: Sequence[float]) -> Spread:
    """Median, smallest, largest and number of some values."""
    return Spread(statistics.median(values), min(values), max(values), len(values))


@dataclass(frozen=True)
class Pairs:
    """Seconds of two sides, timed in turn."""

    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    @property
    def theirs_over_ours(self) -> Spread:
        """The ratio within each pair."""
        return spread([theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True)])

    @property
    def ours_over_theirs(self) -> Spread:
        """The ratio within each pair, the other way round."""
        return spread([ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)])


def seconds(work: Callable[[], object]) -> float:
    """Seconds that one call takes, until the device has finished."""
    _wait()
    start = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - start


def interleaved(
    ours: Callable[[], object], theirs: Callable[[], object], repetitions: int, patience: float = float("inf")
) -> Pairs:
    """Time both in turn: ours, theirs, ours, theirs, ...

    Args:
        ours: one side, warmed up.
        theirs: the other side, warmed up.
        repetitions: number of pairs.
        patience: seconds after which no further pair is started, once there are three (or all that were requested).
    """
    pairs: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(pairs) < repetitions and (len(pairs) < FEWEST or time.perf_counter() - start < patience):
        pairs.append((seconds(ours), seconds(theirs)))
    return Pairs(tuple(one for one, _ in pairs), tuple(other for _, other in pairs))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
