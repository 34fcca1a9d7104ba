"""Sparse gradients of embedding tables: one sample has few of 250,000 rows, and a dense gradient would be as large as the table.

A sparse gradient is a coalesced `torch.sparse_coo` tensor with one sparse dimension, the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def sparse_tables(model: nn.Module) -> Iterator[None]:
    """Inside, torch computes sparse gradients of embedding tables, where it can.

    Example:
        >>> table = nn.Embedding(1000, 2)
        >>> with sparse_tables(table):
        ...     table(torch.tensor([5, 7])).sum().backward()
        >>> table.weight.grad.coalesce().indices().tolist()
        [[5, 7]]
    """
    changed = [
        module
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        and not (module.sparse or module.scale_grad_by_freq)
        and "weight" in module._parameters
        and module.weight.device.type in ("cpu", "cuda")
    ]
    try:
        for module in changed:
            module.sparse = True
        yield
    finally:
        for module in changed:
            module.sparse = False


def plus(one: Tensor, other: Tensor) -> Tensor:
    """The sum of two gradients of a parameter, either of which may be sparse.

    Example:
        >>> sparse = torch.tensor([[0.0], [2.0]]).to_sparse(1)
        >>> plus(sparse, torch.ones(2, 1)).tolist(), plus(sparse, sparse).to_dense().tolist()
        ([[1.0], [3.0]], [[0.0], [4.0]])
    """
    if one.is_sparse and other.is_sparse:
        return (one + other).coalesce()
    return other + one if one.is_sparse else one + other


def scaled(gradient: Tensor, scale: Tensor) -> Tensor:
    """A gradient multiplied elementwise by a scale of its shape.

    Example:
        >>> scaled(torch.tensor([[0.0], [2.0]]).to_sparse(1), torch.tensor([[3.0], [4.0]])).to_dense().tolist()
        [[0.0], [8.0]]
    """
    if not gradient.is_sparse:
        return gradient * scale
    values = gradient.values() * scale[gradient.indices()[0]]
    return torch.sparse_coo_tensor(gradient.indices(), values, gradient.shape, is_coalesced=True, check_invariants=False)


def elements(gradient: Tensor) -> Tensor:
    """All elements of a gradient in one dimension; of a sparse one, those of its rows.

    Example:
        >>> elements(torch.tensor([[0.0, 0.0], [2.0, 3.0]]).to_sparse(1))
        tensor([2., 3.])
    """
    return (gradient.values() if gradient.is_sparse else gradient).flatten()


def elements_of_both(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """The elements of two gradients at the same places, without places where a sparse one has no row.

    Example:
        >>> sparse = torch.tensor([[0.0, 0.0], [2.0, 3.0]]).to_sparse(1)
        >>> elements_of_both(sparse, torch.tensor([[5.0, 6.0], [7.0, 8.0]]))
        (tensor([2., 3.]), tensor([7., 8.]))
    """
    if one.is_sparse and other.is_sparse:
        mine, theirs = one.indices()[0], other.indices()[0]  # sorted, each row once
        return one.values()[torch.isin(mine, theirs)].flatten(), other.values()[torch.isin(theirs, mine)].flatten()
    if one.is_sparse:
        return elements(one), other[one.indices()[0]].flatten()
    if other.is_sparse:
        return one[other.indices()[0]].flatten(), elements(other)
    return one.flatten(), other.flatten()
