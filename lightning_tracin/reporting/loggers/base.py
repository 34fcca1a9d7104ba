"""The protocol of a sink, and which sink each logger gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from lightning_tracin.reporting.contribution_points import ContributionPoint
from lightning_tracin.reporting.loggers.comet import CometSink
from lightning_tracin.reporting.loggers.mlflow import MlflowSink
from lightning_tracin.reporting.loggers.scalars import ScalarSink
from lightning_tracin.reporting.loggers.tensorboard import TensorBoardSink
from lightning_tracin.reporting.loggers.wandb import WandbSink
from lightning_tracin.reporting.results import Point, Results
from lightning_tracin.storage.records import RunRecord


class Sink(Protocol):
    """Logs a run's reliance and contributions: a point for each snapshot and for each window, and everything at the end."""

    def settings(self, record: RunRecord) -> None:
        """Log the callback's options and what identifies the data, where the logger has a place for them."""

    def point(self, point: Point, live: bool = False) -> None:
        """Log the curves' values at one snapshot.

        Args:
            point: the values.
            live: whether the fit goes on, so that charts are worth drawing now.
        """

    def finishing(self, results: Results, folder: Path) -> Sequence[Callable[[], None]]:
        """What logs the tables, charts, final values and files: several functions, so that one that fails costs no other.

        Args:
            results: the tables.
            folder: the files that were written.
        """

    def window(self, point: ContributionPoint) -> None:
        """Log the contributions up to the end of a window."""

    def finishing_contributions(self, table: pd.DataFrame) -> Sequence[Callable[[], None]]:
        """What logs the contributions of a fit that has ended, as several functions.

        Args:
            table: as from `contributions.contribution_table(..., cumulative=True)`; not empty.
        """


#: The sinks of loggers that show more than numbers, by the name of the logger's class (each Lightning package has its own).
SINKS: dict[str, Callable[[Any], Sink]] = {
    "CometLogger": CometSink,
    "MLFlowLogger": MlflowSink,
    "TensorBoardLogger": TensorBoardSink,
    "WandbLogger": lambda logger: WandbSink(logger.experiment),
}


def sinks_for(loggers: Sequence[Any]) -> list[Sink]:
    """A sink for each of the Trainer's loggers; a logger that `SINKS` does not name gets numbers."""
    return [_sink_of(logger)(logger) for logger in loggers]


def _sink_of(logger: Any) -> Callable[[Any], Sink]:
    names = (parent.__name__ for parent in type(logger).__mro__)
    return next((SINKS[name] for name in names if name in SINKS), ScalarSink)
