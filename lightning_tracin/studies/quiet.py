"""Silence the libraries that a study uses, because a study shows its own progress."""

from __future__ import annotations

import logging
import multiprocessing
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import datasets
import pytorch_lightning as pl
import transformers

_LOGGERS = ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "transformers")


@contextmanager
def quietly() -> Iterator[None]:
    """Silence the libraries in this context, and restore their output afterwards."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    bars = datasets.are_progress_bars_disabled(), transformers.utils.logging.is_progress_bar_enabled()
    with warnings.catch_warnings():
        silence()
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            if not bars[0]:
                datasets.enable_progress_bars()
            if bars[1]:
                transformers.utils.logging.enable_progress_bar()


def silence() -> None:
    """Silence the libraries for the rest of this process."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")


def quiet_trainer(**options: Any) -> pl.Trainer:
    """A Trainer on one device without output of its own; a study runs several fits in separate processes."""
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(**{"devices": 1, **silent, **options})


def silence_own_process() -> None:
    """Call `silence` in a worker process; do nothing in the user's own process."""
    if multiprocessing.parent_process() is not None:
        silence()
