"""How a bank holds one parameter's gradients of all probes, and how train samples are multiplied with them.

`hold` decides once for each parameter, after it has seen the gradients of all probes:

- `Factored` keeps outer products and rows of a table as they came. Products with them are cheap where a layer sees few
  positions, and a table is never written out.
- `Tiled` also keeps outer products, but writes them out tile by tile for every block of train samples. That costs about as much
  as reading whole gradients from memory, and many more probes fit into a budget.
- `Written` keeps one matrix of whole gradients, so that one matrix product covers all probes.

Each of them holds every probe, so no product can miss one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from lightning_tracin.gradients.forms import (
    Dense,
    Form,
    Outer,
    Placed,
    Rows,
    add_rows,
    joined_outer,
    samples_of,
    scaled_rows,
    shape_of,
    side_by_side,
    split,
    table_of,
    tensor_of,
    whole,
    wide_side_first,
    write_out,
)
from lightning_tracin.gradients.products import add_product, block_on, diagonal, dots, squared_norms, squares, wide_type
from lightning_tracin.gradients.tiles import Tileable, span, step_of, tiles

#: The gradients of one parameter, batch by batch: index of the batch's first sample, and its forms. Samples in no batch are zero.
Pieces: TypeAlias = Sequence[tuple[int, tuple[Form, ...]]]

#: Cost of the two elementwise passes over a product of factors, in multiplications per element.
_ELEMENTWISE = 256

#: Factors must be this many times smaller than the gradients to be held instead of them.
_SMALLER = 2

#: Elements of gradients that are written out at a time (32 MB in float32). A tile should stay in cache until it is multiplied:
#: much smaller tiles make slow products, much larger ones go to memory and back.
TILE = 8_000_000

#: With few probes a tile's product is short, so smaller tiles are faster: they stay in each core's own cache.
_FEW_PROBES, _SMALLER_TILE = 16, 1 / 16


class Holding(Protocol):
    """One parameter's gradients of all probes."""

    def multiply(self, train: Pieces, dot: Tensor, squared: Tensor) -> None:
        """Add this parameter's contribution to the ingredients of some train samples.

        Args:
            train: the samples' gradients, in order of the samples, not yet scaled.
            dot: [samples, probes], inner products, added to.
            squared: [samples], squared norms, added to.
        """


def compact(forms: tuple[Form, ...]) -> tuple[Form, ...]:
    """Write out the sum of several forms; a single form, and gradients with rows of a table, stay as they are.

    Example:
        >>> compact((Dense(torch.tensor([[1.0, 2.0]])), Outer(torch.tensor([[[1.0], [1.0]]]), torch.tensor([[[3.0, 4.0]] * 2]))))
        (Dense(values=tensor([[ 7., 10.]])),)
    """
    return forms if any(isinstance(form, Rows) for form in forms) else (whole(forms),)


def hold(pieces: Pieces, probes: int, scale: Tensor | None) -> Holding:
    """Decide how one parameter is held.

    Args:
        pieces: the gradients of all probes, made `compact`.
        probes: number of probes.
        scale: elementwise factor of the gradients, in the parameter's shape; None means 1.

    Example:
        >>> type(hold([(0, (Dense(torch.ones(2, 3)),))], probes=2, scale=None)).__name__
        'Written'
        >>> type(hold([(0, (Outer(torch.ones(2, 1, 300), torch.ones(2, 1, 300)),))], probes=2, scale=None)).__name__
        'Factored'
    """
    forms = [form for _, some in pieces for form in some]
    others, rows = split(forms)
    if rows and (scale is None or not others):
        return Factored.of(pieces, probes, scale)
    outer = [form for form in forms if isinstance(form, Outer)]
    if scale is None and len(outer) == len(forms):  # a scale is elementwise, so it cannot be applied to factors
        if _cheaper_factored(outer, probes):
            return Factored.of(pieces, probes, None)
        if _SMALLER * sum(map(_factors, outer)) <= sum(map(_elements, outer)):
            return Tiled.of(pieces, probes)
    return Written.of(pieces, probes, scale)


