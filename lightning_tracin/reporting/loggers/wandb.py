"""Reliance curves, tables and charts in the W&B run of the Trainer's own logger.

Nothing here passes `step=`, because W&B drops rows with a step before the fit's latest one. Every key gets its step metric by
its exact name, because a glob would conflict with the one that WandbLogger defines.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from lightning_tracin.errors import MissingPackageError
from lightning_tracin.reporting import figures
from lightning_tracin.reporting.results import Point, Results

if TYPE_CHECKING:
    import wandb

STEP = "tracin/checkpoint_step"


class WandbSink:
    """Logs to a W&B run.

    Args:
        run: the run, as `WandbLogger.experiment` gives it.
    """

    def __init__(self, run: Any) -> None:
        self._run: wandb.Run = run
        self._defined: set[str] = set()

    def point(self, point: Point) -> None:
        """Log the curves' values at one snapshot."""
        values = point.scalars
        if not self._defined:  # what each key means, for readers of the curves
            names = {key: name for name, key in point.keys.items()}
            self._run.config.update({"tracin_languages": names}, allow_val_change=True)  # type: ignore[no-untyped-call]
        self._define([STEP], step_metric=None)
        self._define(values, step_metric=STEP)
        self._run.log({STEP: point.step, **values})

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

    def _tables(self, results: Results) -> None:
        import wandb

        wandb.Table.MAX_ROWS = max(wandb.Table.MAX_ROWS, len(results.reliance))  # W&B drops further rows
        self._run.log({"tracin/reliance_table": wandb.Table(dataframe=results.reliance)})

    def _top(self, results: Results) -> None:
        import wandb

        self._run.log({"tracin/top": wandb.Table(dataframe=results.top.astype({"label": "string", "probe_label": "string"}))})

    def _chart(self, results: Results, language: str) -> None:
        key = results.final().keys[language]
        self._run.log({f"tracin/curves/{key}": _line_chart(results, language)})

    def _heat_map(self, results: Results) -> None:
        import wandb

        with suppress(MissingPackageError):  # without matplotlib, only this chart is skipped; `write_results` warns
            content = figures.png(figures.heat_map(results))
            from PIL import Image  # comes with matplotlib

            self._run.log({"tracin/heat_map": wandb.Image(Image.open(io.BytesIO(content)))})

    def _final(self, results: Results) -> None:
        final = results.final().scalars
        self._run.summary.update({name.replace("tracin/", "tracin/final/", 1): value for name, value in final.items()})


def _line_chart(results: Results, language: str) -> Any:
    """Line chart of a probe language: share by step, one line for each train language."""
    import wandb

    table = pd.concat([point.table for point in results.points()])
    lines = table[table["probe_language"] == language].pivot(index="step", columns="train_language", values="share")
    return wandb.plot.line_series(
        xs=lines.index.tolist(),
        ys=[lines[name].tolist() for name in lines],
        keys=[str(name) for name in lines],
        title=f"{language}: {results.view.described} by train language",
        xname="optimizer step",
    )
