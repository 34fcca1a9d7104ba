"""Logging a study to W&B: the curves of its first run, every table and figure, and the findings."""

from __future__ import annotations

from pathlib import Path

import wandb
from pytorch_lightning.loggers import WandbLogger

from lightning_tracin.reporting.loggers import sinks_for
from lightning_tracin.reporting.results import analyse, point
from lightning_tracin.studies.runner import Outcome


def log_to_wandb(outcome: Outcome, project: str = "lightning-tracin") -> Path:
    """Log a study to a new W&B run, and return the run's folder; call `write_page` first."""
    offline = outcome.settings.wandb_mode == "offline"
    logger = WandbLogger(
        project=project,
        name=outcome.settings.name,
        save_dir=outcome.folder,
        offline=offline,
        settings=wandb.Settings(silent=offline),
    )
    run = logger.experiment
    (sink,) = sinks_for([logger])
    for snapshot in outcome.run.snapshots:
        sink.point(point(outcome.run, snapshot.index, outcome.view))
    sink.settings(outcome.run.record)
    for log in sink.finishing(analyse(outcome.run, outcome.view), outcome.folder / "results"):
        log()
    for section in outcome.sections:
        key = f"study/{section.name}"
        for name, table in section.tables.items():
            known = table.astype(object).where(table.notna(), None)
            run.log({f"{key}/{name}": wandb.Table(dataframe=known)})
        for name in section.figures:
            picture = outcome.folder / "results" / f"{section.name}-{name}.png"
            run.log({f"{key}/{name}_figure": wandb.Image(str(picture))})
        run.summary[f"{key}/findings"] = "\n".join(section.findings)
    folder = Path(run.dir).parent
    wandb.finish()
    return folder
