"""The protocol of a sink, and which sink each logger gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from lightning_tracin.reporting.loggers.scalars import ScalarSink
from lightning_tracin.reporting.loggers.wandb import WandbSink
from lightning_tracin.reporting.results import Point, Results


class Sink(Protocol):
    """Logs a run's reliance: one point per snapshot, and everything at the end."""

    def point(self, point: Point) -> None:
        """Log the curves' values at one snapshot."""

    def finish(self, results: Results) -> None:
        """Log the tables, charts and final values."""


def sinks_for(loggers: Sequence[Any]) -> list[Sink]:
    """A sink for each of the Trainer's loggers."""
    return [WandbSink(logger.experiment) if _is_wandb(logger) else ScalarSink(logger) for logger in loggers]


def _is_wandb(logger: Any) -> bool:
    """Whether this is the WandbLogger of either Lightning package."""
    return any(parent.__name__ == "WandbLogger" for parent in type(logger).__mro__)
