"""The forms in which the per-sample gradients of one parameter are held.

A layer's gradient is rarely worth writing out: a Linear's is a sum of outer products, an Embedding's is a few rows of a
table. A gradient here is a *tuple* of forms whose sum it is, so that a parameter with several uses (a head tied to the
embedding) keeps each use in its own form; inner products are bilinear, so the cross terms are products of forms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor


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

#: Gradients of some samples among others: the first of these, and the form.
Placed: TypeAlias = tuple[int, Form]


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


def side_by_side(pieces: Sequence[tuple[int, Rows]], samples: int) -> Rows:
    """Rows of pieces of samples, in order, as rows of all samples: (first sample of the piece, its rows)."""
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
    """Pieces of samples as one form of all of them; positions that a piece lacks are zero."""
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
    """Rows multiplied elementwise with those of a table of the parameter's shape."""
    return replace(rows, values=rows.values * scale.reshape(rows.table, -1)[rows.row])


def add_rows(rows: Rows, out: Tensor, shape: tuple[int, int]) -> None:
    """Add rows of a table to gradients that are written out in the order of `wide_side_first`: out [samples, elements]."""
    swapped = shape[1] > shape[0]
    table = out.view(len(out), *shape[::-1]).transpose(1, 2) if swapped else out.view(len(out), rows.table, -1)
    table[rows.sample, rows.row] += rows.values  # no (sample, row) pair occurs twice


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

    Written out by rows, a parameter with short rows comes in larger matrices, whose products are faster. Inner products are the
    same in either order.

    Args:
        form: the gradients.
        shape: rows and columns of the parameter.
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
        elements: which of them; for outer products whole rows of the parameter.
        out: [samples, elements], every line of it contiguous.
    """
    if isinstance(form, Dense):
        out.copy_(form.values[:, elements])
        return
    columns = form.right.shape[2]
    rows = slice(elements.start // columns, elements.stop // columns)
    torch.bmm(form.left.transpose(1, 2)[:, rows], form.right, out=out.view(len(out), -1, columns))


def shape_of(form: Form) -> tuple[int, int]:
    """Rows and columns of the parameter; gradients that are written out tell the number of elements only."""
    if isinstance(form, Outer):
        return form.left.shape[2], form.right.shape[2]
    return (form.values.shape[1], 1) if isinstance(form, Dense) else (form.table, form.values.shape[1])


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


def split(forms: Sequence[Form]) -> tuple[list[Dense | Outer], list[Rows]]:
    """The forms that can be written out tile by tile, and the rows of a table."""
    return [form for form in forms if not isinstance(form, Rows)], [form for form in forms if isinstance(form, Rows)]


def samples_of(form: Form) -> int:
    """Number of samples."""
    return form.samples if isinstance(form, Rows) else len(form.left if isinstance(form, Outer) else form.values)


def tensor_of(forms: Sequence[Form]) -> Tensor:
    """A tensor of the forms' data type and device."""
    return forms[0].left if isinstance(forms[0], Outer) else forms[0].values


def tensors(forms: Sequence[Form]) -> list[Tensor]:
    """The tensors that forms hold."""
    return [value for form in forms for value in vars(form).values() if isinstance(value, Tensor)]
