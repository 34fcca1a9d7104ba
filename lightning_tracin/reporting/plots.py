"""The figures of a run, as `TracInRun.plot` offers them."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import pandas as pd

from lightning_tracin.analysis.resampling import NO_INTERVAL
from lightning_tracin.config import Measure, Sign, View
from lightning_tracin.reporting import figures
from lightning_tracin.reporting.results import Results, reliance_of
from lightning_tracin.run import TracInRun

if TYPE_CHECKING:
    from lightning_tracin.reporting.figures.paper_figure import PaperFigure

#: Width of a column of a paper of ACL's or of NeurIPS's with two figures side by side, in inches; 7 is a whole page.
COLUMN = 3.3


class Plots:
    """Draws figures of a run to put in a paper; each is a matplotlib figure.

    Figures have no title: `figure.caption` says what a caption should. `figure.savefig("x.pdf")` and `("x.svg")` keep text as
    text. Languages are shown by their names, related ones side by side. `width` is in inches: 3.3 is a column, 7 a page, and None
    makes a wide figure with a title, for a screen.

    Args:
        run: the run.

    Example:
        Skipped: needs a run directory.

        >>> TracInRun.open("runs/xnli").plot.heat_map().savefig("influence.pdf")  # doctest: +SKIP
    """

    def __init__(self, run: TracInRun) -> None:
        self._run = run

    def contributions(self, probe: str | None = None, width: float | None = COLUMN) -> PaperFigure:
        """The measured loss of a probe language, split by what lowered it.

        Args:
            probe: the probe language (or other group of the account). None: all, a panel each.
            width: see the class.

        Raises:
            TracInError: the run has no contributions, there is no such probe language, or the width is out of range.
            MissingPackageError: matplotlib is not installed.
        """
        return figures.contributions(self._run.contributions(cumulative=True, interval=NO_INTERVAL), probe, width=width)

    def curves(self, measure: Measure = "sum", k: int | None = None, width: float | None = COLUMN) -> PaperFigure:
        """A measure at each snapshot, a panel for each probe language, by the fit's similarity and weighting.

        Of more than nine train languages, the eight with the largest values at the end have lines, beside each panel's own.

        Args:
            measure: `"sum"` or `"mean"` of influence with its sign, `"share"` of the strongest k, or `"mass"`, the share of all
                positive influence.
            k: how many of each probe's strongest train samples to count, for shares. None: as in the fit.
            width: see the class.

        Raises:
            TracInError: the run has no influence or no such measure, or `k` or the width is out of range.
            MissingPackageError: matplotlib is not installed.
        """
        return figures.curves(self._results(measure, k), measure=measure, width=width)

    def heat_map(self, measure: Measure = "sum", width: float | None = COLUMN) -> PaperFigure:
        """The signed influence of each train language on each probe language in the whole run, and its contrast.

        Args:
            measure: `"sum"` or `"mean"`.
            width: see the class.

        Raises:
            TracInError: the run has no influence, the measure has no sign, or the width is out of range.
            MissingPackageError: matplotlib is not installed.
        """
        return figures.heat_map(self._results(measure), measure, width)

    def layers(self, measure: Measure = "sum", k: int | None = None, width: float | None = COLUMN) -> PaperFigure:
        """A measure in the whole run by layer, from the embeddings to the head, a panel for each probe language.

        Args:
            measure: see `curves`.
            k: see `curves`.
            width: see the class.

        Raises:
            TracInError: the run has no influence by layer or no such measure, or `k` or the width is out of range.
            MissingPackageError: matplotlib is not installed.
        """
        view, last = self._view(k), len(self._run.snapshots) - 1
        table = self._run.reliance(
            view.top_k,
            cumulative=True,
            measure=measure,
            similarity=view.similarity,
            weighting=view.weighting,
            snapshots=[last],
            by="layer",
        )
        return figures.layers(table, view, measure, width=width)

    def lift(self, k: int | None = None, width: float | None = COLUMN) -> PaperFigure:
        """The share of each train language in the strongest k, and its lift, in the whole run; `k` as in `curves`.

        Raises:
            TracInError: the run has no influence or language means only, or `k` or the width is out of range.
            MissingPackageError: matplotlib is not installed.
        """
        return figures.lift(self._results("share", k), width)

    def top(self, probe: int, k: int = 5, width: float | None = COLUMN) -> PaperFigure:
        """The strongest proponents and opponents of a probe, with their texts, by the fit's similarity and weighting.

        Args:
            probe: index of the probe.
            k: number of proponents, and of opponents.
            width: see the class.

        Raises:
            TracInError: there is no such probe, or `k` or the width is out of range.
            MissingPackageError: matplotlib is not installed.
        """
        view, signs = self._view(None), get_args(Sign)
        tables = [self._strongest(probe, k, sign, view) for sign in signs]
        return figures.top_samples(pd.concat(tables, ignore_index=True), f"influence ({view.similarity})", width)

    def _strongest(self, probe: int, k: int, sign: Sign, view: View) -> pd.DataFrame:
        table = self._run.top(probe, k, sign, view.similarity, view.weighting)
        facts = self._run.queries.take([probe])
        found: pd.DataFrame = table.assign(
            probe=probe,
            probe_language=facts.language[0],
            probe_label=facts.label[0],
            probe_text=facts.text[0],
            probe_item=facts.item[0],
            sign=sign,
            rank=range(1, len(table) + 1),
        )
        kept: pd.DataFrame = found[found["score"] > 0 if sign == "positive" else found["score"] < 0]
        return kept

    def _view(self, k: int | None) -> View:
        return self._run.record.options.view(self._run.method.measure).but(top_k=k)

    def _results(self, measure: Measure, k: int | None = None) -> Results:
        view = self._view(k)
        return Results(view, reliance_of(self._run, view, measures=[measure]), pd.DataFrame())