def most_bytes(forms: tuple[Form, ...], scaled: bool) -> int | None:
    """Upper bound on the bytes that a bank holds of these gradients; None means no more than the forms themselves."""
    if not scaled or all(isinstance(form, Rows) for form in forms):
        if any(isinstance(form, Rows) for form in forms):
            return None
        if len(forms) == 1 and isinstance(forms[0], Outer) and _SMALLER * _factors(forms[0]) <= _elements(forms[0]):
            return None
    return samples_of(forms[0]) * math.prod(shape_of(forms[0])) * tensor_of(forms).element_size()


def working_bytes(samples: int, probes: int, like: Tensor) -> int:
    """Upper bound on the bytes that one parameter's products take beside the gradients and the results.

    That is a tile and a copy of one, or three blocks of `products` and their indices, and the products before they are added to
    the others, at most three times. A single sample or probe whose own line is longer than a block is not counted.

    Args:
        samples: number of train samples in the block that is multiplied.
        probes: number of probes in the bank.
        like: a tensor of the gradients' type and device.

    Example:
        >>> working_bytes(samples=256, probes=1000, like=torch.ones(1))
        67072000
    """
    size = like.element_size()
    return max(2 * TILE, 4 * block_on(like.device)) * size + 3 * samples * probes * max(4, size)


def squared_norms_of(forms: tuple[Form, ...], scale: Tensor | None) -> Tensor:
    """Squared norms of gradients after scaling: [samples].

    Args:
        forms: the gradients, not yet scaled.
        scale: elementwise factor, in the parameter's shape; None means 1.

    Example:
        >>> squared_norms_of((Dense(torch.tensor([[1.0, 1.0]])),), scale=torch.tensor([3.0, 4.0])).tolist()
        [25.0]
    """
    if scale is None:
        return squared_norms(forms)
    scaled = _scaled(forms, scale)
    rest, rows = split(scaled)
    if not rest:
        return squared_norms(scaled)
    form = whole(rest)
    shape = shape_of(form)
    out = tensor_of(forms).new_zeros(samples_of(form), dtype=wide_type(tensor_of(forms).dtype))
    pieces = [(0, wide_side_first(form, shape))]
    for tile in tiles(pieces, step_of(pieces, len(out), TILE), _in_order(scale, shape)):
        out += squares(tile)
    return out + _norms_beside(form, rows, scale) if rows else out


@dataclass(frozen=True)
class Factored:
    """Forms kept as they came; the gradients are their sum."""

    forms: tuple[Placed, ...]  # index of the first probe, form; rows of a table are already scaled
    scale: Tensor | None

    @classmethod
    def of(cls, pieces: Pieces, probes: int, scale: Tensor | None) -> Factored:
        """Hold gradients as they came, but join batches with the same number of positions.

        Args:
            pieces: the gradients of all probes; if there is a scale, only rows of a table.
            probes: number of probes.
            scale: elementwise factor, in the parameter's shape; None means 1.
        """
        placed = [(at, form) for at, forms in pieces for form in (forms if scale is None else _scaled(forms, scale))]
        rows = [(at, form) for at, form in placed if isinstance(form, Rows)]
        outer = [(at, form) for at, form in placed if isinstance(form, Outer)]
        held: list[Placed] = [(at, form) for at, form in placed if isinstance(form, Dense)]
        if rows:
            held.append((0, side_by_side(rows, probes)))
        for positions in sorted({form.left.shape[1] for _, form in outer}):
            same = [(at, form) for at, form in outer if form.left.shape[1] == positions]
            here = span(same)
            held.append((here.start, joined_outer([(at - here.start, form) for at, form in same], here.stop - here.start)))
        return cls(tuple(held), scale)

    def multiply(self, train: Pieces, dot: Tensor, squared: Tensor) -> None:
        """Add this parameter's part; see `Holding`."""
        rows: list[tuple[int, Rows]] = []
        for at, forms in train:
            norms = squared_norms_of(forms, self.scale)
            squared[at : at + len(norms)] += norms
            others, own = split(forms)
            rows.extend((at, form if self.scale is None else scaled_rows(form, self.scale)) for form in own)
            if others:
                self._add(dot[at : at + len(norms)], others, self.scale)
        if rows:
            self._add(dot, [side_by_side(rows, len(dot))], None)

    def _add(self, dot: Tensor, forms: Sequence[Form], scale: Tensor | None) -> None:
        """Add products of some samples, which are not yet scaled."""
        for first, held in self.forms:
            theirs = scaled_rows(held, scale) if scale is not None and isinstance(held, Rows) else held
            dot[:, first : first + samples_of(held)] += dots(forms, (theirs,))


