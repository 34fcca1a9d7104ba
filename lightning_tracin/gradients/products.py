"""Inner products of per-sample gradients of one parameter, for every pair of forms.

`dots` multiplies two sets of samples, `squared_norms` each sample with itself. Both sum over the pairs of forms, so they are
exact for parameters with several uses.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from lightning_tracin.gradients.forms import Dense, Form, Outer, Rows, to_dense
from lightning_tracin.gradients.onednn import LINES, onednn_product, suits_onednn

#: A row of a table that at least this fraction of all (sample, probe) pairs share is multiplied as a matrix; other rows are
#: multiplied pair by pair. Matrix products are about ten times more efficient than gathered products.
_SHARED_ENOUGH = 0.1

#: Largest number of elements in one block of products or gathered rows, which bounds its memory: 16 MB in float32. On an
#: accelerator, which is slow to start on a block, it is larger.
BLOCK, _ACCELERATOR_BLOCK = 4_000_000, 16_000_000

#: The same where pairs of rows are gathered on the CPU: in a core's own cache that is several times as fast.
_PAIRS = 500_000

#: Elements of shared rows, over all samples of the larger side, that one matrix product adds up.
_SHARED = 16_000_000

#: Elements of a line that are added up in one sum.
_LINE = 65_536


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """The type in which products are added up: at least single precision, because half precision would lose small products.

    Example:
        >>> wide_type(torch.bfloat16), wide_type(torch.float64)
        (torch.float32, torch.float64)
    """
    return torch.promote_types(dtype, torch.float32)


def dots(left: Sequence[Form], right: Sequence[Form]) -> Tensor:
    """All inner products of two sets of gradients of one parameter: [samples, probes], in `wide_type`.

    Raises:
        ValueError: one of the sets has no form.

    Example:
        >>> one = (Dense(torch.tensor([[1.0, 2.0], [0.0, 3.0]])),)
        >>> dots(one, (Outer(left=torch.tensor([[[1.0], [1.0]]]), right=torch.tensor([[[4.0, 0.0], [0.0, 5.0]]])),)).tolist()
        [[14.0], [15.0]]
    """
    if not left or not right:
        raise ValueError("A gradient without forms has no inner product.")
    return reduce(Tensor.add_, (_pair(a, b) for a in left for b in right))


def block_on(device: torch.device) -> int:
    """The largest number of elements of a block on this device, apart from a single line that is longer.

    Example:
        >>> block_on(torch.device("cpu"))
        4000000
    """
    return BLOCK if device.type == "cpu" else _ACCELERATOR_BLOCK


def squares(lines: Tensor) -> Tensor:
    """The squared norm of each line, without a squared copy of the lines: [lines], in `wide_type`.

    torch adds up a line with few accumulators, so a norm of a million elements in single precision has only four correct digits.

    Example:
        >>> squares(torch.tensor([[3.0, 4.0], [0.0, 2.0]])).tolist()
        [25.0, 4.0]
    """
    total = lines.new_zeros(len(lines), dtype=wide_type(lines.dtype))
    for block in torch.split(lines, _LINE, dim=1):
        total += torch.linalg.vector_norm(block, dim=1, dtype=total.dtype).square_()
    return total


def add_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a matrix product to `out`, whose type is the factors' type or its `wide_type`."""
    if suits_onednn(left, right):
        for columns in _columns_at_once(right):
            out[:, columns] += onednn_product(left, right[:, columns])
    elif out.dtype == left.dtype:
        out.addmm_(left, right)
    else:
        out += left @ right


def squared_norms(forms: Sequence[Form]) -> Tensor:
    """The squared norm of each sample's gradient: [samples], in `wide_type`.

    Raises:
        ValueError: there is no form.

    Example:
        >>> squared_norms((Dense(torch.tensor([[1.0, 2.0]])), Dense(torch.tensor([[2.0, 2.0]])))).tolist()  # of [3, 4]
        [25.0]
    """
    if not forms:
        raise ValueError("A gradient without forms has no norm.")
    pairs = itertools.combinations_with_replacement(forms, 2)
    return reduce(torch.add, (diagonal(a, b) if a is b else 2 * diagonal(a, b) for a, b in pairs))


def _pair(a: Form, b: Form) -> Tensor:
    if isinstance(a, Outer) and isinstance(b, Outer):
        return _outer_outer(a, b)
    if isinstance(a, Rows) and isinstance(b, Rows):
        return _rows_rows(a, b)
    if isinstance(a, Dense):
        return (a.values @ b.values.T).to(wide_type(a.values.dtype)) if isinstance(b, Dense) else _dense_other(a, b)
    if isinstance(a, Rows) and isinstance(b, Outer):
        return _rows_outer(a, b)
    return _pair(b, a).T.contiguous()


