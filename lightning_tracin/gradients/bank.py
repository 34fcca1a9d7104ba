"""The probes' gradients, held parameter by parameter, and the train samples' products with them.

Each parameter of a bank is held in the form in which products with it cost least: written out (one matrix product for
all probes), as outer products (cheap where a layer sees few positions), or as rows of a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lightning_tracin.gradients.forms import (
    Dense,
    Form,
    Outer,
    Rows,
    add_rows,
    joined_outer,
    samples_of,
    scaled_rows,
    shape_of,
    side_by_side,
    tensor_of,
    whole,
    wide_side_first,
    write_out,
)
from lightning_tracin.gradients.products import diagonal, dots, squared_norms

#: What the two passes over a product of factors cost beside its multiplications, counted in those.
_ELEMENTWISE = 256

#: Elements of train samples' gradients that are written out at a time. They should stay in the processor's last cache until
#: they are multiplied (16 MB in float32); much smaller pieces make slow products.
_TILE = 4_000_000

#: With few probes, whose products are done soon, smaller tiles are faster: they stay in each core's own cache.
_FEW_PROBES, _SMALL_TILE = 16, 500_000

#: Pieces of one parameter's gradients: the first sample of each piece, and its forms.
Pieces = Sequence[tuple[int, tuple[Form, ...]]]


class ProbeBank:
    """Gradients of all probes at one snapshot.

    First `collect` takes the probes' gradients batch by batch, then `seal` ends that, then `contract` gives products. The first
    batch decides the form in which a parameter is held, so it should be the longest: the fewest positions favour factors.

    Args:
        probes: number of probes.
        parts: parameter -> the part of the ingredients that it belongs to.
        part_count: number of parts.
        scales: parameter -> what both sides' gradients are multiplied with, elementwise; of the parameter's shape. None: 1.
    """

    def __init__(
        self, probes: int, parts: Mapping[str, int], part_count: int, scales: Mapping[str, Tensor] | None = None
    ) -> None:
        self.probes = probes
        self._parts = parts
        self._part_count = part_count
        self._scales = scales
        self._shapes: dict[str, tuple[int, int]] = {}  # rows and columns of the parameters that are written out
        self._matrices: dict[str, Tensor] = {}  # [probes, elements], in the order of `wide_side_first`
        self._written: dict[str, int] = {}  # probes written to a matrix so far
        self._pieces: dict[str, list[tuple[int, tuple[Form, ...]]]] = {}
        self._factored: dict[str, tuple[Form, ...]] = {}
        self._squared: Tensor | None = None

    def collect(self, name: str, forms: tuple[Form, ...], at: int) -> None:
        """Take one parameter's gradients of the probes `at`, `at + 1`, ..."""
        squared = self._squares(forms)[self._parts[name]]
        if self._stays_factored(name, forms):
            forms = self._scaled(name, forms)
            self._pieces.setdefault(name, []).append((at, forms))
            norms = squared_norms(forms)
        else:
            written = self._write_out(name, forms, at)
            norms = torch.linalg.vector_norm(written, dim=1).square_()
        squared[at : at + len(norms)] += norms

    def _squares(self, forms: tuple[Form, ...]) -> Tensor:
        if self._squared is None:
            self._squared = tensor_of(forms).new_zeros(self._part_count, self.probes)
        return self._squared

    def _write_out(self, name: str, forms: tuple[Form, ...], at: int) -> Tensor:
        rest, rows = _split(forms)
        form = whole(rest) if rest else None
        if name not in self._matrices:
            self._shapes[name] = shape_of(rows[0] if form is None else form)
            self._matrices[name] = tensor_of(forms).new_empty(self.probes, self._shapes[name][0] * self._shapes[name][1])
        shape, matrix, stop = self._shapes[name], self._matrices[name], at + samples_of(forms[0])
        matrix[self._written.get(name, 0) : at] = 0  # probes of batches that do not reach this parameter
        self._written[name] = stop
        here = matrix[at:stop]
        if form is None:
            here.zero_()
        else:
            write_out(wide_side_first(form, shape), slice(0, matrix.shape[1]), here)
        for one in rows:
            add_rows(one, here, shape)
        scale = self._scale(name)
        return here if scale is None else here.mul_(scale)

    def _scale(self, name: str) -> Tensor | None:
        """What a parameter's gradients are multiplied with, in the order of its matrix: [elements]."""
        if self._scales is None:
            return None
        scale = self._scales[name]
        rows, columns = self._shapes[name]
        return (scale.reshape(rows, columns).T if columns > rows else scale).reshape(-1)

    def _scaled(self, name: str, forms: tuple[Form, ...]) -> tuple[Form, ...]:
        """The same forms with their rows of a table multiplied; other forms are multiplied where they are written out."""
        if self._scales is None:
            return forms
        scale = self._scales[name]
        return tuple(scaled_rows(form, scale) if isinstance(form, Rows) else form for form in forms)

    def _stays_factored(self, name: str, forms: tuple[Form, ...]) -> bool:
        """Whether products with the factors cost less than writing out, counted in multiplications per train sample."""
        if name in self._matrices or any(isinstance(form, Dense) for form in forms):
            return False
        if name in self._pieces or all(isinstance(form, Rows) for form in forms):
            return True  # rows of a table, which itself is never written out
        if self._scales is not None:
            return False  # a product of factors has no elementwise scale
        outer = next(form for form in forms if isinstance(form, Outer))
        if len(forms) > 1:
            return True
        positions, rows, columns = outer.left.shape[1], outer.left.shape[2], outer.right.shape[2]
        factored = positions * positions * (self.probes + 1) * (rows + columns + _ELEMENTWISE)
        written_out = (positions + self.probes + 1) * rows * columns
        return factored <= written_out

    def seal(self) -> None:
        """End the collection."""
        for name, matrix in self._matrices.items():
            matrix[self._written[name] :] = 0
        for name, pieces in self._pieces.items():
            outer = [(at, form) for at, forms in pieces for form in forms if isinstance(form, Outer)]
            rows = [(at, form) for at, forms in pieces for form in forms if isinstance(form, Rows)]
            held: list[Form] = []
            if outer:
                held.append(joined_outer(outer, self.probes))
            if rows:
                held.append(side_by_side(rows, self.probes))
            self._factored[name] = tuple(held)
        self._pieces.clear()

    @property
    def squared_norms(self) -> Tensor:
        """Squared norm of each probe's gradient by part: [parts, probes]."""
        if self._squared is None:
            raise ValueError("The bank has collected no gradients.")
        return self._squared

    def contract(self, name: str, pieces: Pieces, dot: Tensor, squared: Tensor) -> None:
        """Add one parameter's part to the ingredients of some train samples.

        Args:
            name: the parameter.
            pieces: the samples' gradients, in order of the samples; samples that no piece has are zero.
            dot: [parts, samples, probes], added to.
            squared: [parts, samples], added to: squared norms.
        """
        part = self._parts[name]
        pieces = [(at, self._scaled(name, forms)) for at, forms in pieces]
        if name in self._matrices:
            self._contract_written_out(name, pieces, dot[part], squared[part])
            return
        for at, forms in pieces:
            norms = self._norms_of_factors(name, forms)
            squared[part, at : at + len(norms)] += norms
        if name in self._factored:
            _join(pieces, self._factored[name], dot[part])

    def _norms_of_factors(self, name: str, forms: tuple[Form, ...]) -> Tensor:
        """Squared norms of gradients that no probe's gradient of this parameter meets written out."""
        if self._scales is None or all(isinstance(form, Rows) for form in forms):
            return squared_norms(forms)
        rest, rows = _split(forms)
        form = whole(rest)
        out = tensor_of(forms).new_zeros(samples_of(form))
        self._shapes.setdefault(name, shape_of(form))
        tiles = _Tiles([(0, wide_side_first(form, self._shapes[name]))], self._scale(name))
        for _, tile in tiles:
            out += torch.linalg.vector_norm(tile, dim=1).square_()
        return out + self._norms_beside(name, form, rows)

    def _norms_beside(self, name: str, form: Dense | Outer, rows: Sequence[Rows]) -> Tensor:
        """What rows of a table add to the squared norms of a parameter that has other uses too: [samples]."""
        total = tensor_of((form,)).new_zeros(samples_of(form))
        for one in rows:
            twice = one if self._scales is None else scaled_rows(one, self._scales[name])  # one scale of each side
            total += squared_norms((one,)) + 2 * diagonal(twice, form)
        return total

    def _contract_written_out(self, name: str, pieces: Pieces, dot: Tensor, squared: Tensor) -> None:
        shape, matrix = self._shapes[name], self._matrices[name]
        others: list[tuple[int, Dense | Outer]] = []
        for at, forms in pieces:
            rest, rows = _split(forms)
            if rest:
                form = whole(rest)
                others.append((at, wide_side_first(form, shape)))
                if rows:
                    squared[at : at + samples_of(form)] += self._norms_beside(name, form, rows)
            elif rows:
                squared[at : at + rows[0].samples] += squared_norms(tuple(rows))
            for one in rows:
                dot[at : at + one.samples] += _rows_times_matrix(one, matrix, shape)
        few = self.probes <= _FEW_PROBES
        product = dot.T.contiguous() if few else dot  # the narrow side first where there is one
        for group in [[one] for one in others] if few else [others] if others else []:
            tiles = _Tiles(group, self._scale(name), _SMALL_TILE if few else _TILE)
            here = slice(tiles.first, tiles.last)
            for part, tile in tiles:
                if few:
                    product[:, here].addmm_(matrix[:, part], tile.T)
                else:
                    product[here].addmm_(tile, matrix[:, part].T)
                squared[here] += torch.linalg.vector_norm(tile, dim=1).square_()
        if few:
            dot.copy_(product.T)


