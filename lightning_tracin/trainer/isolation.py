"""An isolated copy of the user's module to compute influence on, so that the fit is not affected.

Running `training_step` outside the fit would log values, update metrics and change buffers. On the copy this has no effect: it
is in evaluation mode and in one precision, and its trainer has no loggers.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers.logger import DummyLogger
from pytorch_lightning.profilers import PassThroughProfiler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_tracin.errors import TracInError
from lightning_tracin.trainer.compat import overrides
from lightning_tracin.trainer.generators import generators_in, restore, state_of

#: Methods that Lightning replaces in a module compiled with `torch.compile`.
_STEPS = ("forward", "training_step", "validation_step", "test_step", "predict_step")


#: Hooks through which a batch goes on its way to the device; a module or a data module may have them.
_TRANSFER = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")

_Object = TypeVar("_Object")


@dataclass(frozen=True)
class _TransferHooks:
    """Who has the hooks for batches: the copy of the data module where it has its own, else the copy of the module."""

    module: LightningModule
    datamodule: Any

    @property
    def _datahook_selector(self) -> _TransferHooks:
        """A module asks its trainer's connector for this."""
        return self

    def get_instance(self, hook_name: str) -> Any:
        return self.datamodule if overrides(self.datamodule, hook_name) else self.module


class _QuietTrainer:
    """The real trainer, without its loggers, whose hooks for batches are those of copies."""

    def __init__(self, trainer: Trainer | None, module: LightningModule) -> None:
        self._real = trainer
        if trainer is None:
            self.current_epoch = self.global_step = self.global_rank = self.local_rank = 0
            self.world_size, self.is_global_zero = 1, True
        self.logger = DummyLogger()
        self.loggers = [self.logger]
        self.profiler = PassThroughProfiler()
        self.lightning_module = module
        self.datamodule = self._own_datamodule(getattr(trainer, "datamodule", None))
        self._data_connector = _TransferHooks(module, self.datamodule)

    def _own_datamodule(self, datamodule: Any) -> Any:
        """A copy of a data module that changes batches; any other is shared."""
        if not any(overrides(datamodule, name) for name in _TRANSFER):
            return datamodule
        memo = {id(leaf): leaf for leaf in _leaves(list(vars(datamodule).values()), 3) if isinstance(leaf, Dataset | DataLoader)}
        return _copied(datamodule, {**memo, id(self._real): self})

    def __getattr__(self, name: str) -> Any:
        if self.__dict__.get("_real") is None:
            raise AttributeError(f"The module is not attached to a Trainer here, so there is no `trainer.{name}`.")
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
    duplicate = _copied(module, _kept_out(module))
    quiet: Any = _QuietTrainer(trainer, duplicate)
    if trainer is not None:
        duplicate.trainer = quiet
    else:
        duplicate._trainer = quiet
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


def discard(copy: LightningModule, original: LightningModule) -> None:
    """Free the memory of a copy's weights at once, but for what the copy shares with the original.

    A module and its trainer refer to each other, so it would wait for Python's garbage collector, which counts
    objects and not bytes.

    Example:
        >>> from pytorch_lightning.demos.boring_classes import BoringModel
        >>> module = BoringModel()
        >>> copy = isolated_copy(module, torch.float32)
        >>> discard(copy, module)
        >>> copy.layer.weight.numel(), module.layer.weight.numel()
        (0, 64)
    """
    shared = {id(tensor) for tensor in (*original.parameters(), *original.buffers())}  # a part may be its own copy
    for tensor in (*copy.parameters(), *copy.buffers()):
        if id(tensor) not in shared:
            tensor.data = tensor.new_empty(0)


def set_moment(copy: LightningModule, epoch: int, step: int | None) -> None:
    """Make an isolated copy see an epoch and a step, as `self.current_epoch` and `self.global_step`.

    Args:
        copy: made by `isolated_copy`.
        epoch: from 0.
        step: None leaves it as it is.

    Example:
        >>> from pytorch_lightning.demos.boring_classes import BoringModel
        >>> copy = isolated_copy(BoringModel(), torch.float32)
        >>> set_moment(copy, epoch=2, step=30)
        >>> copy.current_epoch, copy.global_step
        (2, 30)
    """
    trainer: Any = copy._trainer
    trainer.current_epoch = epoch
    if step is not None:
        trainer.global_step = step


def _copied(original: _Object, memo: dict[int, Any]) -> _Object:
    try:
        return copy.deepcopy(original, memo)
    except Exception as error:
        raise TracInError(
            f"{type(original).__name__} cannot be copied ({error}), but influence is computed on a copy so that the fit is not "
            "affected; keep objects that cannot be copied (locks, open files, processes) out of its attributes."
        ) from error


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
                    memo[id(leaf)] = leaf.detach().clone()
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
def untouched_process(*objects: Any) -> Iterator[None]:
    """Restore the random states of Python, NumPy and torch and torch's matmul precision on exit.

    Args:
        objects: the user's; the generators that they hold or refer to are restored, too.

    Inside, float32 matrix products use full float32 precision: a fit may choose TF32, scores do not.

    Example:
        >>> before = torch.random.get_rng_state()
        >>> with untouched_process():
        ...     _ = torch.rand(3)
        >>> torch.equal(torch.random.get_rng_state(), before)
        True
    """
    python, numpy = random.getstate(), np.random.get_state()
    own = [(generator, state_of(generator)) for generator in generators_in(*objects)]
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
        for generator, state in own:
            restore(generator, state)
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_float32_matmul_precision(precision)
