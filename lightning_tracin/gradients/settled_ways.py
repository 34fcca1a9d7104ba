"""Finds, before a fit, how each parameter's gradient is split by groups of samples, and checks that the split is right.

A split is right if its parts add up to the gradient, and if they belong to the samples: in the reversed batch, the parts change
places. A parameter whose split is wrong is tried at the output of the module around it, then of the next one around that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_tracin.gradients.coverage import Layer
from lightning_tracin.gradients.freezing import uncompiled
from lightning_tracin.gradients.group_split import GroupSplit, Ways, enclosing, layers_of
from lightning_tracin.gradients.group_vectors import PENDING
from lightning_tracin.gradients.sample_lines import found_lines

#: Largest difference, relative to a parameter's gradient, that rounding may cause.
CLOSE = {torch.float64: 1e-7, torch.float32: 1e-4}

#: A gradient whose norm is this small, relative to that of all parameters, is taken for rounding.
NOTHING = 1e-4


class _Parts(NamedTuple):
    """What is kept of a parameter's split in one run: a few numbers of each part, and how far they are from adding up."""

    prints: tuple[Tensor, Tensor]  # of one sample's part, and of the other samples' part: [stretches]
    gap: float  # of the parts' sum from the gradient
    norm: float  # of the gradient


def settled_ways(model: nn.Module, loss: Callable[[Sequence[int]], Tensor], samples: int) -> Ways:
    """How each parameter's gradient is split.

    Args:
        model: a copy of the module that will be fitted, in evaluation mode.
        loss: the loss of these samples, given by their positions in one batch; the longest sample is at position 0.
        samples: number of samples in that batch, at least 2.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> model.scale = nn.Parameter(torch.ones(()))
        >>> batch = torch.rand(3, 2)
        >>> settled_ways(model, lambda some: (model(batch[list(some)]) * model.scale).sum(), samples=3).undivided
        frozenset({'scale'})
    """
    candidates = _candidates(model)
    with uncompiled(model):
        lines = found_lines(model, [name for name, _ in model.named_modules() if name], loss, samples)
        usable = {place.module for place in lines if place.role == "output"} - _hooked(model)
        left = {name: [one for one in modules if not one or one in usable] for name, modules in candidates.items()}
        while True:
            around = {name: modules[0] for name, modules in left.items() if modules and modules[0]}
            ways = Ways(lines, around, frozenset(name for name, modules in left.items() if not modules))
            wrong = _wrong(model, ways, loss, samples)
            if not wrong:
                return ways
            for name in wrong:
                left[name].pop(0)


def _hooked(model: nn.Module) -> set[str]:
    """The modules that hold backward hooks of the user, which a repeated backward pass would call once more."""
    own = [name for name, module in model.named_modules() if module._backward_hooks or module._backward_pre_hooks]
    return {around for name in own for around in enclosing(name)}


def _candidates(model: nn.Module) -> dict[str, list[str]]:
    """Parameter -> where it may be split, best first: "" for the rules of its layers, then the modules around all of them."""
    owners: dict[str, list[Layer]] = {}
    for layer in layers_of(model).values():
        for name in layer.names.values():
            owners.setdefault(name, []).append(layer)
    found: dict[str, list[str]] = {}
    for name, layers in owners.items():
        paths = [list(enclosing(layer.name)) for layer in layers]
        common = [module for module in paths[0] if all(module in path for path in paths)]
        found[name] = ["", *common] if all(layer.rule is not None for layer in layers) else common
    return found


def _wrong(model: nn.Module, ways: Ways, loss: Callable[[Sequence[int]], Tensor], samples: int) -> frozenset[str]:
    """The parameters whose parts do not add up, or do not change places in the reversed batch."""
    straight = _parts(model, ways, loss, list(range(samples)), 0)
    turned = _parts(model, ways, loss, list(reversed(range(samples))), samples - 1)
    wrong = set()
    whole = sum(parts.norm**2 for parts in straight.values()) ** 0.5
    for name, parts in straight.items():
        close = CLOSE.get(dict(model.named_parameters())[name].dtype, 3e-2)
        least = close * max(parts.norm, NOTHING * whole)
        far = [float((one - other).abs().max()) for one, other in zip(parts.prints, turned[name].prints, strict=True)]
        if not max(parts.gap, turned[name].gap) <= least or not max(far) <= 20 * least:
            wrong.add(name)
    return frozenset(wrong - ways.undivided)


def _parts(
    model: nn.Module, ways: Ways, loss: Callable[[Sequence[int]], Tensor], order: Sequence[int], first: int
) -> dict[str, _Parts]:
    """Split the gradients of a batch into those of one sample and those of all others."""
    groups = torch.tensor([0 if place == first else 1 for place in range(len(order))])
    split = GroupSplit(model, ways)
    model.zero_grad(set_to_none=True)
    found: dict[str, _Parts] = {}
    try:
        split.begin(groups)
        with torch.enable_grad():
            loss(order).backward()  # type: ignore[no-untyped-call]
        for name, parameter in model.named_parameters():
            if parameter.grad is None:
                continue
            gradient = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
            vectors = split.vectors.pop(name, {})
            parts = [vectors[group].dense(PENDING) if group in vectors else torch.zeros_like(gradient) for group in (0, 1)]
            gap = float((gradient - parts[0] - parts[1]).norm())
            found[name] = _Parts((_print(parts[0]), _print(parts[1])), gap, float(gradient.norm()))
            parameter.grad = None
    finally:
        split.close()
        model.zero_grad(set_to_none=True)
    return found


def _print(part: Tensor) -> Tensor:
    """A few numbers that tell parts apart: the norms of 16 stretches."""
    flat = part.detach().reshape(-1).double()
    return torch.stack([one.norm() for one in flat.tensor_split(16)])
