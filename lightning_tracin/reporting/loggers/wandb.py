"""Reliance curves, tables and charts in the W&B run of the Trainer's own logger.

Nothing here passes `step=`, because W&B drops rows with a step before the fit's latest one. Every key gets its step metric by
its exact name, because a glob would conflict with the one that WandbLogger defines.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from io import BytesIO
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

    def finish(self, results: Results) -> None:
        """Log the long table, the charts, the top samples and the final values."""
        import wandb
        from PIL import Image

        wandb.Table.MAX_ROWS = max(wandb.Table.MAX_ROWS, len(results.reliance))  # W&B drops further rows
        charts = _charts(results)
        with suppress(MissingPackageError):  # without matplotlib, only this chart is skipped; `write_results` warns
            charts["tracin/heat_map"] = wandb.Image(Image.open(BytesIO(figures.png(figures.heat_map(results)))))
        self._run.log(
            {
                "tracin/reliance_table": wandb.Table(dataframe=results.reliance),
                "tracin/top": wandb.Table(dataframe=results.top.astype({"label": "string", "probe_label": "string"})),
                **charts,
            }
        )
        final = results.final().scalars
        self._run.summary.update({name.replace("tracin/", "tracin/final/", 1): value for name, value in final.items()})


def _charts(results: Results) -> dict[str, Any]:
    """Key -> line chart of a probe language: share by step, one line for each train language."""
    import wandb

    table = pd.concat([point.table for point in results.points()])
    charts, key = {}, results.final().keys
    for language, mine in table.groupby("probe_language"):
        lines = mine.pivot(index="step", columns="train_language", values="share")
        charts[f"tracin/curves/{key[str(language)]}"] = wandb.plot.line_series(
            xs=lines.index.tolist(),
            ys=[lines[name].tolist() for name in lines],
            keys=[str(name) for name in lines],
            title=f"{language}: {results.view.described} by train language",
            xname="optimizer step",
        )
    return charts
