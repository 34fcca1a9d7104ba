"""A model made ready for capture: its parameters frozen, its compiled code set aside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lightning_tracin.errors import TracInError


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter requires a gradient inside."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """What `torch.compile` has compiled runs as it was written inside: compiled code passes by the hooks on its layers.

    Raises:
        TracInError: this torch cannot do so, and the model is compiled.
    """
    set_stance = getattr(torch.compiler, "set_stance", None)
    if set_stance is not None:
        with set_stance("force_eager"):
            yield
        return
    compiled = [
        name
        for name, module in model.named_modules()
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
    ]
    if compiled:
        raise TracInError(
            f"The module {compiled[0]!r} is compiled by `torch.compile`, which torch {torch.__version__} cannot set aside; use "
            "torch 2.6 or later, or compile the model after the callback's setup."
        )
    yield
