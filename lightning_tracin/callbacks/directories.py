"""What both callbacks do when a fit is set up: where they write if they are not told, their place, and when they do nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer

from lightning_tracin.storage.filesystem import place


def placed_first(callback: Any, trainer: Trainer) -> list[Any]:
    """Move a callback before all others, so that its hooks see the trained weights; the others, in order.

    What others put in the place of the trained weights (an average, say) is seen by nobody before them.
    """
    fitting: Any = trainer  # `callbacks` is not declared
    others = [other for other in fitting.callbacks if other is not callback]
    fitting.callbacks = [callback, *others]
    return others


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
