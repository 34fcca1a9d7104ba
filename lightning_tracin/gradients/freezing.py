"""Context managers that prepare a model for capture: frozen parameters, no compiled code."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lightning_tracin.errors import TracInError


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Freeze all parameters inside the context; restore `requires_grad` afterwards.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> with frozen(layer):
        ...     [parameter.requires_grad for parameter in layer.parameters()]
        [False, False]
        >>> layer.weight.requires_grad
        True
    """
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


@contextmanager
def unfrozen(model: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Let the named parameters require gradients inside the context, and compute with gradients.

    Example:
        >>> layer = nn.Linear(2, 1).requires_grad_(False)
        >>> with unfrozen(layer, ["bias"]), torch.no_grad():
        ...     [parameter.requires_grad for parameter in layer.parameters()]
        [False, True]
        >>> layer.bias.requires_grad
        False
    """
    before = [(parameter, parameter.requires_grad) for name, parameter in model.named_parameters() if name in names]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Run the eager version of anything compiled with `torch.compile`: compiled code bypasses the hooks on its layers.

    Raises:
        TracInError: the model is compiled, and this version of torch cannot switch to eager mode.
    """
    set_stance = getattr(torch.compiler, "set_stance", None)
    if set_stance is not None:
        with set_stance("force_eager"):
            yield
        return
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise TracInError(
                f"The module {name!r} is compiled by `torch.compile`, which torch {torch.__version__} cannot set aside; use "
                "torch 2.6 or later, or compile the model after the callback's setup."
            )
    yield