def _columns_at_once(right: Tensor) -> list[slice]:
    """Columns that oneDNN multiplies at a time: those of a strided matrix are copied, all of which could take any memory."""
    length, columns = right.shape
    step = columns if right.T.is_contiguous() else max(LINES, BLOCK // length)
    return [slice(at, min(at + step, columns)) for at in range(0, columns, step)]


def _at_once(factors: Tensor) -> int:
    """Samples of some factors, [samples, positions, width], that fill a block."""
    return max(1, block_on(factors.device) // max(1, factors.shape[1] * factors.shape[2]))


def _dense_other(a: Dense, b: Outer | Rows) -> Tensor:
    """Products of dense gradients with others, one sample of `a` at a time: [samples of a, samples of b]."""
    lines = []
    for values in a.values:
        wide = wide_type(values.dtype)
        if isinstance(b, Rows):
            table = values.view(b.table, -1)
            step = max(1, block_on(values.device) // table.shape[1])
            some = zip(torch.split(b.row, step), torch.split(b.values, step), strict=True)
            products = torch.cat([(table[row] * mine).sum(1, dtype=wide) for row, mine in some])
            lines.append(products.new_zeros(b.samples).index_add_(0, b.sample, products))
        else:
            matrix = values.view(b.left.shape[2], b.right.shape[2])
            step = _at_once(b.right)
            pieces = zip(torch.split(b.left, step), torch.split(b.right, step), strict=True)
            lines.append(torch.cat([((left @ matrix) * right).sum((1, 2), dtype=wide) for left, right in pieces]))
    return torch.stack(lines)


def _outer_outer(a: Outer, b: Outer) -> Tensor:
    """``sum over t, s of (left_t . left'_s) (right_t . right'_s)``, in blocks of samples of `a`, or of `b` beside one of `a`."""
    samples, positions, _ = a.left.shape
    probes, others, _ = b.left.shape
    if positions == 0 or others == 0:  # no sample's loss depends on this layer
        return a.left.new_zeros(samples, probes, dtype=wide_type(a.left.dtype))
    left, right = b.left.flatten(0, 1).T, b.right.flatten(0, 1).T
    if positions == 1 and others == 1:
        return (a.left[:, 0] @ left).mul_(a.right[:, 0] @ right).to(wide_type(a.left.dtype))
    out = a.left.new_empty(samples, probes, dtype=wide_type(a.left.dtype))
    block = block_on(left.device)
    step, most = max(1, block // (positions * probes * others)), max(1, block // (positions * others))
    for at, first in itertools.product(range(0, samples, step), range(0, probes, most)):
        mine, theirs = slice(at, at + step), slice(first * others, (first + most) * others)
        product = (a.left[mine].flatten(0, 1) @ left[:, theirs]).mul_(a.right[mine].flatten(0, 1) @ right[:, theirs])
        pairs = product.view(-1, positions, product.shape[1] // others, others)
        out[mine, first : first + most] = pairs.sum((1, 3), dtype=out.dtype)
    return out


def _rows_outer(a: Rows, b: Outer) -> Tensor:
    """``sum over rows r of sample i and positions s of left'_s[row_r] (values_r . right'_s)``: [samples of a, samples of b]."""
    probes, others, _ = b.left.shape
    left, right = b.left.flatten(0, 1), b.right.flatten(0, 1).T
    out = a.values.new_zeros(a.samples, probes, dtype=wide_type(a.values.dtype))
    if others == 0:  # no probe's loss depends on this layer
        return out
    step = max(1, block_on(left.device) // (probes * others))
    for at in range(0, len(a.row), step):
        stop = at + step
        product = (a.values[at:stop] @ right).mul_(left[:, a.row[at:stop]].T)
        out.index_add_(0, a.sample[at:stop], product.view(-1, probes, others).sum(2, dtype=out.dtype))
    return out


def _rows_rows(a: Rows, b: Rows) -> Tensor:
    """Join on the table's rows, because only rows that both sides have contribute: [samples of a, samples of b]."""
    out = a.values.new_zeros(a.samples * b.samples, dtype=wide_type(a.values.dtype))
    in_a, in_b = torch.bincount(a.row, minlength=a.table), torch.bincount(b.row, minlength=a.table)
    pairs = in_a * in_b
    common = pairs >= max(1, int(_SHARED_ENOUGH * a.samples * b.samples))
    rare = (pairs > 0) & ~common
    shared = common.nonzero()[:, 0]
    width = a.values.shape[1]
    step = max(1, _SHARED // (max(a.samples, b.samples) * width))
    for start in range(0, len(shared), step):
        chosen = shared[start : start + step]
        most = max(LINES, block_on(out.device) // (len(chosen) * width))  # samples at a time
        for at in range(0, a.samples, most):
            mine, lines = _gathered(a, chosen, at, most), out.view(a.samples, b.samples)[at : at + most]
            for first in range(0, b.samples, most):
                add_product(lines[:, first : first + most], mine, _gathered(b, chosen, first, most).T)
    if bool(rare.any()):
        _add_pairs(out, a, b, rare, in_b)
    return out.view(a.samples, b.samples)


def _gathered(rows: Rows, chosen: Tensor, first: int, most: int) -> Tensor:
    """The chosen rows of up to `most` samples side by side, zero where a sample lacks one: [samples, chosen * width]."""
    count = min(most, rows.samples - first)
    start, stop = 0, len(rows.row)
    if count < rows.samples:
        edges = torch.tensor([first, first + count], device=rows.sample.device)
        start, stop = torch.searchsorted(rows.sample, edges).tolist()
    place = torch.full((rows.table,), -1, dtype=torch.long, device=chosen.device)
    place[chosen] = torch.arange(len(chosen), device=chosen.device)
    column = place[rows.row[start:stop]]
    has = (column >= 0).nonzero()[:, 0]
    full = rows.values.new_zeros(count * len(chosen), rows.values.shape[1])
    full[(rows.sample[start + has] - first) * len(chosen) + column[has]] = rows.values[start + has]
    return full.view(count, -1)


def _add_pairs(out: Tensor, a: Rows, b: Rows, wanted: Tensor, in_b: Tensor) -> None:
    """Add to `out` the product of every entry of `a` with every entry of `b` in the same table row, for the wanted rows."""
    from_a = wanted[a.row].nonzero()[:, 0]
    from_b = wanted[b.row].nonzero()[:, 0]
    from_b = from_b[torch.argsort(b.row[from_b], stable=True)]
    first = torch.zeros_like(in_b)
    counts = in_b * wanted
    first[1:] = counts.cumsum(0)[:-1]
    repeats = counts[a.row[from_a]]
    step = max(1, (_PAIRS if out.device.type == "cpu" else _ACCELERATOR_BLOCK) // a.values.shape[1])
    for at, stop in _spans(repeats, step):
        chosen, times = from_a[at:stop], repeats[at:stop]
        i = chosen.repeat_interleave(times)
        start = (times.cumsum(0) - times).repeat_interleave(times)
        j = from_b[first[a.row[i]] + torch.arange(len(i), device=i.device) - start]
        out.index_add_(0, a.sample[i] * b.samples + b.sample[j], (a.values[i] * b.values[j]).sum(1, dtype=out.dtype))


def _spans(sizes: Tensor, most: int) -> list[tuple[int, int]]:
    """Split `sizes` into consecutive spans that each sum to about `most` (a single larger entry is a span of its own)."""
    block = (sizes.cumsum(0) - sizes) // most
    edges = [0, *((block[1:] != block[:-1]).nonzero()[:, 0] + 1).tolist(), len(sizes)]
    return [(at, stop) for at, stop in itertools.pairwise(edges) if stop > at]


def diagonal(a: Form, b: Form) -> Tensor:
    """The inner product of each sample's two forms: [samples].

    Example:
        >>> diagonal(Dense(torch.tensor([[1.0, 2.0]])), Outer(torch.tensor([[[3.0]]]), torch.tensor([[[4.0, 5.0]]]))).tolist()
        [42.0]
    """
    if isinstance(a, Dense) and a is b:
        return squares(a.values)
    if isinstance(b, Rows) and not isinstance(a, Rows):
        a, b = b, a
    if isinstance(a, Rows) and (a is b or not isinstance(b, Rows)):
        return _rows_diagonal(a, b)
    if isinstance(a, Outer) and isinstance(b, Outer):
        positions, rows, columns = a.left.shape[1], a.left.shape[2], a.right.shape[2]
        if positions * (rows + columns) < rows * columns:
            inner: Tensor = torch.bmm(a.left, b.left.transpose(1, 2)).mul_(torch.bmm(a.right, b.right.transpose(1, 2)))
            return inner.sum((1, 2), dtype=wide_type(inner.dtype))
    one, other = to_dense(a), to_dense(b)
    return (one * other).sum(1, dtype=wide_type(one.dtype))


def _rows_diagonal(a: Rows, b: Form) -> Tensor:
    """The inner product of each sample's rows with its dense or outer form, or with the same rows."""
    if isinstance(b, Outer):
        heads = b.left[a.sample, :, a.row]  # [r, positions]
        step = _at_once(b.right)
        some = zip(torch.split(a.values, step), torch.split(a.sample, step), strict=True)
        products = heads * torch.cat([torch.einsum("rw,rpw->rp", values, b.right[sample]) for values, sample in some])
    elif isinstance(b, Dense):
        products = a.values * b.values.reshape(len(b.values), a.table, -1)[a.sample, a.row]
    else:
        products = a.values.square()
    summed = products.sum(1, dtype=wide_type(products.dtype))
    return summed.new_zeros(a.samples).index_add_(0, a.sample, summed)
