"""The stored fits of a study: first fits, which decide the probes, and runs with influence.

These functions run in other processes, so they write their results to files and return nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from lightning_tracin.callbacks.contribution import ContributionCallback
from lightning_tracin.callbacks.tracin import TracInCallback
from lightning_tracin.storage.files import read_tensors, write_tensors
from lightning_tracin.studies.fits import FitRecipe, build, prepared
from lightning_tracin.trainer.refits import Fit, fit_on, seeded

#: Batch size for predictions and influence; how samples are batched changes no score.
_BATCH = 64
#: Optimizer steps between two looks at the probes (a fixed number, because the default goes by the time that they take), and
#: probes of a language that are looked at.
_WINDOW, _LOOKED_AT = 10, 10


@dataclass(frozen=True)
class First:
    """Results of a seed's fit on all train samples, before any influence is computed.

    Attributes:
        correct: whether it classifies each candidate correctly, [candidates].
        test: whether it classifies each test sample correctly, [test].
        train: whether it classifies each train sample correctly, [train].
        epochs: number of epochs that it ran for.
    """

    correct: np.ndarray[Any, np.dtype[np.bool_]]
    test: np.ndarray[Any, np.dtype[np.bool_]]
    train: np.ndarray[Any, np.dtype[np.bool_]]
    epochs: int


def first_fit(recipe: FitRecipe, seed: int, path: Path) -> None:
    """Fit on all train samples, and write the values of a `First` to a file."""
    with seeded(seed):
        fit = build(recipe)
        fit_on(fit, np.ones(len(fit.train.dataset), dtype=np.bool_), seed)  # type: ignore[arg-type]
        data, _ = prepared(recipe.options, recipe.extra)
        found = {
            "correct": _right(fit, fit.probes),
            "test": _right(fit, data.predict_dataloader()),
            "train": _right(fit, DataLoader(fit.train.dataset, batch_size=_BATCH, collate_fn=fit.train.collate_fn)),
            "epochs": torch.tensor(fit.trainer.current_epoch),
        }
    write_tensors(path, found)


def read_first(path: Path) -> First:
    """Read what `first_fit` wrote.

    Raises:
        TracInError: the file is missing or damaged.
    """
    stored = read_tensors(path)
    parts = {name: stored[name].numpy() for name in ("correct", "test", "train")}
    return First(**parts, epochs=int(stored["epochs"]))


def _right(fit: Fit, loader: DataLoader[Any]) -> torch.Tensor:
    predicted = torch.cat(fit.trainer.predict(fit.module, loader))  # type: ignore[arg-type]
    labels = loader.dataset.with_format(None)["label"][:]  # type: ignore[attr-defined]
    return predicted.cpu() == torch.tensor(labels)


def influence_run(
    recipe: FitRecipe, seed: int, runs: Mapping[Path, dict[str, Any]], top_k: int, account: Path | None = None
) -> None:
    """Fit once with a callback for each run. A run is complete once its marker file exists.

    The files of an interrupted fit are deleted first.

    Args:
        recipe: recipe of the fit.
        seed: seed of the first weights and of the order of samples.
        runs: run directory -> additional arguments of its `TracInCallback`.
        top_k: number of strongest train samples that a run's own results use.
        account: directory of the fit's contributions, one of the runs'; None leaves them out.
    """
    for path in runs:
        shutil.rmtree(path, ignore_errors=True)
    with seeded(seed):
        fit = build(recipe)
        every: dict[str, Any] = {
            "probes": fit.probes,
            "item_column": "item",
            "batch_size": _BATCH,
            "max_probes_per_language": None,
        }
        ours: dict[str, Any] = {**every, "top_k": top_k, "report": False}  # the study has a page of its own
        callbacks: list[Any] = [TracInCallback(path, **ours, **callback) for path, callback in runs.items()]
        if account is not None:
            callbacks.append(ContributionCallback(account, window=_WINDOW, probes_per_language=_LOOKED_AT, **every))
        fit.trainer.callbacks.extend(callbacks)  # type: ignore[attr-defined]
        fit_on(fit, np.ones(len(fit.train.dataset), dtype=np.bool_), seed)  # type: ignore[arg-type]
    for path, callback in runs.items():
        done(path).write_text(json.dumps({"seed": seed, "callback": {name: str(value) for name, value in callback.items()}}))


def done(path: Path) -> Path:
    """The marker file of a complete run.

    Example:
        >>> done(Path("runs/seed0-exact")).name
        'seed0-exact.done'
    """
    return path.with_name(f"{path.name}.done")
