"""Gradients by one forward and backward pass for each sample: the last resort, exact for any use of a parameter.

For parameters that are used in a way that no rule, stand-in or replayed module can follow: a step that calls no module, a method
other than `forward`, heads on selected samples. It costs a pass over each sample alone, over these parameters only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lightning_tracin.gradients.forms import Dense, Form, Rows
from lightning_tracin.gradients.single import value_and_gradient

#: Which rows of a table are kept (None: all), and these rows.
_Lines: TypeAlias = tuple[Tensor | None, Tensor]

#: A table whose gradient has at most this share of rows that are not zero is stored by rows.
_FEW_ROWS = 0.5


def gradients_one_by_one(
    model: nn.Module, names: Collection[str], alone: Callable[[int], Tensor], samples: int
) -> tuple[Tensor, dict[str, Form]]:
    """The per-sample gradients of some parameters, and the sum of the samples' losses.

    Args:
        model: the model; its parameters' `requires_grad` is restored afterwards.
        names: parameters, named as in `model.named_parameters()`.
        alone: does the forward pass of one sample, by its position in the batch, and returns its loss.
        samples: number of samples in the batch.

    Example:
        >>> model, inputs = nn.Linear(2, 1, bias=False), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> _, found = gradients_one_by_one(model, ["weight"], lambda i: model(inputs[i]).sum(), samples=2)
        >>> found["weight"].values.tolist()
        [[1.0, 2.0], [3.0, 4.0]]
    """
    values: list[Tensor] = []
    each: list[dict[str, _Lines]] = []
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    for sample in range(samples):
        value, gradients = value_and_gradient(model, names, lambda at=sample: alone(at))  # type: ignore[misc]
        values.append(value)
        each.append({name: _few_rows(gradient) for name, gradient in gradients.items()})
    return torch.stack(values).sum(), {name: _form([one[name] for one in each], shapes[name]) for name in names}


def _few_rows(gradient: Tensor) -> _Lines:
    """The rows of a table that are not zero, if these are few."""
    if gradient.is_sparse:  # of an embedding with `sparse=True`
        gradient = gradient.coalesce()
        return gradient.indices()[0], gradient.values()
    if gradient.ndim != 2:
        return None, gradient
    rows = gradient.ne(0).any(1).nonzero()[:, 0]
    return (None, gradient) if len(rows) > _FEW_ROWS * len(gradient) else (rows, gradient[rows])


def _form(gradients: Sequence[_Lines], shape: torch.Size) -> Form:
    if any(rows is None for rows, _ in gradients):
        full = gradients[0][1].new_zeros(len(gradients), *shape)
        for line, (rows, values) in zip(full, gradients, strict=True):
            line[slice(None) if rows is None else rows] = values
        return Dense(full.flatten(1))
    found = [(rows, values) for rows, values in gradients if rows is not None]
    sample = torch.cat([torch.full_like(rows, number) for number, (rows, _) in enumerate(found)])
    return Rows(sample, torch.cat([rows for rows, _ in found]), torch.cat([values for _, values in found]), len(found), shape[0])
