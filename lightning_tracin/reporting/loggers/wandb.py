"""Curves, charts, tables and files of reliance and contributions in the W&B run of the Trainer's own logger.

What is to be looked at is in one section, `tracin`: at most twelve panels, however many languages there are. The numbers behind
the charts are logged under `tracin_values/`, hidden, for searches and comparisons. Settings are in the run's configuration under
`tracin`, and the files of `results/`, as they are once influence is there, in the artifact `tracin-results`.

Nothing here passes `step=`, because W&B drops rows with a step before the fit's latest one. Every key gets its step metric by
its exact name, because a glob would conflict with the one that WandbLogger defines.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lightning_tracin.analysis.contributions import grouping_of
from lightning_tracin.errors import MissingPackageError
from lightning_tracin.reporting import figures, logged_keys
from lightning_tracin.reporting.contribution_points import ContributionPoint, final_point
from lightning_tracin.reporting.logged_keys import CONTRIBUTION_STEP, INFLUENCE, RESULTS, SHOWN, STEP, hidden, shown
from lightning_tracin.reporting.loggers.pictures import result_files
from lightning_tracin.reporting.loggers.wandb_charts import (
    MATRIX,
    MATRIX_FIELDS,
    LineChart,
    influence_lines,
    own_lines,
    shown_probes,
    whole_run,
)
from lightning_tracin.reporting.results import Point, Results
from lightning_tracin.storage.records import RunRecord

if TYPE_CHECKING:
    import wandb
    from matplotlib.figure import Figure


class WandbSink:
    """Logs to a W&B run.

    Args:
        run: the run, as `WandbLogger.experiment` gives it.
    """

    def __init__(self, run: Any) -> None:
        self._run: wandb.Run = run
        self._defined: set[str] = set()
        self._points: list[Point] = []
        self._probes: list[str] = []  # with a chart: the same ones throughout, because every key keeps its panel
        self._drawn = 0

    def settings(self, record: RunRecord) -> None:
        """Put the callback's options, the digests of the data and the versions into the run's configuration."""
        said = record.model_dump(mode="json", include={"run", "options", "loss", "train", "probes", "versions"})
        sizes = {"scored_parameters": record.parameters, "scored_elements": record.elements}
        self._configure({**said.pop("options"), **said, **sizes})

    def point(self, point: Point, live: bool = False) -> None:
        """Log the curves' values at one snapshot, and draw the charts again."""
        self._log(point.scalars, STEP, point.step, point.keys)
        if live:
            self._points.append(point)
            if len(self._points) > 1.1 * self._drawn:  # each chart is a file of its own
                self._drawn = len(self._points)
                self._charts(self._points)

    def window(self, point: ContributionPoint) -> None:
        """Log the contributions up to the end of a window."""
        self._log(point.scalars, CONTRIBUTION_STEP, point.step, point.keys)

    def _log(self, values: Mapping[str, float], metric: str, step: int, keys: Mapping[str, str]) -> None:
        """Log values beside their step; what each key means goes into the configuration, for readers of the curves."""
        names, known = {key: name for name, key in keys.items()}, dict(self._configured().get("languages", {}))
        if not names.items() <= known.items():
            self._configure({"languages": known | names})
        numbers = {_hidden(name): value for name, value in values.items()}
        self._define([metric], step_metric=None)
        self._define(numbers, step_metric=metric)
        self._run.log({metric: step, **numbers})

    def _configured(self) -> dict[str, Any]:
        """What is in the configuration already; the callbacks of a fit have a sink each."""
        return dict(self._run.config.get(SHOWN) or {})  # type: ignore[no-untyped-call]

    def _configure(self, values: Mapping[str, Any]) -> None:
        self._run.config.update({SHOWN: {**self._configured(), **values}}, allow_val_change=True)  # type: ignore[no-untyped-call]

    def _define(self, names: Iterable[str], step_metric: str | None) -> None:
        """Hide values. The summary has those of the whole run: of one snapshot alone, the last ones are kept out of it."""
        summary = "none" if step_metric in (None, STEP) else None
        for name in names:
            if name not in self._defined:
                self._run.define_metric(name, step_metric=step_metric, hidden=True, summary=summary)
                self._defined.add(name)

    def finishing(self, results: Results, folder: Path) -> Sequence[Callable[[], None]]:
        """What logs the charts, the tables, the heat maps, the final values and the files."""
        logs = (self._whole_run, self._top, self._layers, self._heat_maps, self._final)
        return (
            partial(self._charts, results.points(), results.final()),
            *(partial(log, results) for log in logs),
            partial(self._files, folder),
        )

    def finishing_contributions(self, table: pd.DataFrame) -> Sequence[Callable[[], None]]:
        """What logs the long table, a picture for each probe group, and the values of the whole fit."""
        final = final_point(table)
        return (
            partial(self._contribution_table, table),
            partial(self._stacked, table),
            partial(self._summarise, final.scalars),
        )

    def _contribution_table(self, table: pd.DataFrame) -> None:
        import wandb

        last = table[table["window"] == table["window"].max()] if len(table) > wandb.Table.MAX_ROWS else table
        self._table(shown(logged_keys.CONTRIBUTION_TABLE), last.head(wandb.Table.MAX_ROWS))

    def _stacked(self, table: pd.DataFrame) -> None:
        probe, _ = grouping_of(table)
        with suppress(MissingPackageError):  # `write_contributions` warns
            drawn = {name: figures.contributions(table, name) for name in sorted(table[probe].unique())}
            self._pictures(shown(logged_keys.CONTRIBUTIONS), drawn)

    def _whole_run(self, results: Results) -> None:
        import wandb

        self._table(shown(logged_keys.RELIANCE_TABLE), whole_run(results.final(), wandb.Table.MAX_ROWS))

    def _top(self, results: Results) -> None:
        import wandb

        top = results.top.astype({"label": "string", "probe_label": "string"})
        self._table(shown(logged_keys.TOP), top.head(wandb.Table.MAX_ROWS))

    def _layers(self, results: Results) -> None:
        if results.layers is not None:
            self._define([logged_keys.LAYERS], step_metric=None)
            self._table(logged_keys.LAYERS, results.layers)

    def _table(self, name: str, table: pd.DataFrame) -> None:
        import wandb

        self._run.log({name: wandb.Table(dataframe=table)})

    def _charts(self, points: Sequence[Point], final: Point | None = None) -> None:
        final = points[-1] if final is None else final
        self._probes = self._probes or shown_probes(final)
        keys, own = final.keys, own_lines(points)
        charts = {shown(INFLUENCE, keys[name]): influence_lines(points, name) for name in self._probes}
        charts |= {} if own is None else {shown(logged_keys.OWN_LANGUAGE): own}
        self._run.log({name: _line_chart(lines) for name, lines in charts.items()})

    def _heat_maps(self, results: Results) -> None:
        self._run.log({shown(logged_keys.LANGUAGES): _cells(results.final())})
        with suppress(MissingPackageError):  # without matplotlib, only this picture is skipped; `write_results` warns
            self._pictures(shown(logged_keys.HEAT_MAP), {"influence and contrast": figures.heat_map(results)})

    def _pictures(self, name: str, drawn: Mapping[str, Figure]) -> None:
        import wandb
        from PIL import Image  # comes with matplotlib

        images = [wandb.Image(Image.open(io.BytesIO(figures.png(one))), caption=title) for title, one in drawn.items()]
        self._run.log({name: images})

    def _final(self, results: Results) -> None:
        self._summarise(results.final().scalars)

    def _summarise(self, final: Mapping[str, float]) -> None:
        self._run.summary.update({_hidden(name): value for name, value in final.items()})

    def _files(self, folder: Path) -> None:
        import wandb

        artifact = wandb.Artifact(RESULTS, type=RESULTS)
        for name, content in result_files(folder):
            with artifact.new_file(name, mode="wb") as file:
                file.write(content)
        self._run.log_artifact(artifact)


def _hidden(name: str) -> str:
    """The key of a value: `tracin/influence/de/en` becomes `tracin_values/influence/de/en`."""
    return hidden(name.removeprefix(f"{SHOWN}/"))


def _line_chart(lines: LineChart) -> Any:
    import wandb

    return wandb.plot.line_series(
        xs=lines.steps, ys=list(lines.values.values()), keys=list(lines.values), title=lines.title, xname="optimizer step"
    )


def _cells(final: Point) -> Any:
    """The influence of each train language on each probe language, as W&B's chart of a matrix."""
    import wandb

    table = final.tables["sum"][["probe_language", "train_language", "value"]]
    return wandb.plot_table(
        MATRIX,
        wandb.Table(dataframe=table.head(wandb.Table.MAX_ROWS)),
        MATRIX_FIELDS,
        {"title": f"Influence on probe languages (rows) of train languages (columns), {final.tables['sum']['unit'].iloc[0]}"},
    )
