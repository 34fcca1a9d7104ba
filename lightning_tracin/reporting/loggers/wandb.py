"""Curves, tables and charts of reliance and contributions in the W&B run of the Trainer's own logger.

Nothing here passes `step=`, because W&B drops rows with a step before the fit's latest one. Every key gets its step metric by
its exact name, because a glob would conflict with the one that WandbLogger defines.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from lightning_tracin.analysis.contributions import grouping_of
from lightning_tracin.errors import MissingPackageError
from lightning_tracin.reporting import figures
from lightning_tracin.reporting.contribution_points import ContributionPoint, final_point
from lightning_tracin.reporting.results import Point, Results

if TYPE_CHECKING:
    import wandb
    from matplotlib.figure import Figure

STEP, CONTRIBUTION_STEP = "tracin/checkpoint_step", "tracin/contribution_step"


class WandbSink:
    """Logs to a W&B run.

    Args:
        run: the run, as `WandbLogger.experiment` gives it.
    """

    def __init__(self, run: Any) -> None:
        self._run: wandb.Run = run
        self._defined: set[str] = set()
        self._named: dict[str, str] = {}

    def point(self, point: Point) -> None:
        """Log the curves' values at one snapshot."""
        self._log(point.scalars, STEP, point.step, point.keys)

    def window(self, point: ContributionPoint) -> None:
        """Log the contributions up to the end of a window."""
        self._log(point.scalars, CONTRIBUTION_STEP, point.step, point.keys)

    def _log(self, values: Mapping[str, float], metric: str, step: int, keys: Mapping[str, str]) -> None:
        """Log values beside their step; what each key means goes into the configuration, for readers of the curves."""
        names = {key: name for name, key in keys.items()}
        if not names.items() <= self._named.items():
            self._named |= names
            self._run.config.update({"tracin_languages": self._named}, allow_val_change=True)  # type: ignore[no-untyped-call]
        self._define([metric], step_metric=None)
        self._define(values, step_metric=metric)
        self._run.log({metric: step, **values})

    def _define(self, names: Iterable[str], step_metric: str | None) -> None:
        for name in names:
            if name not in self._defined:
                self._run.define_metric(name, step_metric=step_metric)
                self._defined.add(name)

    def finishing(self, results: Results) -> Sequence[Callable[[], None]]:
        """What logs the long table, the top samples, the charts, the heat map and the final values."""
        languages = sorted(set(results.reliance["probe_language"]))
        charts = (partial(self._chart, results, language) for language in languages)
        tables, others = (self._tables, self._top), (self._heat_map, self._final)
        return (*(partial(log, results) for log in tables), *charts, *(partial(log, results) for log in others))

    def finishing_contributions(self, table: pd.DataFrame) -> Sequence[Callable[[], None]]:
        """What logs the long table, a chart for each probe group, and the values of the whole fit."""
        final = final_point(table)
        keys = final.keys
        probe, _ = grouping_of(table)
        charts = (partial(self._stacked, table, name, keys[name]) for name in sorted(table[probe].unique()))
        return (
            partial(self._table, "tracin/contribution_table", table),
            *charts,
            partial(self._summarise, final.scalars),
        )

    def _stacked(self, table: pd.DataFrame, probe: str, key: str) -> None:
        with suppress(MissingPackageError):  # `write_contributions` warns
            self._picture(f"tracin/contributions/{key}", figures.contributions(table, probe))

    def _tables(self, results: Results) -> None:
        self._table("tracin/reliance_table", results.reliance)

    def _table(self, name: str, table: pd.DataFrame) -> None:
        import wandb

        wandb.Table.MAX_ROWS = max(wandb.Table.MAX_ROWS, len(table))  # W&B drops further rows
        self._run.log({name: wandb.Table(dataframe=table)})

    def _top(self, results: Results) -> None:
        import wandb

        self._run.log({"tracin/top": wandb.Table(dataframe=results.top.astype({"label": "string", "probe_label": "string"}))})

    def _chart(self, results: Results, language: str) -> None:
        key = results.final().keys[language]
        self._run.log({f"tracin/curves/{key}": _line_chart(results, language)})

    def _heat_map(self, results: Results) -> None:
        with suppress(MissingPackageError):  # without matplotlib, only this chart is skipped; `write_results` warns
            self._picture("tracin/heat_map", figures.heat_map(results))

    def _picture(self, name: str, figure: Figure) -> None:
        import wandb
        from PIL import Image  # comes with matplotlib

        self._run.log({name: wandb.Image(Image.open(io.BytesIO(figures.png(figure))))})

    def _final(self, results: Results) -> None:
        self._summarise(results.final().scalars)

    def _summarise(self, final: Mapping[str, float]) -> None:
        self._run.summary.update({name.replace("tracin/", "tracin/final/", 1): value for name, value in final.items()})


def _line_chart(results: Results, language: str) -> Any:
    """Line chart of a probe language: influence by step, one line for each train language."""
    import wandb

    table = pd.concat([point.tables["sum"] for point in results.points()])
    lines = table[table["probe_language"] == language].pivot(index="step", columns="train_language", values="value")
    return wandb.plot.line_series(
        xs=lines.index.tolist(),
        ys=[lines[name].tolist() for name in lines],
        keys=[str(name) for name in lines],
        title=f"{language}: influence of each train language ({table['unit'].iloc[0]})",
        xname="optimizer step",
    )