class _Tiles:
    """Pieces of gradients written out tile by tile: which elements, and their values [samples, elements of the tile].

    A tile stays in cache until it is multiplied, so that its way to memory and back is saved. The same memory is used for all.
    """

    def __init__(self, pieces: Sequence[tuple[int, Dense | Outer]], scale: Tensor | None, elements: int = _TILE) -> None:
        self._pieces, self._scale, self._elements = pieces, scale, elements
        self.first, self.last = pieces[0][0], pieces[-1][0] + samples_of(pieces[-1][1])

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        forms = [form for _, form in self._pieces]
        count = shape_of(forms[0])[0] * shape_of(forms[0])[1]
        columns = max(shape_of(form)[1] for form in forms)
        step = max(1, self._elements // ((self.last - self.first) * columns)) * columns
        tile = tensor_of(forms).new_zeros(self.last - self.first, min(step, count))
        for start in range(0, count, step):
            part = slice(start, min(start + step, count))
            if part.stop - part.start != tile.shape[1]:
                tile = tile.new_zeros(len(tile), part.stop - part.start)
            for at, form in self._pieces:
                write_out(form, part, tile[at - self.first : at - self.first + samples_of(form)])
            if self._scale is not None:
                tile *= self._scale[part]
            yield part, tile


def _rows_times_matrix(rows: Rows, matrix: Tensor, shape: tuple[int, int]) -> Tensor:
    """Products of rows of a table with gradients that are written out: [samples, probes]."""
    swapped = shape[1] > shape[0]
    table = matrix.view(len(matrix), *shape[::-1]).transpose(1, 2) if swapped else matrix.view(len(matrix), rows.table, -1)
    products = torch.einsum("rw,prw->rp", rows.values, table[:, rows.row])
    return products.new_zeros(rows.samples, len(matrix)).index_add_(0, rows.sample, products)


def _join(pieces: Pieces, held: tuple[Form, ...], dot: Tensor) -> None:
    """Products of factors and rows with those that are held of the probes."""
    rows = [(at, form) for at, forms in pieces for form in forms if isinstance(form, Rows)]
    if rows:
        dot += dots((side_by_side(rows, len(dot)),), held)
    for at, forms in pieces:
        others = tuple(form for form in forms if not isinstance(form, Rows))
        if others:
            product = dots(others, held)
            dot[at : at + len(product)] += product


def _split(forms: Sequence[Form]) -> tuple[list[Dense | Outer], list[Rows]]:
    return [form for form in forms if not isinstance(form, Rows)], [form for form in forms if isinstance(form, Rows)]
