"""The forms in which the per-sample gradients of one parameter are held.

A layer's gradient is rarely worth writing out: a Linear's is a sum of outer products, an Embedding's is a few rows of a
table. A gradient here is a *tuple* of forms whose sum it is, so that a parameter with several uses (a head tied to the
embedding) keeps each use in its own form; inner products are bilinear, so the cross terms are products of forms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

#: Elements of a piece of per-sample gradients that should stay in cache (2 MB in float32).
_TILE = 500_000


@dataclass(frozen=True)
class Dense:
    """The gradients themselves."""

    values: Tensor  # [samples, elements]


@dataclass(frozen=True)
class Outer:
    """Sums of outer products: the gradient of sample i is ``sum over t of left[i, t] (x) right[i, t]``."""

    left: Tensor  # [samples, positions, rows of the parameter]
    right: Tensor  # [samples, positions, columns of the parameter]


@dataclass(frozen=True)
class Rows:
    """Some rows of a table: ``values[r]`` belongs to row ``row[r]`` of the gradient of sample ``sample[r]``.

    No (sample, row) pair occurs twice, and pairs are in ascending order of (sample, row): `coalesced` makes it so.
    """

    sample: Tensor  # [r], int64
    row: Tensor  # [r], int64
    values: Tensor  # [r, width]
    samples: int
    table: int  # number of rows of the whole table


Form: TypeAlias = Dense | Outer | Rows


def coalesced(sample: Tensor, row: Tensor, values: Tensor, samples: int, table: int) -> Rows:
    """Rows in which values of equal (sample, row) are added up.

    Args:
        sample: [r] sample of each value.
        row: [r] row of the table of each value.
        values: [r, width].
        samples: number of samples.
        table: number of rows of the table.
    """
    keys, order = torch.sort(sample * table + row, stable=True)
    pairs, counts = torch.unique_consecutive(keys, return_counts=True)
    summed = torch.nn.functional.embedding_bag(order, values, counts.cumsum(0) - counts, mode="sum")
    return Rows(pairs // table, pairs % table, summed, samples, table)


def to_dense(form: Form) -> Tensor:
    """The gradients written out: [samples, elements]."""
    if isinstance(form, Dense):
        return form.values
    if isinstance(form, Outer):
        return torch.bmm(form.left.transpose(1, 2), form.right).flatten(1)
    full = form.values.new_zeros(form.samples, form.table, form.values.shape[1])
    full[form.sample, form.row] = form.values
    return full.flatten(1)


def tiles(form: Dense | Outer) -> Iterator[tuple[slice, Tensor]]:
    """The gradients written out piece by piece: which elements, and their values [samples, elements of the piece].

    A piece of outer products stays in the processor's cache until it is used: writing all of a batch's gradients to memory and
    reading them back would take longer than the products with them.
    """
    if isinstance(form, Dense):
        yield slice(0, form.values.shape[1]), form.values
        return
    samples, _, rows = form.left.shape
    columns = form.right.shape[2]
    left = form.left.transpose(1, 2).contiguous()
    step = max(1, _TILE // (samples * columns))
    for at in range(0, rows, step):
        tile = torch.bmm(left[:, at : at + step], form.right).flatten(1)
        yield slice(at * columns, at * columns + tile.shape[1]), tile


def elements(form: Dense | Outer) -> int:
    """Number of elements of the parameter."""
    return form.values.shape[1] if isinstance(form, Dense) else form.left.shape[2] * form.right.shape[2]


def whole(forms: Sequence[Form]) -> Dense | Outer:
    """The sum as one form that can be written out piece by piece."""
    if len(forms) == 1 and not isinstance(forms[0], Rows):
        return forms[0]
    total = to_dense(forms[0])
    for form in forms[1:]:
        total = total + to_dense(form)
    return Dense(total)


def merged(forms: list[Form]) -> tuple[Form, ...]:
    """The same sum with at most one form of each kind."""
    dense: list[Form] = [form for form in forms if isinstance(form, Dense)]
    outer = [form for form in forms if isinstance(form, Outer)]
    rows = [form for form in forms if isinstance(form, Rows)]
    out: list[Form] = []
    if dense:
        out.append(whole(dense))
    if len(outer) > 1:
        out.append(Outer(torch.cat([form.left for form in outer], 1), torch.cat([form.right for form in outer], 1)))
    else:
        out.extend(outer)
    if len(rows) > 1:
        out.append(
            coalesced(
                torch.cat([form.sample for form in rows]),
                torch.cat([form.row for form in rows]),
                torch.cat([form.values for form in rows]),
                rows[0].samples,
                rows[0].table,
            )
        )
    else:
        out.extend(rows)
    return tuple(out)
