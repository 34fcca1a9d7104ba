"""The probes' gradients, held parameter by parameter, and the train samples' products with them.

Each parameter of a bank is held in the form in which products with it cost least: as outer products (cheap where a layer
sees few positions), as rows of a table, or written out, so that one matrix product takes all probes. Factors that take much
less memory than what they are the factors of are held instead, and written out piece by piece for every block of train
samples: that costs about what reading the whole from memory does, and many more probes fit into a budget.
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
    tensors,
    whole,
    wide_side_first,
    write_out,
)
from lightning_tracin.gradients.products import diagonal, dots, squared_norms
from lightning_tracin.gradients.tiles import Placed, span, step_of, tiles

#: What the two passes over a product of factors cost beside its multiplications, counted in those.
_ELEMENTWISE = 256

#: How much smaller than the gradients their factors must be to be held in their place.
_SMALLER = 2

#: Elements of gradients that are written out at a time, which should stay near the processor until they are multiplied (32 MB
#: in float32); much smaller pieces make slow products, much larger ones go to memory and back.
_TILE = 8_000_000

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
        self._held: dict[str, list[Placed]] = {}  # to be written out, in the order of `wide_side_first`
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
        elif self._stays_unwritten(name, forms):
            self._shapes.setdefault(name, shape_of(forms[0]))
            self._held.setdefault(name, []).append((at, wide_side_first(whole(forms), self._shapes[name])))
            norms = squared_norms(forms)
        else:
            written = self._write_out(name, forms, at)
            norms = torch.linalg.vector_norm(written, dim=1).square_()
        squared[at : at + len(norms)] += norms

    def bytes_held(self, gradients: Mapping[str, tuple[Form, ...]]) -> int:
        """What the bank would hold of these gradients of some probes, were they the first."""
        written_out, storages = 0, {}
        for name, forms in gradients.items():
            if self._stays_factored(name, forms) or self._stays_unwritten(name, forms):
                kept = [tensor.untyped_storage() for tensor in tensors(forms)]
                storages.update({storage.data_ptr(): storage.nbytes() for storage in kept})  # layers share inputs
            else:
                form = next((form for form in forms if not isinstance(form, Rows)), forms[0])
                rows, columns = shape_of(form)
                written_out += samples_of(form) * rows * columns * tensor_of(forms).element_size()
        return written_out + sum(storages.values())

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

    def _stays_unwritten(self, name: str, forms: tuple[Form, ...]) -> bool:
        """Whether factors that will be written out are held until then."""
        if name in self._matrices or self._scales is not None:
            return False
        if name in self._held:
            return True
        if len(forms) > 1 or not isinstance(forms[0], Outer):
            return False
        positions, rows, columns = forms[0].left.shape[1], forms[0].left.shape[2], forms[0].right.shape[2]
        return _SMALLER * positions * (rows + columns) <= rows * columns

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
        if name in self._matrices or name in self._held:
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
        pieces = [(0, wide_side_first(form, self._shapes[name]))]
        for tile in tiles(pieces, step_of(pieces, len(out), _TILE), self._scale(name)):
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
        shape, matrix = self._shapes[name], self._matrices.get(name)
        others: list[Placed] = []
        for at, forms in pieces:
            rest, rows = _split(forms)
            if matrix is None:
                rest, rows = [whole(forms)], []
            if rest:
                form = whole(rest)
                others.append((at, wide_side_first(form, shape)))
                if rows:
                    squared[at : at + samples_of(form)] += self._norms_beside(name, form, rows)
            elif rows:
                squared[at : at + rows[0].samples] += squared_norms(tuple(rows))
            for one in rows:
                assert matrix is not None
                dot[at : at + one.samples] += _rows_times_matrix(one, matrix, shape)
        few = self.probes <= _FEW_PROBES and matrix is not None
        product = dot.T.contiguous() if few else dot  # the narrow side first where there is one
        for group in [[one] for one in others] if few else [others] if others else []:
            here, held = span(group), self._held.get(name, [])
            samples = here.stop - here.start + (self.probes if held else 0)
            step = step_of([*group, *held], samples, _SMALL_TILE if few else _TILE)
            which, theirs = self._tiles_of_probes(name, step)
            for mine, other in zip(tiles(group, step, self._scale(name)), theirs, strict=True):
                if few:
                    product[which, here].addmm_(other, mine.T)
                else:
                    product[here, which].addmm_(mine, other.T)
                squared[here] += torch.linalg.vector_norm(mine, dim=1).square_()
        if few:
            dot.copy_(product.T)

    def _tiles_of_probes(self, name: str, step: int) -> tuple[slice, Iterator[Tensor]]:
        """Which probes, and tile by tile their gradients of a parameter that is written out: [probes, elements of the tile]."""
        if name in self._held:
            return span(self._held[name]), tiles(self._held[name], step)
        matrix = self._matrices[name]
        return slice(0, self.probes), (matrix[:, at : at + step] for at in range(0, matrix.shape[1], step))


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
