"""A copy of the user's module on which influence is computed, so that the fit never notices.

Running a module's `training_step` outside the fit would log, feed metrics and change buffers. Here that happens to a copy
that nobody looks at: in evaluation mode, in one precision, with a trainer whose loggers go nowhere.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers.logger import DummyLogger
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_tracin.errors import TracInError

#: What Lightning replaces in a module that was given to `torch.compile`.
_STEPS = ("forward", "training_step", "validation_step", "test_step", "predict_step")


class _QuietTrainer:
    """The real trainer to read from, without its loggers."""

    def __init__(self, trainer: Trainer) -> None:
        self._real = trainer
        self.logger = DummyLogger()
        self.loggers = [self.logger]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def isolated_copy(module: LightningModule, dtype: torch.dtype) -> LightningModule:
    """A deep copy in evaluation mode with floating-point weights of one type; data sets are shared, not copied.

    Raises:
        TracInError: the module cannot be copied.
    """
    trainer: Trainer | None = getattr(module, "_trainer", None)
    try:
        duplicate = copy.deepcopy(module, _kept_out(module))
    except Exception as error:
        raise TracInError(
            f"{type(module).__name__} cannot be copied ({error}), and influence is computed on a copy so that the fit stays as "
            "it is; keep what cannot be copied (locks, open files, processes) out of the module's attributes."
        ) from error
    if trainer is not None:
        duplicate.trainer = _QuietTrainer(trainer)  # type: ignore[assignment]
    for part in duplicate.modules():
        if hasattr(part, "log_dict"):  # a LightningModule of either Lightning package
            for name in ("log", "log_dict", "print"):
                object.__setattr__(part, name, _nothing)
        if getattr(part, "_compiler_ctx", None) is not None:  # compiled steps are bound to the original
            for name in _STEPS:
                part.__dict__.pop(name, None)
        _drop_watchers(part)
    for parameter in duplicate.parameters():
        parameter.grad = None
    return duplicate.eval().to(dtype)


def _nothing(*_: Any, **__: Any) -> None:
    """Stand in for the logging methods of a copy."""


def _drop_watchers(module: torch.nn.Module) -> None:
    """Remove the hooks of `wandb.watch`, which would write histograms of the copy into the run."""
    for key, hook in list(module._forward_hooks.items()):
        if str(getattr(hook, "__module__", "")).startswith("wandb"):
            del module._forward_hooks[key]


def _kept_out(module: LightningModule) -> dict[int, Any]:
    """What a deep copy must not copy: data sets (shared), and tensors that autograd computed (cut off from their graph)."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in vars(part).values():
            for leaf in _leaves(value, depth=3):
                if isinstance(leaf, Dataset | DataLoader):
                    memo[id(leaf)] = leaf
                elif isinstance(leaf, Tensor) and not leaf.is_leaf:
                    memo[id(leaf)] = leaf.detach()
    return memo


def _leaves(value: Any, depth: int) -> Iterator[Any]:
    if depth and isinstance(value, dict):
        value = list(value.values())
    if depth and isinstance(value, list | tuple):
        for element in value:
            yield from _leaves(element, depth - 1)
    else:
        yield value


@contextmanager
def untouched_process() -> Iterator[None]:
    """Random states of Python, NumPy and torch, and torch's precision of matrix products, are afterwards as before.

    Inside, matrix products in float32 are in float32: a fit's choice of TF32 is not one for scores.
    """
    python, numpy = random.getstate(), np.random.get_state()
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError as error:
        raise TracInError(
            "The precision of float32 matrix products was set with both of torch's ways, so torch cannot tell it; use "
            "`torch.set_float32_matmul_precision(...)` alone."
        ) from error
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_float32_matmul_precision(precision)
