"""The forms in which the per-sample gradients of one parameter are held.

A layer's gradient is rarely worth writing out: a Linear's is a sum of outer products, an Embedding's is a few rows of a
table. A gradient here is a *tuple* of forms, and its value is their sum. So a parameter with several uses (a head tied to the
embedding) keeps each use in its own form. Inner products are bilinear, so cross terms are products of forms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True)
class Dense:
    """Gradients written out in full.

    Example:
        >>> to_dense(Dense(torch.tensor([[1.0, 2.0]]))).tolist()
        [[1.0, 2.0]]
    """

    values: Tensor  # [samples, elements]


@dataclass(frozen=True)
class Outer:
    """Sums of outer products: the gradient of sample i is ``sum over t of left[i, t] (x) right[i, t]``.

    Example:
        >>> form = Outer(left=torch.tensor([[[1.0, 2.0]]]), right=torch.tensor([[[3.0, 4.0]]]))
        >>> to_dense(form).view(2, 2).tolist()
        [[3.0, 4.0], [6.0, 8.0]]
    """

    left: Tensor  # [samples, positions, rows of the parameter]
    right: Tensor  # [samples, positions, columns of the parameter]


@dataclass(frozen=True)
class Rows:
    """Some rows of a table: ``values[r]`` belongs to row ``row[r]`` of the gradient of sample ``sample[r]``.

    Each (sample, row) pair occurs once, and pairs are in ascending order of (sample, row); `coalesced` ensures both.

    Example:
        >>> form = Rows(torch.tensor([0]), torch.tensor([2]), torch.tensor([[5.0, 6.0]]), samples=1, table=3)
        >>> to_dense(form).view(3, 2).tolist()
        [[0.0, 0.0], [0.0, 0.0], [5.0, 6.0]]
    """

    sample: Tensor  # [r], int64
    row: Tensor  # [r], int64
    values: Tensor  # [r, width]
    samples: int
    table: int  # number of rows of the whole table


Form: TypeAlias = Dense | Outer | Rows

#: Gradients of consecutive samples: index of the first sample, and the form.
Placed: TypeAlias = tuple[int, Form]


def coalesced(sample: Tensor, row: Tensor, values: Tensor, samples: int, table: int) -> Rows:
    """Rows in which values with the same (sample, row) are added up.

    Args:
        sample: [r] sample of each value.
        row: [r] row of the table of each value.
        values: [r, width].
        samples: number of samples.
        table: number of rows of the table.

    Example:
        >>> rows = coalesced(torch.tensor([0, 0]), torch.tensor([3, 3]), torch.tensor([[1.0], [2.0]]), samples=1, table=4)
        >>> rows.row.tolist(), rows.values.tolist()
        ([3], [[3.0]])
    """
    keys, order = torch.sort(sample * table + row, stable=True)
    pairs, counts = torch.unique_consecutive(keys, return_counts=True)
    summed = torch.nn.functional.embedding_bag(order, values, counts.cumsum(0) - counts, mode="sum")
    return Rows(pairs // table, pairs % table, summed, samples, table)


def sum_of_rows(rows: Sequence[Rows]) -> Rows:
    """The sum of several uses of one table by the same samples.

    Example:
        >>> one = coalesced(torch.tensor([0]), torch.tensor([1]), torch.tensor([[2.0]]), samples=1, table=3)
        >>> sum_of_rows([one, one]).values.tolist()
        [[4.0]]
    """
    joined = side_by_side([(0, form) for form in rows], rows[0].samples)
    return coalesced(joined.sample, joined.row, joined.values, joined.samples, joined.table)


def side_by_side(pieces: Sequence[tuple[int, Rows]], samples: int) -> Rows:
    """Join pieces, each with the index of its first sample and in order of the samples, into rows of all samples."""
    return Rows(
        torch.cat([form.sample + at for at, form in pieces]),
        torch.cat([form.row for _, form in pieces]),
        torch.cat([form.values for _, form in pieces]),
        samples,
        pieces[0][1].table,
    )


def some_rows(rows: Rows, start: int, stop: int) -> Rows:
    """The rows of the samples from `start` up to `stop`."""
    chosen = (rows.sample >= start) & (rows.sample < stop)
    return Rows(rows.sample[chosen] - start, rows.row[chosen], rows.values[chosen], stop - start, rows.table)


def joined_outer(pieces: Sequence[tuple[int, Outer]], samples: int) -> Outer:
    """Join pieces, each with the index of its first sample, into one form; positions that a piece lacks are zero."""
    positions = max(form.left.shape[1] for _, form in pieces)
    first = pieces[0][1]
    left = first.left.new_zeros(samples, positions, first.left.shape[2])
    right = first.right.new_zeros(samples, positions, first.right.shape[2])
    for at, form in pieces:
        count, width = form.left.shape[:2]
        left[at : at + count, :width] = form.left
        right[at : at + count, :width] = form.right
    return Outer(left, right)


def scaled_rows(rows: Rows, scale: Tensor) -> Rows:
    """Rows multiplied elementwise by a scale of the parameter's shape.

    Example:
        >>> rows = coalesced(torch.tensor([0]), torch.tensor([1]), torch.tensor([[2.0]]), samples=1, table=3)
        >>> scaled_rows(rows, torch.tensor([[10.0], [100.0], [1000.0]])).values.tolist()
        [[200.0]]
    """
    return replace(rows, values=rows.values * scale.reshape(rows.table, -1)[rows.row])


def add_rows(rows: Rows, out: Tensor, shape: tuple[int, int]) -> None:
    """Add rows of a table to gradients that are written out in the order of `wide_side_first`: out [samples, elements]."""
    table_of(out, shape, rows.table)[rows.sample, rows.row] += rows.values  # each (sample, row) pair occurs once


def table_of(lines: Tensor, shape: tuple[int, int], rows: int) -> Tensor:
    """View gradients in the order of `wide_side_first`, [samples, elements], as the parameter: [samples, rows, columns].

    Args:
        lines: the gradients.
        shape: the shape by which they were ordered, which is (elements, 1) if only dense gradients were seen (`shape_of`).
        rows: number of rows of the parameter.

    Example:
        >>> table_of(torch.tensor([[1, 4, 2, 5, 3, 6]]), shape=(2, 3), rows=2).tolist()
        [[[1, 2, 3], [4, 5, 6]]]
    """
    swapped = shape[1] > shape[0]
    return lines.view(len(lines), -1, rows).transpose(1, 2) if swapped else lines.view(len(lines), rows, -1)


def to_dense(form: Form) -> Tensor:
    """The gradients written out: [samples, elements]."""
    if isinstance(form, Dense):
        return form.values
    if isinstance(form, Outer):
        return torch.bmm(form.left.transpose(1, 2), form.right).flatten(1)
    full = form.values.new_zeros(form.samples, form.table, form.values.shape[1])
    full[form.sample, form.row] = form.values
    return full.flatten(1)


def wide_side_first(form: Dense | Outer, shape: tuple[int, int]) -> Dense | Outer:
    """The gradients of a parameter, or of its transpose if the parameter has more columns than rows.

    A tile is a number of whole rows. Tiles of long columns and short rows are larger matrices, whose products are faster. The
    order of the elements does not change inner products.

    Args:
        form: the gradients.
        shape: rows and columns of the parameter.

    Example:
        >>> wide_side_first(Dense(torch.tensor([[1, 2, 3, 4, 5, 6]])), shape=(2, 3)).values.tolist()
        [[1, 4, 2, 5, 3, 6]]
    """
    if shape[0] >= shape[1]:
        return form
    if isinstance(form, Outer):
        return Outer(form.right, form.left)
    return Dense(form.values.reshape(-1, *shape).transpose(1, 2).flatten(1))


def write_out(form: Dense | Outer, elements: slice, out: Tensor) -> None:
    """Write some elements of the gradients to `out`.

    Args:
        form: the gradients.
        elements: which elements; for outer products, whole rows of the parameter.
        out: [samples, elements], each line contiguous.
    """
    if isinstance(form, Dense):
        out.copy_(form.values[:, elements])
        return
    columns = form.right.shape[2]
    rows = slice(elements.start // columns, elements.stop // columns)
    torch.bmm(form.left.transpose(1, 2)[:, rows], form.right, out=out.view(len(out), -1, columns))


def shape_of(form: Form) -> tuple[int, int]:
    """Rows and columns of the parameter; dense gradients know only the number of elements, so they count as one column."""
    if isinstance(form, Outer):
        return form.left.shape[2], form.right.shape[2]
    return (form.values.shape[1], 1) if isinstance(form, Dense) else (form.table, form.values.shape[1])


def whole(forms: Sequence[Form]) -> Dense | Outer:
    """The sum of the forms as one form that can be written out tile by tile."""
    if len(forms) == 1 and not isinstance(forms[0], Rows):
        return forms[0]
    return Dense(reduce(torch.add, map(to_dense, forms)))


def merged(forms: Sequence[Form]) -> tuple[Form, ...]:
    """The same sum with at most one form of each kind.

    Example:
        >>> merged([Dense(torch.tensor([[1.0]])), Dense(torch.tensor([[2.0]]))])
        (Dense(values=tensor([[3.]])),)
    """
    dense = [form for form in forms if isinstance(form, Dense)]
    outer = [form for form in forms if isinstance(form, Outer)]
    rows = [form for form in forms if isinstance(form, Rows)]
    if len(outer) > 1:
        outer = [Outer(torch.cat([form.left for form in outer], 1), torch.cat([form.right for form in outer], 1))]
    if len(rows) > 1:
        rows = [sum_of_rows(rows)]
    return (*([whole(dense)] if dense else []), *outer, *rows)


def split(forms: Sequence[Form]) -> tuple[list[Dense | Outer], list[Rows]]:
    """Separate the forms that can be written out tile by tile from rows of a table."""
    return [form for form in forms if not isinstance(form, Rows)], [form for form in forms if isinstance(form, Rows)]


def samples_of(form: Form) -> int:
    """Number of samples."""
    return form.samples if isinstance(form, Rows) else len(form.left if isinstance(form, Outer) else form.values)


def tensor_of(forms: Sequence[Form]) -> Tensor:
    """One of the forms' tensors, for its data type and device."""
    return forms[0].left if isinstance(forms[0], Outer) else forms[0].values


def tensors(forms: Sequence[Form]) -> list[Tensor]:
    """All tensors that the forms hold."""
    return [value for form in forms for value in vars(form).values() if isinstance(value, Tensor)]
