"""The probes' gradients, held parameter by parameter, and the train samples' products with them.

Each parameter of a bank is held in the form in which products with it cost least: written out (one matrix product for
all probes), as outer products (cheap where a layer sees few positions), or as rows of a table.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_tracin.gradients.forms import Dense, Form, Outer, Rows, coalesced, elements, tiles, whole
from lightning_tracin.gradients.products import dots, squared_norms

#: What the two passes over a product of factors cost beside its multiplications, counted in those.
_ELEMENTWISE = 256


class ProbeBank:
    """Gradients of all probes at one snapshot.

    First `collect` takes the probes' gradients batch by batch, then `seal` ends that, then `contract` gives products. The first
    batch decides the form in which a parameter is held, so it should be the longest: the fewest positions favour factors.

    Args:
        probes: number of probes.
        groups: parameter -> its group.
        group_count: number of groups.
    """

    def __init__(self, probes: int, groups: Mapping[str, int], group_count: int) -> None:
        self.probes = probes
        self._groups = groups
        self._group_count = group_count
        self._matrices: dict[str, Tensor] = {}  # [elements, probes]: products in this order are the fastest
        self._pieces: dict[str, list[tuple[int, tuple[Form, ...]]]] = {}
        self._factored: dict[str, tuple[Form, ...]] = {}
        self._squared: Tensor | None = None

    def collect(self, name: str, forms: tuple[Form, ...], at: int) -> None:
        """Take one parameter's gradients of the probes `at`, `at + 1`, ..."""
        if self._squared is None:
            self._squared = _tensor_of(forms[0]).new_zeros(self._group_count, self.probes)
        squared = self._squared[self._groups[name]]
        if self._stays_factored(name, forms):
            self._pieces.setdefault(name, []).append((at, forms))
            norms = squared_norms(forms)
            squared[at : at + len(norms)] += norms
        else:
            self._write_out(name, whole(forms), at, squared)

    def _write_out(self, name: str, form: Dense | Outer, at: int, squared: Tensor) -> None:
        if name not in self._matrices:
            self._matrices[name] = squared.new_zeros(elements(form), self.probes)
        for part, tile in tiles(form):
            stop = at + len(tile)
            self._matrices[name][part, at:stop] = tile.T
            squared[at:stop] += torch.linalg.vector_norm(tile, dim=1).square_()

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
        for name, pieces in self._pieces.items():
            outer = [(at, form) for at, forms in pieces for form in forms if isinstance(form, Outer)]
            rows = [(at, form) for at, forms in pieces for form in forms if isinstance(form, Rows)]
            held: list[Form] = []
            if outer:
                held.append(_joined_outer(outer, self.probes))
            if rows:
                held.append(_joined_rows(rows, self.probes))
            self._factored[name] = tuple(held)
        self._pieces.clear()

    @property
    def squared_norms(self) -> Tensor:
        """Squared norm of each probe's gradient by group: [groups, probes]."""
        if self._squared is None:
            raise ValueError("The bank has collected no gradients.")
        return self._squared

    def contract(self, name: str, forms: tuple[Form, ...], dot: Tensor, squared: Tensor) -> None:
        """Add one parameter's part to the ingredients of a batch.

        Args:
            name: the parameter.
            forms: the batch's gradients.
            dot: [groups, samples, probes], added to.
            squared: [groups, samples], added to: squared norms.
        """
        group = self._groups[name]
        matrix, held = self._matrices.get(name), self._factored.get(name)
        if matrix is None:
            squared[group] += squared_norms(forms)
        else:
            for part, tile in tiles(whole(forms)):
                dot[group].addmm_(tile, matrix[part])
                squared[group] += torch.linalg.vector_norm(tile, dim=1).square_()
        if held is not None:
            dot[group] += dots(forms, held, dot.shape[1], self.probes)


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


def _joined_rows(pieces: list[tuple[int, Rows]], probes: int) -> Rows:
    return coalesced(
        torch.cat([form.sample + at for at, form in pieces]),
        torch.cat([form.row for _, form in pieces]),
        torch.cat([form.values for _, form in pieces]),
        probes,
        pieces[0][1].table,
    )


def _tensor_of(form: Form) -> Tensor:
    return form.left if isinstance(form, Outer) else form.values
