"""The sink for loggers that only take numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lightning_tracin.reporting.contribution_points import ContributionPoint
from lightning_tracin.reporting.results import Point, Results
from lightning_tracin.storage.records import RunRecord


class ScalarSink:
    """Logs the curves' values through `log_metrics` (CSV and others)."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def settings(self, record: RunRecord) -> None:
        """Nothing: what `log_hyperparams` was given by the fit stays as it is."""

    def point(self, point: Point, live: bool = False) -> None:  # noqa: ARG002 - numbers are curves at once
        """Log the curves' values at one snapshot."""
        self._logger.log_metrics(point.scalars, step=point.step)

    def finishing(self, results: Results, folder: Path) -> Sequence[Callable[[], None]]:  # noqa: ARG002 - in the run directory
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
