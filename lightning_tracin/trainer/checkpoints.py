"""Reads checkpoints safely (no arbitrary pickle): Lightning's `.ckpt` files and Hugging Face's `checkpoint-N` folders."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_tracin.errors import TracInError
from lightning_tracin.storage.files import read_tensors
from lightning_tracin.trainer.trained_weights import trained_weights

_LAYOUTS = (
    "a .ckpt file of Lightning's ModelCheckpoint, or a checkpoint-N folder of Hugging Face's Trainer with model.safetensors and "
    "trainer_state.json"
)


@dataclass(frozen=True)
class Checkpoint:
    """The content of one checkpoint."""

    path: Path
    epoch: int  # epoch in which it was taken, from 1
    step: int  # optimizer steps so far
    passed: float  # passes over the train set so far
    weights: Mapping[str, Tensor]  # under the names of the saved model
    groups: tuple[int, ...] | None  # number of parameters in each optimizer group; None: unknown, all in one group
    rates: tuple[float, ...]  # learning rate of each group at the checkpoint
    logged: Mapping[int, float]  # step -> learning rate of all groups, if there is a log of them
    optimizers: Sequence[Mapping[str, Any]] = ()  # states of the optimizers
    schedulers: Sequence[Mapping[str, Any]] = ()  # states of the learning rate schedulers
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Mapping[str, Any] = field(default_factory=dict)  # states of the callbacks
    history: Sequence[Mapping[str, Any]] = ()  # lines of the log

    def mean_rates(self, before: Checkpoint | None) -> tuple[float, ...]:
        """The mean learning rate of each group since the previous checkpoint.

        The mean of the logged rates if there are any, else of the rates at both checkpoints (the first one: its own).

        Example:
            >>> first = Checkpoint(Path("a.ckpt"), 1, 10, 1.0, {}, (2,), (0.3,), {})
            >>> Checkpoint(Path("b.ckpt"), 2, 20, 2.0, {}, (2,), (0.1,), {}).mean_rates(first)
            (0.2,)
        """
        start = 0 if before is None else before.step
        logged = [rate for step, rate in self.logged.items() if start < step <= self.step]
        if logged:
            return (sum(logged) / len(logged),)
        if before is None or len(before.rates) != len(self.rates):
            return self.rates
        return tuple((one + other) / 2 for one, other in zip(before.rates, self.rates, strict=True))


def found_checkpoints(places: str | Path | Iterable[str | Path]) -> list[Path]:
    """Find the files and folders of checkpoints.

    Args:
        places: checkpoint files and folders, or a folder that contains them.

    Raises:
        TracInError: there are none, or one does not exist.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     (Path(folder) / "epoch=0.ckpt").touch()
        ...     [path.name for path in found_checkpoints(folder)]
        ['epoch=0.ckpt']
    """
    given = [Path(places)] if isinstance(places, str | Path) else [Path(place) for place in places]
    found: list[Path] = []
    for place in given:
        if not place.exists():
            raise TracInError(f"There is no checkpoint {place}.")
        if place.is_file() or (place / "trainer_state.json").exists():
            found.append(place)
            continue
        inside = [*place.glob("*.ckpt"), *(path.parent for path in place.glob("checkpoint-*/trainer_state.json"))]
        if not inside:
            raise TracInError(f"{place} holds no checkpoint; give {_LAYOUTS}, or a folder of them.")
        found += inside
    if not found:
        raise TracInError(f"No checkpoint was given; give {_LAYOUTS}.")
    return found


def read_checkpoint(path: Path, batches: int) -> Checkpoint:
    """Read one checkpoint.

    Args:
        path: its file or folder.
        batches: number of train batches per epoch, for checkpoints within the first epoch.

    Raises:
        TracInError: it has an unknown layout, is damaged, or cannot be read without executing pickle.
    """
    return _hugging_face(path) if path.is_dir() else _lightning(path, batches)


def _lightning(path: Path, batches: int) -> Checkpoint:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise TracInError(
            f"{path} cannot be read as weights and plain values ({' '.join(str(error).split())[:200]}); give {_LAYOUTS}, without "
            "objects of other classes (such as hyperparameters that are not plain values)."
        ) from error
    missing = {"state_dict", "epoch", "global_step", "optimizer_states"} - set(saved if isinstance(saved, dict) else ())
    if missing:
        raise TracInError(
            f"{path} is not a checkpoint of a Lightning fit (it has no {', '.join(sorted(missing))}); give {_LAYOUTS}, saved "
            "with its optimizers (`save_weights_only=False`)."
        )
    groups = [group for state in saved["optimizer_states"] for group in state["param_groups"]]
    epoch = int(saved["epoch"])
    return Checkpoint(
        path=path,
        epoch=epoch + 1,
        step=int(saved["global_step"]),
        passed=_passed(saved, epoch, batches),
        weights=trained_weights(path, saved),
        groups=tuple(len(group["params"]) for group in groups),
        rates=tuple(float(group["lr"]) for group in groups),
        logged={},
        optimizers=saved["optimizer_states"],
        schedulers=saved.get("lr_schedulers", ()),
        hyperparameters={**saved.get("hyper_parameters", {}), **saved.get("datamodule_hyper_parameters", {})},
        callbacks=saved.get("callbacks", {}),
    )


def _passed(saved: Mapping[str, Any], epoch: int, batches: int) -> float:
    """Passes over the train set so far: whole epochs, and the fraction of the last one."""
    progress = saved.get("loops", {}).get("fit_loop", {}).get("epoch_loop.batch_progress")
    if progress is None or progress["is_last_batch"]:
        return epoch + 1.0
    here, total = progress["current"]["processed"], progress["total"]["processed"]
    return float(epoch + here / ((total - here) / epoch if epoch else batches))


def _hugging_face(path: Path) -> Checkpoint:
    files = sorted(path.glob("model*.safetensors"))
    if not files or not (path / "trainer_state.json").exists():
        raise TracInError(f"{path} has an unknown layout; give {_LAYOUTS}.")
    try:
        state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        step, epoch = int(state["global_step"]), float(state["epoch"])
        history: Sequence[Mapping[str, Any]] = state["log_history"]
        logged = {int(line["step"]): float(line["learning_rate"]) for line in history if "learning_rate" in line}
    except (ValueError, KeyError, TypeError) as error:
        raise TracInError(f"{path / 'trainer_state.json'} is damaged ({type(error).__name__}: {error}).") from error
    if not logged:
        raise TracInError(f"{path / 'trainer_state.json'} logs no learning rate; fit with `logging_steps` smaller than an epoch.")
    weights = {name: tensor for file in files for name, tensor in read_tensors(file, "restore it from a copy").items()}
    latest = max((at for at in logged if at <= step), default=min(logged))
    return Checkpoint(
        path, max(1, math.ceil(epoch - 1e-6)), step, epoch, weights, None, (logged[latest],), logged, history=history
    )
