"""Inner products of single samples' gradients with a few vectors, such as updates of the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_tracin.gradients.forms import Dense, Form, Outer, samples_of
from lightning_tracin.gradients.group_vectors import GroupVectors

#: Elements of gradients that are written out at a time (2 MB in float32): they are multiplied while they are in a core's cache.
_TILE = 500_000


def vector_products(forms: Sequence[Form], vectors: Sequence[GroupVectors | None], name: str) -> Tensor:
    """Inner products of one parameter's gradients with vectors of its shape.

    Args:
        forms: the samples' gradients, whose sum counts.
        vectors: hold the vectors; None is zero.
        name: of the vector in each.

    Returns:
        [samples, vectors], float64.

    Example:
        >>> vectors = GroupVectors((1, 2), torch.float32, torch.device("cpu"), is_table=False)
        >>> vectors.add("total", torch.tensor([[1.0, 2.0]]))
        >>> vector_products([Dense(torch.tensor([[3.0, 4.0]]))], [vectors, None], "total").tolist()
        [[11.0, 0.0]]
    """
    samples = samples_of(forms[0])
    known = [place for place, one in enumerate(vectors) if one is not None and name in one]
    found = torch.zeros(samples, len(vectors), dtype=torch.float64)
    if not known:
        return found
    chosen = [one for one in vectors if one is not None and name in one]
    dense: list[Tensor] | None = None
    for form in forms:
        if isinstance(form, Dense | Outer):
            dense = [one.dense(name) for one in chosen] if dense is None else dense
            found[:, known] += written_products(form, dense).double().cpu()
            continue
        for place, one in zip(known, chosen, strict=True):
            each = (form.values * one.at_rows(name, form.row).to(form.values)).sum(1).double()
            found[:, place] += (
                torch.zeros(samples, dtype=torch.float64, device=each.device).index_add_(0, form.sample, each).cpu()
            )
    return found


def written_products(form: Dense | Outer, vectors: Sequence[Tensor] | Tensor) -> Tensor:
    """Products with gradients that are written out tile by tile: [samples, vectors].

    Args:
        form: the samples' gradients.
        vectors: each of the parameter's shape, or flat.
    """
    if isinstance(form, Dense):
        values = form.values.reshape(len(form.values), -1)
        return values @ torch.stack([one.reshape(-1) for one in vectors]).to(values).T
    samples, positions, rows = form.left.shape
    columns = form.right.shape[2]
    shaped = [one.reshape(rows, columns) for one in vectors]
    if positions * len(shaped) < rows * columns // max(1, rows + columns):  # few positions: products of factors are shorter
        left = form.left.flatten(0, 1)
        found = [((left @ one.to(left)).view(samples, positions, columns) * form.right).sum((1, 2)) for one in shaped]
        return torch.stack(found, 1)
    total, left, right = form.left.new_zeros(samples, len(shaped)), form.left, form.right
    if columns > rows:  # tiles of short rows are larger matrices
        left, right, rows, columns = right, left, columns, rows
        shaped = [one.T for one in shaped]
    at_once = max(1, _TILE // (samples * columns))
    for at in range(0, rows, at_once):
        some = slice(at, at + at_once)
        tile = torch.bmm(left[:, :, some].transpose(1, 2), right).flatten(1)
        total += tile @ torch.stack([one[some] for one in shaped]).flatten(1).to(tile).T
    return total