@dataclass(frozen=True)
class Tiled:
    """Outer products that are written out tile by tile for each multiplication."""

    pieces: tuple[tuple[int, Outer], ...]
    shape: tuple[int, int]  # rows and columns of the parameter
    probes: int
    tile: int  # elements that are written out at a time, over all samples

    @classmethod
    def of(cls, pieces: Pieces, probes: int, tile: int = TILE) -> Tiled:
        """Hold outer products, one for each piece."""
        outer = tuple((at, form) for at, forms in pieces for form in forms if isinstance(form, Outer))
        return cls(outer, shape_of(outer[0][1]), probes, tile)

    def multiply(self, train: Pieces, dot: Tensor, squared: Tensor) -> None:
        """Add this parameter's part; see `Holding`."""
        held = [(at, wide_side_first(form, self.shape)) for at, form in self.pieces]
        others, rows = _separated(train, self.shape, squared, None)
        for at, one in rows:
            for first, form in self.pieces:
                dot[at : at + one.samples, first : first + samples_of(form)] += dots((one,), (form,))
        if not others:
            return
        here, which = span(others), span(held)
        step = step_of([*others, *held], here.stop - here.start + self.probes, self.tile)
        for mine, theirs in zip(tiles(others, step), tiles(held, step), strict=True):
            add_product(dot[here, which], mine, theirs.T)
            squared[here] += squares(mine)


@dataclass(frozen=True)
class Written:
    """Whole gradients."""

    matrix: Tensor  # [probes, elements], scaled, in the order of `wide_side_first`
    shape: tuple[int, int]  # rows and columns of the parameter
    scale: Tensor | None  # [elements], in the same order
    tile: int = TILE  # elements that are written out at a time, over all samples

    @classmethod
    def of(cls, pieces: Pieces, probes: int, scale: Tensor | None, tile: int = TILE) -> Written:
        """Write gradients out.

        Args:
            pieces: the gradients of all probes.
            probes: number of probes.
            scale: elementwise factor, in the parameter's shape; None means 1.
            tile: elements that are written out at a time, over all samples.
        """
        every = [form for _, forms in pieces for form in forms]
        shape = shape_of(next((form for form in every if not isinstance(form, Dense)), every[0]))
        in_order = None if scale is None else _in_order(scale, shape)
        matrix = tensor_of(every).new_zeros(probes, shape[0] * shape[1])
        for at, forms in pieces:
            here = matrix[at : at + samples_of(forms[0])]
            rest, rows = split(forms)
            if rest:
                write_out(wide_side_first(whole(rest), shape), slice(0, matrix.shape[1]), here)
            for one in rows:
                add_rows(one, here, shape)
            if in_order is not None:
                here *= in_order
        return cls(matrix, shape, in_order, tile)

    def multiply(self, train: Pieces, dot: Tensor, squared: Tensor) -> None:
        """Add this parameter's part; see `Holding`."""
        scale = None if self.scale is None else table_of(self.scale[None], self.shape, self.shape[0])[0]
        others, rows = _separated(train, self.shape, squared, scale)
        for at, one in rows:
            dot[at : at + one.samples] += _rows_times_matrix(one, self.matrix, self.shape)
        few = len(self.matrix) <= _FEW_PROBES
        product = dot.T.contiguous() if few else dot  # with few probes, the narrow side first
        for group in [[one] for one in others] if few else [others] if others else []:
            here = span(group)
            step = step_of(group, here.stop - here.start, int(_SMALLER_TILE * self.tile) if few else self.tile)
            probes = (self.matrix[:, at : at + step] for at in range(0, self.matrix.shape[1], step))
            for mine, theirs in zip(tiles(group, step, self.scale), probes, strict=True):
                if few:
                    add_product(product[:, here], theirs, mine.T)
                else:
                    add_product(product[here], mine, theirs.T)
                squared[here] += squares(mine)
        if few:
            dot.copy_(product.T)


