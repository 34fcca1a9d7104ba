"""The measurements by name. A new one is a module `measure_*.py` with a function under `@measurement(...)`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import benchmarks
from benchmarks.report import Report


@dataclass(frozen=True)
class Context:
    """How to measure."""

    repetitions: int = 5
    patience: float = 60  # seconds of one comparison after which three pairs are enough
    scale: float = 1.0  # of the numbers of samples; below 1 for a quick look


Measurement: TypeAlias = Callable[[Context], Report]

_MEASUREMENTS: dict[str, Measurement] = {}


def measurement(*names: str) -> Callable[[Measurement], Measurement]:
    """Register the decorated function as the measurement of these figures or tables."""

    def declare(function: Measurement) -> Measurement:
        for name in names:
            _MEASUREMENTS[name] = function
        return function

    return declare


def names() -> list[str]:
    """All names, in the order in which they are measured."""
    for module in sorted(info.name for info in pkgutil.iter_modules(benchmarks.__path__)):
        if module.startswith("measure_"):
            importlib.import_module(f"benchmarks.{module}")
    return list(_MEASUREMENTS)


def chosen(wanted: Sequence[str]) -> list[Measurement]:
    """The measurements of these names, each once; all if no name is given.

    Raises:
        ValueError: there is no measurement of such a name.
    """
    known = names()
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"There is no measurement {unknown[0]!r}; there are {', '.join(known)}.")
    return list(dict.fromkeys(_MEASUREMENTS[name] for name in (wanted or known)))
