"""The figures of a run, as `TracInRun.plot` offers them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from lightning_tracin.analysis.resampling import NO_INTERVAL
from lightning_tracin.config import Measure
from lightning_tracin.reporting import figures
from lightning_tracin.reporting.results import Results, reliance_of
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

    def curves(self, measure: Measure = "sum", k: int | None = None) -> Figure:
        """A measure at each snapshot, a panel for each probe language, by the fit's similarity and weighting.

        Args:
            measure: `"sum"` or `"mean"` of influence with its sign, `"share"` of the strongest k, or `"mass"`, the share of all
                positive influence.
            k: how many of each probe's strongest train samples to count, for shares. None: as in the fit.

        Raises:
            TracInError: the run has no influence or no such measure, or `k` is out of range.
            MissingPackageError: matplotlib is not installed.
        """
        return figures.curves(self._results(measure, k), measure=measure)

    def heat_map(self, measure: Measure = "sum") -> Figure:
        """The signed influence of each train language on each probe language in the whole run, and its contrast.

        Args:
            measure: `"sum"` or `"mean"`.

        Raises:
            TracInError: the run has no influence, or the measure has no sign.
            MissingPackageError: matplotlib is not installed.
        """
        return figures.heat_map(self._results(measure), measure)

    def lift(self, k: int | None = None) -> Figure:
        """The share of each train language in the strongest k, and its lift, in the whole run; `k` as in `curves`.

        Raises:
            TracInError: the run has no influence or language means only, or `k` is out of range.
            MissingPackageError: matplotlib is not installed.
        """
        return figures.lift(self._results("share", k))

    def _results(self, measure: Measure, k: int | None = None) -> Results:
        view = self._run.record.options.view(self._run.method.measure).but(top_k=k)
        return Results(view, reliance_of(self._run, view, measures=[measure]), pd.DataFrame())
