"""What the sinks of loggers with pictures, tables or files have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from lightning_tracin.analysis.contributions import grouping_of, whole_fit
from lightning_tracin.errors import MissingPackageError
from lightning_tracin.reporting import figures, logged_keys
from lightning_tracin.reporting.contribution_summary import wide
from lightning_tracin.reporting.language_keys import language_keys
from lightning_tracin.reporting.logged_keys import shown
from lightning_tracin.reporting.loggers.scalars import ScalarSink
from lightning_tracin.reporting.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class PictureSink(ScalarSink, ABC):
    """Logs the curves' values as `ScalarSink` does, and when the fit has ended figures, tables and files."""

    def finishing(self, results: Results, folder: Path) -> Sequence[Callable[[], None]]:
        """What logs each figure, the tables and the files."""
        step = results.final().step
        names = [logged_keys.HEAT_MAP, logged_keys.CURVES, *([logged_keys.LIFT] if "share" in results.final().tables else [])]
        return (
            *(partial(self._drawn, shown(name), partial(_figure, name, results), step) for name in names),
            partial(self._tables, results, step),
            partial(self._files, folder),
            self._save,
        )

    def finishing_contributions(self, table: pd.DataFrame) -> Sequence[Callable[[], None]]:
        """What logs a figure for each probe group, and the table of the whole fit."""
        probe, _ = grouping_of(table)
        step = int(table["step"].max())
        keys = language_keys(list(table[probe].unique()))
        return (
            *(
                partial(self._drawn, shown(logged_keys.CONTRIBUTIONS, key), partial(_contributions, table, name), step)
                for name, key in sorted(keys.items())
            ),
            partial(self._table, shown(logged_keys.CONTRIBUTION_TABLE), wide(whole_fit(table)), step),
            self._save,
        )

    def _drawn(self, key: str, draw: Callable[[], Figure], step: int) -> None:
        with suppress(MissingPackageError):  # without matplotlib, only figures are skipped; the one that writes results warns
            figure = draw()
            from lightning_tracin.reporting.figures.fallback_fonts import one_warning_for_letters

            with one_warning_for_letters():
                self._picture(key, figure, step)

    def _tables(self, results: Results, step: int) -> None:
        self._table(shown(logged_keys.RELIANCE_TABLE), influence_table(results), step)
        self._table(shown(logged_keys.TOP), results.top, step)

    @abstractmethod
    def _picture(self, key: str, figure: Figure, step: int) -> None:
        """Log a figure."""

    @abstractmethod
    def _table(self, key: str, table: pd.DataFrame, step: int) -> None:
        """Log a table."""

    def _files(self, folder: Path) -> None:
        """Log the files of the results, where the logger has a place for them."""


def _figure(name: str, results: Results) -> Figure:
    drawn: Figure = getattr(figures, name)(results)
    return drawn


def _contributions(table: pd.DataFrame, probe: str) -> Figure:
    return figures.contributions(table, probe)


def influence_table(results: Results) -> pd.DataFrame:
    """Influence over the whole run: a row for each probe language, a column for each train language.

    Example:
        >>> from lightning_tracin.config import View
        >>> rows = [("sum", True, "de", "de", 2.0), ("sum", True, "de", "en", 0.5)]
        >>> table = pd.DataFrame(rows, columns=["measure", "cumulative", "probe_language", "train_language", "value"])
        >>> table = table.assign(sign="positive", snapshot=0, epoch=1, step=10)
        >>> influence_table(Results(View(), table, pd.DataFrame())).to_dict("records")
        [{'probe_language': 'de', 'de': 2.0, 'en': 0.5}]
    """
    table = results.final().tables["sum"]
    grid: pd.DataFrame = table.pivot(index="probe_language", columns="train_language", values="value")
    named: pd.DataFrame = grid.rename_axis(columns=None).reset_index()
    return named


def result_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files in `results/`, but for arrays, in alphabetical order."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file() and path.suffix != ".safetensors":
            yield path.name, path.read_bytes()
