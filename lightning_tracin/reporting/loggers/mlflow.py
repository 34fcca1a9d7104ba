"""The sink for MLflow: figures, tables and files are artifacts of the run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from lightning_tracin.reporting.logged_keys import RESULTS
from lightning_tracin.reporting.loggers.pictures import PictureSink, result_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class MlflowSink(PictureSink):
    """Logs to the run of an `MLFlowLogger`.

    Args:
        logger: the logger.
    """

    def _picture(self, key: str, figure: Figure, step: int) -> None:  # noqa: ARG002 - an artifact has no step
        self._logger.experiment.log_figure(self._logger.run_id, figure, f"{key}.png")

    def _table(self, key: str, table: pd.DataFrame, step: int) -> None:  # noqa: ARG002 - see `_picture`
        self._logger.experiment.log_table(self._logger.run_id, table, f"{key}.json")

    def _files(self, folder: Path) -> None:
        with tempfile.TemporaryDirectory() as copied:  # the results may be on a file system that MLflow cannot read
            for name, content in result_files(folder):
                (Path(copied) / name).write_bytes(content)
            self._logger.experiment.log_artifacts(self._logger.run_id, copied, RESULTS)
