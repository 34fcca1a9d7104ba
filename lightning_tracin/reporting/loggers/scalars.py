"""The sink for loggers that only take numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from lightning_tracin.reporting.contribution_points import ContributionPoint
from lightning_tracin.reporting.results import Point, Results


class ScalarSink:
    """Logs the curves' values through `log_metrics` (TensorBoard, CSV and others)."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def point(self, point: Point) -> None:
        """Log the curves' values at one snapshot."""
        self._logger.log_metrics(point.scalars, step=point.step)

    def finishing(self, results: Results) -> Sequence[Callable[[], None]]:  # noqa: ARG002 - tables are in the run directory
        """What flushes the logger."""
        return (self._save,)

    def window(self, point: ContributionPoint) -> None:
        """Log the contributions up to the end of a window."""
        self._logger.log_metrics(point.scalars, step=point.step)

    def finishing_contributions(self, table: pd.DataFrame) -> Sequence[Callable[[], None]]:  # noqa: ARG002 - see `finishing`
        """What flushes the logger."""
        return (self._save,)

    def _save(self) -> None:
        self._logger.save()
