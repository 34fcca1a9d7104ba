"""Inner products of single samples' gradients with a few vectors, such as updates of the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_tracin.gradients.forms import Dense, Form, Outer, samples_of
from lightning_tracin.gradients.group_vectors import GroupVectors

#: Elements of gradients that are written out at a time.
_WRITTEN = 16_000_000


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
    dense: Tensor | None = None
    for form in forms:
        if isinstance(form, Dense | Outer):
            if dense is None:
                like = form.values if isinstance(form, Dense) else form.left
                dense = torch.stack([one.dense(name).reshape(-1) for one in chosen]).to(like)
            found[:, known] += written_products(form, dense).double().cpu()
            continue
        for place, one in zip(known, chosen, strict=True):
            each = (form.values * one.at_rows(name, form.row).to(form.values)).sum(1).double()
            found[:, place] += (
                torch.zeros(samples, dtype=torch.float64, device=each.device).index_add_(0, form.sample, each).cpu()
            )
    return found


def written_products(form: Dense | Outer, vectors: Tensor) -> Tensor:
    """Products with gradients that are written out, some samples at a time: [samples, vectors]."""
    if isinstance(form, Dense):
        return form.values.reshape(len(form.values), -1) @ vectors.T
    samples, positions, rows = form.left.shape
    columns = form.right.shape[2]
    if positions * len(vectors) < rows * columns // max(1, rows + columns):  # few positions: products of factors are shorter
        left = form.left.flatten(0, 1)
        found = [((left @ one.view(rows, columns)).view(samples, positions, columns) * form.right).sum((1, 2)) for one in vectors]
        return torch.stack(found, 1)
    at_once = max(1, _WRITTEN // (rows * columns))
    pieces = [
        torch.bmm(form.left[at : at + at_once].transpose(1, 2), form.right[at : at + at_once]).flatten(1) @ vectors.T
        for at in range(0, samples, at_once)
    ]
    return torch.cat(pieces)
