"""Saves a dashboard in W&B, through the login of `wandb`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from lightning_tracin.errors import TracInError, needs, one_line
from lightning_tracin.reporting.dashboard import dashboard
from lightning_tracin.reporting.logged_keys import CONTRIBUTION, INFLUENCE, SHOWN, hidden

if TYPE_CHECKING:
    import wandb


def save_dashboard(entity: str, project: str, run: str | None = None, languages: Collection[str] = ()) -> tuple[str, str]:
    """Save the workspace and the report of a project, new ones each time.

    Args:
        entity: see `dashboard`.
        project: see `dashboard`.
        run: see `dashboard`.
        languages: see `dashboard`. Empty: the probe languages of the run, if one is given.

    Returns:
        The addresses of the workspace and of the report.

    Raises:
        MissingPackageError: `wandb-workspaces` is not installed.
        TracInError: nobody is logged in, W&B does not answer, or there is no such project or run.
    """
    needs("wandb_workspaces", "dashboard", "Dashboards")
    from wandb.errors import CommError, UsageError

    api = _logged_in()
    try:
        _require_project(api, entity, project)
        known = languages or (() if run is None else _languages_of(api, entity, project, run))
        made = dashboard(entity, project, run, known)
        for runs in made.runsets:
            runs.entity, runs.project = entity, project  # W&B is asked for the project's number when they are saved
        workspace, report = made.workspace.save(), made.report.save()
    except (CommError, UsageError) as error:
        raise _refused(error) from error
    return str(workspace.url), str(report.url)


def _logged_in() -> wandb.Api:
    import wandb
    from wandb.errors import CommError, UsageError

    try:
        return wandb.Api()
    except UsageError as error:
        raise TracInError(
            "Nobody is logged in to W&B; run `wandb login` first, or give `--spec FOLDER` to write the dashboard to files."
        ) from error
    except CommError as error:
        raise _refused(error) from error


def _refused(error: Exception) -> TracInError:
    return TracInError(
        f"W&B refused or did not answer ({one_line(str(error)).rstrip('.')}); check `wandb login` and WANDB_BASE_URL, or give "
        "`--spec FOLDER` to write the dashboard to files."
    )


def _require_project(api: wandb.Api, entity: str, project: str) -> None:
    try:
        _ = api.project(project, entity).id
    except ValueError as error:
        if error.__cause__ is not None:  # the request itself failed
            raise _refused(error) from error
        raise TracInError(
            f"W&B has no project {entity}/{project} that your login may see; give `--entity` and `--project` as they are in its "
            "address, https://wandb.ai/ENTITY/PROJECT."
        ) from error


def _languages_of(api: wandb.Api, entity: str, project: str, run: str) -> list[str]:
    from wandb.apis.public.runs import RunNotFoundError
    from wandb.errors import CommError

    try:
        found = api.run(f"{entity}/{project}/{run}")
    except CommError as error:
        if not isinstance(error.exc, RunNotFoundError):
            raise
        raise TracInError(
            f"{entity}/{project} has no run with the id {run}; give `--run` as it is in the run's address, which may differ from "
            "its name."
        ) from error
    if SHOWN not in found.config:
        raise TracInError(
            f"The run {run} has nothing of TracIn; give one that was logged by a WandbLogger in a fit with a TracInCallback or a "
            "ContributionCallback."
        )
    return probe_languages(found.config[SHOWN], found.summary_metrics)


def probe_languages(settings: Mapping[str, Any], summary: Mapping[str, Any]) -> list[str]:
    """The probe languages of a run, by their names; while the fit goes on, the train languages too.

    Args:
        settings: what the sink put into the run's configuration.
        summary: the run's.

    Example:
        >>> settings = {"languages": {"de": "de", "zh_Hans": "zh-Hans", "en": "en"}}
        >>> probe_languages(settings, {"tracin_values/influence/zh_Hans/en": 0.5})
        ['zh-Hans']
        >>> probe_languages(settings, {})
        ['de', 'en', 'zh-Hans']
    """
    names = dict(settings.get("languages", {}))
    starts = tuple(f"{hidden(curve)}/" for curve in (INFLUENCE, CONTRIBUTION))
    probed = {key.split("/")[2] for key in summary if key.startswith(starts)}
    return sorted(str(name) for key, name in names.items() if key in probed or not probed & names.keys())
