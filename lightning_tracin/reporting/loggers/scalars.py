"""The sink for loggers that only take numbers."""

from __future__ import annotations

from typing import Any

from lightning_tracin.reporting.results import Point, Results


class ScalarSink:
    """Logs the curves' values through `log_metrics` (TensorBoard, CSV and others)."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def point(self, point: Point) -> None:
        """Log the curves' values at one snapshot."""
        self._logger.log_metrics(point.scalars, step=point.step)

    def finish(self, results: Results) -> None:  # noqa: ARG002 - the tables are in the run directory
        """Flush the logger."""
        self._logger.save()
