"""The probes' gradients, held parameter by parameter, and the train samples' products with them.

Each parameter of a bank is held in the form in which products with it cost least: written out (one matrix product for
all probes), as outer products (cheap where a layer sees few positions), or as rows of a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_tracin.gradients.forms import (
    Dense,
    Form,
    Outer,
    Rows,
    samples_of,
    shape_of,
    side_by_side,
    whole,
    wide_side_first,
    write_out,
)
from lightning_tracin.gradients.products import dots, squared_norms

#: What the two passes over a product of factors cost beside its multiplications, counted in those.
_ELEMENTWISE = 256

#: Elements of train samples' gradients that are written out at a time. They should stay in the processor's last cache until
#: they are multiplied (16 MB in float32); much smaller pieces make slow products.
_TILE = 4_000_000

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
    """

    def __init__(self, probes: int, parts: Mapping[str, int], part_count: int) -> None:
        self.probes = probes
        self._parts = parts
        self._part_count = part_count
        self._shapes: dict[str, tuple[int, int]] = {}  # rows and columns of the parameters that are written out
        self._matrices: dict[str, Tensor] = {}  # [probes, elements], in the order of `wide_side_first`
        self._written: dict[str, int] = {}  # probes written to a matrix
        self._pieces: dict[str, list[tuple[int, tuple[Form, ...]]]] = {}
        self._factored: dict[str, tuple[Form, ...]] = {}
        self._squared: Tensor | None = None

    def collect(self, name: str, forms: tuple[Form, ...], at: int) -> None:
        """Take one parameter's gradients of the probes `at`, `at + 1`, ..."""
        if self._squared is None:
            self._squared = _tensor_of(forms[0]).new_zeros(self._part_count, self.probes)
        squared = self._squared[self._parts[name]]
        if self._stays_factored(name, forms):
            norms = squared_norms(forms)
            self._pieces.setdefault(name, []).append((at, forms))
        else:
            written = self._write_out(name, whole(forms), at)
            norms = torch.linalg.vector_norm(written, dim=1).square_()
        squared[at : at + len(norms)] += norms

    def _write_out(self, name: str, form: Dense | Outer, at: int) -> Tensor:
        if name not in self._matrices:
            rows, columns = self._shapes[name] = shape_of(form)
            self._matrices[name] = _tensor_of(form).new_empty(self.probes, rows * columns)
        form = wide_side_first(form, self._shapes[name])
        matrix, done = self._matrices[name], self._written.get(name, 0)
        matrix[done:at] = 0  # probes of batches that do not reach this parameter
        self._written[name] = at + samples_of(form)
        here = matrix[at : at + samples_of(form)]
        write_out(form, slice(0, matrix.shape[1]), here)
        return here

    def _stays_factored(self, name: str, forms: tuple[Form, ...]) -> bool:
        """Whether products with the factors cost less than writing out, counted in multiplications per train sample."""
        if name in self._matrices or any(isinstance(form, Dense) for form in forms):
            return False
        if name in self._pieces or len(forms) > 1 or not isinstance(forms[0], Outer):
            return True  # rows of a table, which itself is never written out
        positions, rows, columns = forms[0].left.shape[1], forms[0].left.shape[2], forms[0].right.shape[2]
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
                held.append(_joined_outer(outer, self.probes))
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
        if name in self._matrices:
            shape = self._shapes[name]
            written_out = [(at, wide_side_first(whole(forms), shape)) for at, forms in pieces]
            _multiply(written_out, self._matrices[name], dot[part], squared[part])
        else:
            for at, forms in pieces:
                norms = squared_norms(forms)
                squared[part, at : at + len(norms)] += norms
        if name in self._factored:
            _join(pieces, self._factored[name], dot[part])


def _multiply(pieces: Sequence[tuple[int, Dense | Outer]], matrix: Tensor, dot: Tensor, squared: Tensor) -> None:
    """Write out the pieces' gradients tile by tile, and multiply each tile with the probes'.

    A product of many samples with many probes runs near the processor's limit; a tile that stays in cache until then costs no
    way to memory and back.
    """
    first, last = pieces[0][0], pieces[-1][0] + samples_of(pieces[-1][1])
    count = matrix.shape[1]
    columns = max(shape_of(form)[1] for _, form in pieces)
    step = max(1, _TILE // ((last - first) * columns)) * columns
    tile = matrix.new_zeros(last - first, min(step, count))
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        width = part.stop - part.start
        if width != tile.shape[1]:
            tile = matrix.new_zeros(last - first, width)
        for at, form in pieces:
            write_out(form, part, tile[at - first : at - first + samples_of(form)])
        dot[first:last].addmm_(tile, matrix[:, part].T)
        squared[first:last] += torch.linalg.vector_norm(tile, dim=1).square_()


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


def _joined_outer(pieces: list[tuple[int, Outer]], probes: int) -> Outer:
    """One form of all probes; positions that a piece lacks are zero."""
    positions = max(form.left.shape[1] for _, form in pieces)
    first = pieces[0][1]
    left = first.left.new_zeros(probes, positions, first.left.shape[2])
    right = first.right.new_zeros(probes, positions, first.right.shape[2])
    for at, form in pieces:
        samples, width = form.left.shape[:2]
        left[at : at + samples, :width] = form.left
        right[at : at + samples, :width] = form.right
    return Outer(left, right)


def _tensor_of(form: Form) -> Tensor:
    return form.left if isinstance(form, Outer) else form.values