def _cheaper_factored(outer: Sequence[Outer], probes: int) -> bool:
    """Whether products with factors cost less than with whole gradients, in multiplications for each train sample.

    A train sample is assumed to have as many positions as the average probe.
    """
    rows, columns = shape_of(outer[0])
    total = sum(samples_of(form) * form.left.shape[1] for form in outer)  # positions of all probes
    mean = total / probes
    factored = mean * (total + mean) * (rows + columns + _ELEMENTWISE)
    written_out = (mean + probes + 1) * rows * columns
    return factored <= written_out


def _factors(form: Outer) -> int:
    """Number of elements in the factors."""
    return form.left.numel() + form.right.numel()


def _elements(form: Outer) -> int:
    """Number of elements in the gradients written out."""
    return len(form.left) * form.left.shape[2] * form.right.shape[2]


def _scaled(forms: Sequence[Form], scale: Tensor) -> tuple[Form, ...]:
    """Scale rows of a table; other forms are scaled later, when they are written out."""
    return tuple(scaled_rows(form, scale) if isinstance(form, Rows) else form for form in forms)


def _in_order(scale: Tensor, shape: tuple[int, int]) -> Tensor:
    """A scale of the parameter's shape, in the order of `wide_side_first`: [elements]."""
    rows, columns = shape
    return (scale.reshape(rows, columns).T if columns > rows else scale).reshape(-1)


def _separated(
    train: Pieces, shape: tuple[int, int], squared: Tensor, scale: Tensor | None
) -> tuple[list[Tileable], list[tuple[int, Rows]]]:
    """Separate what can be written out, not yet scaled, from scaled rows of a table, whose part of the squared norms is added."""
    others: list[Tileable] = []
    every: list[tuple[int, Rows]] = []
    for at, forms in train:
        rest, rows = split(forms if scale is None else _scaled(forms, scale))
        if rest:
            others.append((at, wide_side_first(whole(rest), shape)))
        if rows:
            norms = _norms_beside(whole(rest), rows, scale) if rest else squared_norms(rows)
            squared[at : at + len(norms)] += norms
            every.extend((at, one) for one in rows)
    return others, every


def _norms_beside(form: Dense | Outer, rows: Sequence[Rows], scale: Tensor | None) -> Tensor:
    """What scaled rows of a table add to the squared norms of a form that is not yet scaled: [samples]."""
    total = squared_norms(rows)
    for one in rows:
        twice = one if scale is None else scaled_rows(one, scale)  # a second time, for the form
        total = total + 2 * diagonal(twice, form)
    return total


def _rows_times_matrix(rows: Rows, matrix: Tensor, shape: tuple[int, int]) -> Tensor:
    """Products of rows of a table with gradients that are written out: [samples, probes]."""
    table = table_of(matrix, shape, rows.table)
    products = torch.einsum("rw,prw->rp", rows.values, table[:, rows.row]).to(wide_type(matrix.dtype))
    return products.new_zeros(rows.samples, len(matrix)).index_add_(0, rows.sample, products)
