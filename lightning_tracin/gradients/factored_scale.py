"""Scales of a parameter's gradients that are outer products: they scale the factors of a gradient, which stays factored.

A Linear's gradient is a sum of outer products. Multiplied by any scale of the parameter's elements it has to be written out. A
scale that is itself the outer product of a row and a column, as Adam's is from factored second moments, multiplies each factor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_tracin.gradients.forms import Dense, Form, Outer, shape_of, to_dense

#: A scale is an outer product if no element differs from the product by more than this part of it.
_ROUNDING = 1e-6

#: Number of elements compared at a time.
_BLOCK = 1_000_000


@dataclass(frozen=True)
class FactoredScale:
    """A scale of a parameter's elements, seen as a matrix: ``rows[i] * columns[j]``.

    Attributes:
        rows: [first dimension of the parameter].
        columns: [product of its other dimensions].
    """

    rows: Tensor
    columns: Tensor

    def of(self, forms: tuple[Form, ...]) -> tuple[Form, ...]:
        """The gradients, scaled; the sum of outer products stays one.

        Example:
            >>> scale = FactoredScale(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 10.0]))
            >>> to_dense(*scale.of((Outer(torch.ones(1, 1, 2), torch.ones(1, 1, 2)),))).tolist()
            [[2.0, 20.0, 3.0, 30.0]]
        """
        return tuple(self._of(form) for form in forms)

    def _of(self, form: Form) -> Form:
        if not isinstance(form, Dense) and shape_of(form) == (len(self.rows), len(self.columns)):
            if isinstance(form, Outer):
                return Outer(form.left * self.rows, form.right * self.columns)
            return replace(form, values=form.values * self.rows[form.row, None] * self.columns)
        return Dense(to_dense(form) * torch.outer(self.rows, self.columns).flatten())


def factored(scale: Tensor) -> FactoredScale | None:
    """The factors of a scale; None if it is no outer product, or has one dimension.

    Example:
        >>> factored(torch.tensor([[1.0, 10.0], [2.0, 20.0]]))
        FactoredScale(rows=tensor([10., 20.]), columns=tensor([0.1000, 1.0000]))
        >>> factored(torch.tensor([[1.0, 10.0], [2.0, 30.0]])) is None
        True
    """
    if scale.dim() < 2 or not scale.numel():
        return None
    matrix = scale.flatten(1)
    i, j = divmod(int(matrix.argmax()), matrix.shape[1])
    if matrix[i, j] <= 0:
        return None
    rows, columns = matrix[:, j], matrix[i] / matrix[i, j]
    step = max(1, _BLOCK // len(columns))
    for first in range(0, len(rows), step):  # block by block: the scale of an embedding table is not held twice
        product = torch.outer(rows[first : first + step], columns)
        if not bool(((matrix[first : first + step] - product).abs() <= _ROUNDING * product).all()):
            return None
    return FactoredScale(rows, columns)
