"""The sink for TensorBoard: figures among the images, tables among the texts."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import pandas as pd

from lightning_tracin.reporting.loggers.pictures import PictureSink
from lightning_tracin.reporting.markdown import markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Characters of a text shown in a table.
_WIDTH = 120


class TensorBoardSink(PictureSink):
    """Logs to the writer of a `TensorBoardLogger`.

    Args:
        logger: the logger.
    """

    def _picture(self, key: str, figure: Figure, step: int) -> None:
        self._logger.experiment.add_figure(key, figure, global_step=step)

    def _table(self, key: str, table: pd.DataFrame, step: int) -> None:
        self._logger.experiment.add_text(key, markdown_table(table.map(_short)), global_step=step)


def _short(value: Any) -> Any:
    return textwrap.shorten(value, _WIDTH, placeholder="…") if isinstance(value, str) else value
