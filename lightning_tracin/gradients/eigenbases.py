"""Bases of a parameter's rows and columns, from the inputs and output gradients of its layer (K-FAC).

A layer's gradient is a sum of outer products of output gradients and inputs, ``G = sum over t of delta_t a_t'``. With the
covariances A of the inputs and S of the output gradients, K-FAC takes ``S (x) A`` for the second moment of G. Its eigenvectors
are the products of those of S and of A, so in these bases, ``Q_S' G Q_A``, the second moment is almost diagonal (Martens and
Grosse 2015, arXiv 1503.05671; George et al. 2018, arXiv 1806.03884). The covariances are over positions, such as tokens.
Positions without an output gradient are left out: they have no part in any gradient, and padding would otherwise count.

A side has no basis of its own (the identity takes its place) where there is nothing to gain or where it would be too large:

- the rows of an embedding table: its input is one token, so their covariance is diagonal as it is;
- sides of more than `LARGEST_SIDE`, such as the classes of a language model's head;
- both sides of parameters whose gradients do not come as outer products: biases, normalisations, and layers without a rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_tracin.gradients.forms import Dense, Form, Outer, Rows, to_dense
from lightning_tracin.gradients.products import wide_type

#: Longest side that gets a basis: a covariance of 4,096 x 4,096 takes about half a minute to decompose.
LARGEST_SIDE = 4096

#: What forms a parameter's gradients came in; a parameter may have several.
OUTER, ROWS, WRITTEN_OUT = 1, 2, 4


@dataclass(frozen=True)
class Eigenbasis:
    """Orthonormal bases of the rows and columns of one parameter.

    Example:
        >>> swapped = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> basis = Eigenbasis(left=None, right=swapped)
        >>> basis.gradient(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist()
        [[2.0, 1.0], [4.0, 3.0]]
    """

    left: Tensor | None  # [rows, rows], one basis vector in each column; None: the identity
    right: Tensor | None  # [columns, columns]

    def forms(self, forms: Sequence[Form]) -> tuple[Form, ...]:
        """The gradients' coordinates, in the forms of the gradients."""
        return tuple(forms) if self._is_identity else tuple(map(self._form, forms))

    @property
    def _is_identity(self) -> bool:
        return self.left is None and self.right is None

    def _form(self, form: Form) -> Form:
        if isinstance(form, Outer):
            return Outer(_times(form.left, self.left), _times(form.right, self.right))
        if isinstance(form, Rows) and self.left is None:
            return replace(form, values=_times(form.values, self.right))
        values = to_dense(form)
        rows = -1 if self.left is None else len(self.left)
        columns = -1 if self.right is None else len(self.right)
        return Dense(self._both(values.view(len(values), rows, columns)).flatten(1))

    def _both(self, matrices: Tensor) -> Tensor:
        matrices = _times(matrices, self.right)
        return matrices if self.left is None else self.left.to(matrices.dtype).T @ matrices

    def gradient(self, gradient: Tensor) -> Tensor:
        """The coordinates of one gradient, in its shape; sparse gradients of tables stay sparse."""
        if self._is_identity:
            return gradient
        if gradient.is_sparse and self.left is None:
            values = _times(gradient.values(), self.right)
            return torch.sparse_coo_tensor(gradient.indices(), values, gradient.shape, is_coalesced=True, check_invariants=False)
        return self._both(gradient.to_dense().flatten(1)).view(gradient.shape)


def _times(values: Tensor, basis: Tensor | None) -> Tensor:
    return values if basis is None else values @ basis.to(values.dtype)


class Covariances:
    """Sums of the outer products of inputs and of output gradients, parameter by parameter.

    Args:
        shapes: parameter -> its rows and columns.

    Attributes:
        kinds: parameter -> the forms that its gradients came in so far (`OUTER`, `ROWS` and `WRITTEN_OUT`, added up).

    Example:
        >>> covariances = Covariances({"weight": (1, 2)})
        >>> covariances.add("weight", (Outer(torch.tensor([[[2.0]]]), torch.tensor([[[3.0, 4.0]]])),))
        >>> covariances.of("weight", side=1).tolist()
        [[9.0, 12.0], [12.0, 16.0]]
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        self._shapes = shapes
        self._sums: dict[tuple[str, int], Tensor] = {}
        self.kinds = dict.fromkeys(shapes, 0)

    def add(self, name: str, forms: Sequence[Form]) -> None:
        """Add the samples of one batch."""
        for form in forms:
            if isinstance(form, Rows):
                self.kinds[name] |= ROWS
                self._add(name, 1, form.values)
            elif isinstance(form, Outer):
                self.kinds[name] |= OUTER
                is_live = form.left.ne(0).any(2)
                self._add(name, 0, form.left[is_live])
                self._add(name, 1, form.right[is_live])
            else:
                self.kinds[name] |= WRITTEN_OUT

    def _add(self, name: str, side: int, lines: Tensor) -> None:
        if self._shapes[name][side] > LARGEST_SIDE:
            return
        lines = lines.to(wide_type(lines.dtype))
        product = lines.T @ lines
        self._sums[name, side] = self._sums[name, side] + product if (name, side) in self._sums else product

    def of(self, name: str, side: int) -> Tensor | None:
        """The sum of a parameter's rows (side 0: output gradients) or columns (side 1: inputs), on the CPU.

        None if the side is too long to have one; zeros if nothing was added.
        """
        size = self._shapes[name][side]
        if size > LARGEST_SIDE:
            return None
        found = self._sums.get((name, side))
        return torch.zeros(size, size) if found is None else found.cpu()


def eigenvectors(covariance: Tensor) -> Tensor:
    """The eigenvectors of a covariance, one in each column, computed in double precision.

    Example:
        >>> eigenvectors(torch.tensor([[1.0, 0.0], [0.0, 2.0]])).abs().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    vectors: Tensor = torch.linalg.eigh(covariance.double()).eigenvectors
    return vectors.to(covariance.dtype)
