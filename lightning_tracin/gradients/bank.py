"""The probes' gradients, held parameter by parameter, and the train samples' products with them.

Each parameter of a bank is held in the form in which products with it cost least: written out (one matrix product for
all probes), as outer products (cheap where a layer sees few positions), or as rows of a table.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_tracin.gradients.forms import Dense, Form, Outer, Rows, coalesced, sum_of, to_dense
from lightning_tracin.gradients.products import add_products, dots, squared_norms


class ProbeBank:
    """Gradients of all probes at one snapshot.

    First `collect` takes the probes' gradients batch by batch, then `seal` ends that, then `contract` gives products.

    Args:
        probes: number of probes.
        groups: parameter -> its group.
        group_count: number of groups.
    """

    def __init__(self, probes: int, groups: Mapping[str, int], group_count: int) -> None:
        self.probes = probes
        self._groups = groups
        self._group_count = group_count
        self._written_out: dict[str, Tensor] = {}
        self._filled: dict[str, list[tuple[int, int]]] = {}
        self._pieces: dict[str, list[tuple[int, Outer | Rows]]] = {}
        self._sealed: dict[str, tuple[Form, ...]] = {}
        self._squared: Tensor | None = None

    def collect(self, name: str, forms: tuple[Form, ...], at: int) -> None:
        """Take one parameter's gradients of the probes `at`, `at + 1`, ..."""
        kept: list[Form] = []
        written: list[Form] = []
        for form in forms:
            if not isinstance(form, Dense) and self._keep_factored(name, form, alone=len(forms) == 1):
                self._pieces.setdefault(name, []).append((at, form))
                kept.append(form)
            else:
                written.append(form)
        if written:
            kept.append(Dense(self._write_out(name, written, at)))
        norms = squared_norms(tuple(kept))
        if self._squared is None:
            self._squared = norms.new_zeros(self._group_count, self.probes)
        self._squared[self._groups[name], at : at + len(norms)] += norms

    def _write_out(self, name: str, forms: list[Form], at: int) -> Tensor:
        """Write the sum of some forms to its place; returns that place."""
        first = to_dense(forms[0])
        if name not in self._written_out:
            self._written_out[name] = first.new_empty(self.probes, first.shape[1])
        place = self._written_out[name][at : at + len(first)]
        place.copy_(first)
        for form in forms[1:]:
            place.add_(to_dense(form))
        self._filled.setdefault(name, []).append((at, at + len(place)))
        return place

    def _keep_factored(self, name: str, form: Outer | Rows, alone: bool) -> bool:
        """Whether products with outer products cost less than writing out, counted in multiplications per train sample."""
        if isinstance(form, Rows):
            return True
        if name in self._written_out:
            return False
        if name in self._pieces or not alone:
            return True  # a table's other use: the table itself is never written out
        positions, rows, columns = form.left.shape[1], form.left.shape[2], form.right.shape[2]
        factored = positions * positions * (self.probes + 1) * (rows + columns)
        written_out = (positions + self.probes + 1) * rows * columns
        return factored <= written_out

    def seal(self) -> None:
        """End the collection."""
        for name, values in self._written_out.items():
            start = 0
            for at, stop in [*sorted(self._filled[name]), (self.probes, self.probes)]:
                values[start:at] = 0  # probes whose loss does not depend on this parameter
                start = stop
            self._sealed[name] = (Dense(values),)
        for name, pieces in self._pieces.items():
            held = list(self._sealed.get(name, ()))
            outer = [(at, form) for at, form in pieces if isinstance(form, Outer)]
            rows = [(at, form) for at, form in pieces if isinstance(form, Rows)]
            if outer:
                held.append(_joined_outer(outer, self.probes))
            if rows:
                held.append(_joined_rows(rows, self.probes))
            self._sealed[name] = tuple(held)
        self._written_out.clear()
        self._filled.clear()
        self._pieces.clear()

    @property
    def squared_norms(self) -> Tensor:
        """Squared norm of each probe's gradient by group: [groups, probes]."""
        if self._squared is None:
            raise ValueError("The bank has collected no gradients.")
        return self._squared

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(_nbytes(form) for forms in self._sealed.values() for form in forms)

    def contract(self, name: str, forms: tuple[Form, ...], dot: Tensor, squared: Tensor) -> None:
        """Add one parameter's part to the ingredients of a batch.

        Args:
            name: the parameter.
            forms: the batch's gradients.
            dot: [groups, samples, probes], added to.
            squared: [groups, samples], added to: squared norms.
        """
        group = self._groups[name]
        held = self._sealed.get(name, ())
        if len(held) == len(forms) == 1 and isinstance(held[0], Dense) and isinstance(forms[0], Outer):
            add_products(forms[0], held[0].values, dot[group], squared[group])
            return
        if any(isinstance(form, Dense) for form in held) and not any(isinstance(form, Rows) for form in forms):
            forms = (Dense(sum_of(list(forms))),)
        squared[group] += squared_norms(forms)
        if held:
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


def _nbytes(form: Form) -> int:
    tensors = (
        (form.values,)
        if isinstance(form, Dense)
        else (form.left, form.right)
        if isinstance(form, Outer)
        else (form.sample, form.row, form.values)
    )
    return sum(tensor.nbytes for tensor in tensors)
