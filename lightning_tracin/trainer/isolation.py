"""An isolated copy of the user's module to compute influence on, so that the fit is not affected.

Running `training_step` outside the fit would log values, update metrics and change buffers. On the copy this has no effect: it
is in evaluation mode and in one precision, and its trainer has no loggers.
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

#: Methods that Lightning replaces in a module compiled with `torch.compile`.
_STEPS = ("forward", "training_step", "validation_step", "test_step", "predict_step")


class _QuietTrainer:
    """The real trainer, without its loggers."""

    def __init__(self, trainer: Trainer) -> None:
        self._real = trainer
        self.logger = DummyLogger()
        self.loggers = [self.logger]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def isolated_copy(module: LightningModule, dtype: torch.dtype) -> LightningModule:
    """A deep copy in evaluation mode, with all floating-point weights in one data type. Datasets are shared, not copied.

    Raises:
        TracInError: the module cannot be copied.

    Example:
        >>> from pytorch_lightning.demos.boring_classes import BoringModel
        >>> module = BoringModel()
        >>> copy = isolated_copy(module, torch.float64)
        >>> copy.layer.weight.dtype, copy.training, module.layer.weight.dtype, module.training
        (torch.float64, False, torch.float32, True)
    """
    trainer: Trainer | None = getattr(module, "_trainer", None)
    try:
        duplicate = copy.deepcopy(module, _kept_out(module))
    except Exception as error:
        raise TracInError(
            f"{type(module).__name__} cannot be copied ({error}), but influence is computed on a copy so that the fit is not "
            "affected; keep objects that cannot be copied (locks, open files, processes) out of the module's attributes."
        ) from error
    if trainer is not None:
        duplicate.trainer = _QuietTrainer(trainer)  # type: ignore[assignment]
    for part in duplicate.modules():
        if hasattr(part, "log_dict"):  # a LightningModule of either Lightning package
            for name in ("log", "log_dict", "print"):
                object.__setattr__(part, name, _no_op)
        if getattr(part, "_compiler_ctx", None) is not None:  # compiled steps are bound to the original
            for name in _STEPS:
                part.__dict__.pop(name, None)
        for key, hook in list(part._forward_hooks.items()):
            if str(getattr(hook, "__module__", "")).startswith("wandb"):  # `wandb.watch` would log the copy's histograms
                del part._forward_hooks[key]
    for parameter in duplicate.parameters():
        parameter.grad = None
    return duplicate.eval().to(dtype)


def _no_op(*_: Any, **__: Any) -> None:
    """Replace the logging methods of a copy."""


def _kept_out(module: LightningModule) -> dict[int, Any]:
    """The memo of a deep copy: datasets and loaders are shared, and tensors with an autograd graph are detached."""
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
    """Restore the random states of Python, NumPy and torch and torch's matmul precision on exit.

    Inside, float32 matrix products use full float32 precision: a fit may choose TF32, scores do not.

    Example:
        >>> before = torch.random.get_rng_state()
        >>> with untouched_process():
        ...     _ = torch.rand(3)
        >>> torch.equal(torch.random.get_rng_state(), before)
        True
    """
    python, numpy = random.getstate(), np.random.get_state()
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError as error:
        raise TracInError(
            "The precision of float32 matrix products was set through both of torch's interfaces, so torch cannot report it; use "
            "only `torch.set_float32_matmul_precision(...)`."
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
