"""The figures of a run, as `TracInRun.plot` offers them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from lightning_tracin.analysis.contributions import NO_INTERVAL
from lightning_tracin.analysis.tables import stacked
from lightning_tracin.reporting import figures
from lightning_tracin.reporting.results import Results
from lightning_tracin.run import TracInRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Plots:
    """Draws figures of a run; each is a matplotlib figure, with `savefig`.

    Args:
        run: the run.

    Example:
        Skipped: needs a run directory.

        >>> TracInRun.open("runs/xnli").plot.contributions("uk").savefig("uk.svg")  # doctest: +SKIP
    """

    def __init__(self, run: TracInRun) -> None:
        self._run = run

    def contributions(self, probe: str | None = None) -> Figure:
        """The measured loss of a probe language, split by what lowered it.

        Args:
            probe: the probe language (or other group of the account). None: all, a panel each.

        Raises:
            TracInError: the run has no contributions, or there is no such probe language.
            MissingPackageError: matplotlib is not installed.
        """
        return figures.contributions(self._run.contributions(cumulative=True, interval=NO_INTERVAL), probe)

    def curves(self) -> Figure:
        """Reliance at each snapshot, a panel for each probe language; by the score of the fit, like all of reliance here.

        Raises:
            TracInError: the run has no influence.
            MissingPackageError: matplotlib is not installed.
        """
        return figures.curves(self._reliance())

    def heat_map(self) -> Figure:
        """Lift and reliance of the whole run.

        Raises:
            TracInError: the run has no influence.
            MissingPackageError: matplotlib is not installed.
        """
        return figures.heat_map(self._reliance())

    def _reliance(self) -> Results:
        run = self._run
        view = run.record.options.view(run.method.measure)
        parts = {
            ("positive", cumulative): run.reliance(
                view.top_k, "positive", cumulative, view.measure, view.similarity, view.weighting
            )
            for cumulative in (False, True)
        }
        return Results(view, stacked(parts, "sign", "cumulative"), pd.DataFrame())
