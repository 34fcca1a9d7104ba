"""The sink for Comet: figures, tables and files are assets of the experiment."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from lightning_tracin.reporting.logged_keys import RESULTS
from lightning_tracin.reporting.loggers.pictures import PictureSink, result_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class CometSink(PictureSink):
    """Logs to the experiment of a `CometLogger`.

    Args:
        logger: the logger.
    """

    def _picture(self, key: str, figure: Figure, step: int) -> None:
        self._logger.experiment.log_figure(key, figure, step=step)

    def _table(self, key: str, table: pd.DataFrame, step: int) -> None:  # noqa: ARG002 - a table has no step
        self._logger.experiment.log_table(f"{key}.csv", table, index=False)

    def _files(self, folder: Path) -> None:
        for name, content in result_files(folder):  # as streams, because files are uploaded later
            self._logger.experiment.log_asset(io.BytesIO(content), file_name=f"{RESULTS}/{name}")
