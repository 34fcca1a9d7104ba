"""A W&B workspace and a W&B report of the keys that the sink logs: built from objects of `wandb-workspaces`, nothing is sent.

Curves are chosen by regular expressions, so that they are there whatever languages a run has. If the languages are known, each
probe language has a panel of its own.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from lightning_tracin.errors import TracInError, needs
from lightning_tracin.reporting import logged_keys as keys
from lightning_tracin.reporting.language_keys import language_keys
from lightning_tracin.reporting.logged_keys import hidden, shown
from lightning_tracin.reporting.loggers.wandb_charts import MATRIX, MATRIX_FIELDS

#: The options that runs are compared by, as they are in a run's configuration.
COMPARED = ("similarity", "weighting", "preconditioner", "loss_unit", "top_k")

#: The chart of `wandb.plot.line_series`, and the columns of its table.
_LINES, _LINE_FIELDS = "wandb/lineseries/v0", {name: name for name in ("step", "lineKey", "lineVal")}
_BARS = "wandb/bar/v0"

#: Of a report's grid, which has 24 columns.
_HALF, _WHOLE, _HIGH = 12, 24, 10


@dataclass(frozen=True)
class Dashboard:
    """A workspace and a report that are not saved yet.

    Attributes:
        workspace: a `wandb_workspaces.workspaces.Workspace`.
        report: a `wandb_workspaces.reports.v2.Report`.
    """

    workspace: Any
    report: Any

    @property
    def runsets(self) -> list[Any]:
        """The sets of runs in the report."""
        return [runs for block in self.report.blocks for runs in getattr(block, "runsets", ())]

    def specs(self) -> dict[str, dict[str, Any]]:
        """What W&B would be sent, as plain values: `workspace` and `report`."""
        view, report = self.workspace._to_model(), self.report._to_model()  # the package offers no public way without sending
        return {
            "workspace": _spec(view.entity, view.project, view.display_name, view.spec),
            "report": _spec(report.project.entity_name, report.project.name, report.display_name, report.spec),
        }


@dataclass(frozen=True)
class _Part:
    """A section of the workspace, and a heading with a grid of panels in the report."""

    name: str
    text: str
    panels: list[Any]
    of_every_run: bool = False

    @property
    def id(self) -> str:
        return "tracin-" + self.name.lower().replace(" ", "-")


def dashboard(entity: str, project: str, run: str | None = None, languages: Collection[str] = ()) -> Dashboard:
    """Build the workspace and the report of a project.

    Args:
        entity: user or team in W&B.
        project: its project.
        run: id of a run, to which the report is restricted and which the workspace compares others with. None: all runs.
        languages: the probe languages, each of which gets panels of its own. Empty: panels with the lines of all.

    Raises:
        MissingPackageError: `wandb-workspaces` is not installed.
        TracInError: an argument is empty, or `run` is no id.

    Example:
        >>> made = dashboard("team", "xnli", languages=["de", "en"])  # doctest: +SKIP
        >>> [section.name for section in made.workspace.sections]  # doctest: +SKIP
        ['Reliance', 'Influence by probe language', 'Contributions', 'Layers', 'Top samples', 'Runs by configuration']
    """
    for name, given in (("entity", entity), ("project", project), ("run", run)):
        if given == "":
            raise TracInError(f"{name} is empty; give the one in the address of the project, https://wandb.ai/ENTITY/PROJECT.")
    if run is not None and re.search(r"""['"\\/]""", run):
        raise TracInError(f"run={run!r} is not the id of a run; give the last part of the run's address.")
    pages, views, filters = (
        needs(f"wandb_workspaces.{name}", "dashboard", "Dashboards") for name in ("reports.v2", "workspaces", "expr")
    )
    title = "TracIn" if run is None else _title(f"TracIn, run {run}")
    mine = "" if run is None else filters.And(filters.Metric("ID") == run)
    columns = [f"config:{keys.SHOWN}.value.{name}" for name in COMPARED]
    workspace = views.Workspace(
        entity=entity,
        project=project,
        name=title,
        sections=[
            views.Section(name=part.name, panels=_numbered(part), is_open=position == 0)
            for position, part in enumerate(_parts(pages, languages))
        ],
        runset_settings=views.RunsetSettings(pinned_columns=columns, baseline_run=run),
    )
    blocks: list[Any] = [pages.TableOfContents()]
    for part in _parts(pages, languages):
        runs = pages.Runset(name="Runs", filters="" if part.of_every_run else mine, pinned_columns=columns)
        runs._id = part.id
        blocks += [pages.H1(part.name), pages.P(part.text), pages.PanelGrid(runsets=[runs], panels=_numbered(part))]
    return Dashboard(workspace, pages.Report(entity=entity, project=project, title=title, blocks=blocks, width="fluid"))


def _parts(pages: Any, languages: Collection[str]) -> list[_Part]:
    """The panels of each section. They are made again for each page, because a page moves those that it gets."""
    chosen = list(language_keys(languages).items())

    def curves(title: str, step: str, *key: str) -> Any:
        return pages.LinePlot(title=title, x=step, metric_regex=_pattern(*key), title_x="optimizer step", layout=_layout(pages))

    def by_language(what: str, step: str, curve: str) -> list[Any]:
        if not chosen:
            return [curves(f"{what}, by probe and train language", step, curve, _ANY, _ANY)]
        return [curves(f"{name}: {what}", step, curve, re.escape(key), _ANY) for name, key in chosen]

    def table(key: str) -> Any:
        return pages.WeavePanelSummaryTable(table_name=key, layout=_layout(pages, _WHOLE))

    def pictures(key: str) -> Any:
        return pages.MediaBrowser(media_keys=[key], num_columns=1, layout=_layout(pages, _WHOLE))

    def chart(name: str, table_key: str, fields: dict[str, str], title: str) -> Any:
        return pages.CustomChart(
            query={"summaryTable": {"tableKey": table_key}},
            chart_name=name,
            chart_fields=fields,
            chart_strings={"title": title, **({"xname": "optimizer step"} if name == _LINES else {})},
            layout=_layout(pages),
        )

    def bars(column: str, title: str) -> Any:
        return chart(_BARS, keys.LAYERS, {"label": "layer", "value": column}, title)

    reliance = [
        chart(_LINES, f"{shown(keys.OWN_LANGUAGE)}_table", _LINE_FIELDS, "Share of a language's own samples among the strongest"),
        chart(MATRIX, f"{shown(keys.LANGUAGES)}_table", MATRIX_FIELDS, "Influence on probe languages (rows) of train languages"),
        curves("Share of other languages among the strongest", keys.STEP, keys.CROSS_LINGUAL, _ANY),
        curves("The same by chance", keys.STEP, keys.CROSS_LINGUAL_NULL, _ANY),
        pictures(shown(keys.HEAT_MAP)),
        table(shown(keys.RELIANCE_TABLE)),
    ]
    contributions = [
        *by_language("nats that each train language contributed", keys.CONTRIBUTION_STEP, keys.CONTRIBUTION),
        curves("Loss of each probe language", keys.CONTRIBUTION_STEP, keys.LOSS, _ANY),
        curves("Part of the fall that is unexplained", keys.CONTRIBUTION_STEP, keys.UNEXPLAINED_SHARE, _ANY),
        pictures(shown(keys.CONTRIBUTIONS)),
        table(shown(keys.CONTRIBUTION_TABLE)),
    ]
    return [
        _Part("Reliance", "What each probe language gets from each train language over the whole fit.", reliance),
        _Part(
            "Influence by probe language",
            "The influence of each train language at each snapshot, and how much more of the strongest samples are its own than "
            "by chance (lift).",
            [
                *by_language("influence of each train language", keys.STEP, keys.INFLUENCE),
                *by_language("lift of each train language", keys.STEP, keys.LIFT),
            ],
        ),
        _Part(
            "Contributions",
            "By how many nats the samples of each train language lowered a probe language's loss, summed up over the fit; of "
            "fits with a ContributionCallback.",
            contributions,
        ),
        _Part(
            "Layers",
            "The influence through each layer's parameters, from the embeddings to the head: mean over probe languages.",
            [
                bars(keys.OWN, "Influence of the own language, by layer"),
                bars(keys.OTHERS, "Influence of the other languages, by layer"),
                table(keys.LAYERS),
            ],
        ),
        _Part(
            "Top samples",
            "The train samples with the strongest influence on some probes, with their texts, and the files of the results.",
            [
                table(shown(keys.TOP)),
                pages.WeavePanelArtifact(artifact=keys.RESULTS, tab="files", layout=_layout(pages, _WHOLE)),
            ],
        ),
        _Part(
            "Runs by configuration",
            "How runs with other options, data or versions differ: a line for each run, and what differs in their configuration.",
            _comparison(pages),
            of_every_run=True,
        ),
    ]


def _comparison(pages: Any) -> list[Any]:
    mean = hidden(keys.CROSS_LINGUAL, keys.MEAN)
    columns = [
        *(pages.ParallelCoordinatesPlotColumn(pages.Config(f"{keys.SHOWN}.{name}"), name) for name in COMPARED),
        pages.ParallelCoordinatesPlotColumn(pages.SummaryMetric(mean), "share of other languages"),
    ]
    return [
        pages.BarPlot(title="Share of other languages among the strongest", metrics=[mean], layout=_layout(pages)),
        pages.LinePlot(title="The same at each snapshot", x=keys.STEP, y=[mean], layout=_layout(pages)),
        pages.ParallelCoordinatesPlot(title="By options", columns=columns, layout=_layout(pages, _WHOLE)),
        pages.RunComparer(diff_only="split", layout=_layout(pages, _WHOLE)),
    ]


#: Any one part of a key.
_ANY = "[^/]+"


def _pattern(*key: str) -> str:
    """The regular expression of a curve's keys.

    Example:
        >>> _pattern("influence", "de", _ANY)
        '^tracin_values/influence/de/[^/]+$'
    """
    return f"^{hidden(*key)}$"


def _layout(pages: Any, width: int = _HALF) -> Any:
    return pages.Layout(w=width, h=_HIGH)


def _title(text: str) -> str:
    """A text as W&B takes it for a title: short, and without symbols.

    Example:
        >>> _title("TracIn, run lr=0.1")
        'TracIn, run lr-0.1'
    """
    return "".join("-" if unicodedata.category(letter).startswith("S") else letter for letter in text)[:128]


def _numbered(part: _Part) -> list[Any]:
    """A section's panels, with ids that are the same each time; those that the package gives are random."""
    for number, panel in enumerate(part.panels):
        panel._id = f"{part.id}-{number}"
    return part.panels


def _spec(entity: str, project: str, name: str, spec: Any) -> dict[str, Any]:
    written = json.loads(spec.model_dump_json(by_alias=True, exclude_none=True))
    return {"entityName": entity, "projectName": project, "displayName": name, "spec": written}
