"""The slow, obvious references: one sample at a time, by plain `autograd.grad`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_tracin.gradients import Sketch


def gradient_of_one(model: nn.Module, loss: Callable[[], Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """The gradient of one sample's loss, parameter by parameter, flattened; zero where the loss does not depend on it."""
    parameters = dict(model.named_parameters())
    chosen = [parameters[name] for name in names]
    gradients = torch.autograd.grad(loss(), chosen, allow_unused=True)
    return {
        name: (torch.zeros_like(parameter) if gradient is None else gradient).flatten()
        for name, parameter, gradient in zip(names, chosen, gradients, strict=True)
    }


def gradient_loop(
    model: nn.Module, loss_of_one: Callable[[Any], Tensor], samples: Sequence[Any], names: Sequence[str]
) -> dict[str, Tensor]:
    """Every sample's gradient: parameter -> [samples, elements], in float64."""
    each = [gradient_of_one(model, lambda sample=sample: loss_of_one(sample), names) for sample in samples]
    return {name: torch.stack([one[name] for one in each]).double() for name in names}


def written_out(sketch: Sketch, name: str) -> Tensor:
    """The matrix of one parameter's map, element by element from what its file holds: [elements, size]."""
    held = {key.removeprefix(f"{name}/"): tensor for key, tensor in sketch.state().items() if key.startswith(f"{name}/")}
    rows, columns, size = held["sizes"].tolist()
    left = held.get("left", torch.eye(rows)).double()
    right = held.get("right", torch.eye(columns)).double()
    hashed = torch.zeros(left.shape[1], right.shape[1], size, dtype=torch.float64)
    for i in range(left.shape[1]):
        for j in range(right.shape[1]):
            hashed[i, j, (held["offset"][i] + j) % size] = held["left_sign"][i] * held["right_sign"][j]
    return torch.einsum("ai,bj,ijk->abk", left, right, hashed).reshape(rows * columns, size)


def ingredients_loop(
    train: dict[str, Tensor], probes: dict[str, Tensor], groups: dict[str, int], count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """dot [groups, train, probes], norms of train [groups, train] and of probes [groups, probes], from gradients."""
    dot, norm, probe_norm = [], [], []
    for group in range(count):
        names = [name for name in train if groups[name] == group]
        z = torch.cat([train[name] for name in names], 1)
        q = torch.cat([probes[name] for name in names], 1)
        dot.append(z @ q.T)
        norm.append(z.norm(dim=1))
        probe_norm.append(q.norm(dim=1))
    return torch.stack(dot), torch.stack(norm), torch.stack(probe_norm)
