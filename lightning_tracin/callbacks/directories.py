"""Where a callback writes if it is not told, and fits in which it does nothing."""

from __future__ import annotations

from pathlib import Path

from pytorch_lightning import Trainer

from lightning_tracin.storage.filesystem import place


def skipped(trainer: Trainer) -> bool:
    """Whether a fit is too short, or too bare, for the callbacks."""
    return bool(getattr(trainer, "fast_dev_run", False)) or trainer.barebones


def default_directory(trainer: Trainer, number: int) -> Path:
    """The folder `tracin` (`tracin-2`, ... for further callbacks) next to the first logger's files, or in `default_root_dir`."""
    name = "tracin" if number == 1 else f"tracin-{number}"
    if not trainer.loggers:
        return place(trainer.default_root_dir) / name
    logger = trainer.loggers[0]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return place(logger.save_dir or trainer.default_root_dir) / str(logger.name) / version / name
