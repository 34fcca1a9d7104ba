"""Sums of probes' gradients, so that a mean over many probes costs what one probe costs.

Products are linear in the probe: the mean of a train sample's products with many probes is its product with their mean.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_tracin.gradients.bank import ProbeBank
from lightning_tracin.gradients.forms import Dense, Form, Outer, Rows, coalesced, samples_of, shape_of, tensor_of
from lightning_tracin.gradients.holding import Factored, Holding, Written
from lightning_tracin.gradients.products import squared_norms


class ProbeNorms:
    """Squared norms of probes' gradients by part, batch by batch.

    Args:
        probes: number of probes.
        parts: parameter -> its part.
        part_count: number of parts.
    """

    def __init__(self, probes: int, parts: Mapping[str, int], part_count: int) -> None:
        self._parts = parts
        self.squared: Tensor = torch.zeros(part_count, probes)  # [parts, probes]

    def collect(self, name: str, forms: tuple[Form, ...], at: int) -> None:
        """Take one parameter's gradients of the probes `at`, `at + 1`, ..."""
        norms = squared_norms(forms)
        self.squared = self.squared.to(norms.device, torch.promote_types(self.squared.dtype, norms.dtype))
        self.squared[self._parts[name], at : at + len(norms)] += norms


class QueryBank(ProbeBank):
    """Weighted sums of probes' gradients in the place of the probes: `ProbeBank` of a few queries.

    A batch is added to the sums as it comes: rows of a table to rows, everything else to a matrix. A parameter that has both (a
    table that is a layer's weight too) has its rows added to the matrix by `seal`.

    Args:
        weights: [probes, queries]: what each probe's gradient counts in each query.
        parts: parameter -> its part.
        part_count: number of parts.
    """

    def __init__(self, weights: Tensor, parts: Mapping[str, int], part_count: int) -> None:
        super().__init__(weights.shape[1], parts, part_count)
        self._weights = weights
        self._rows: dict[str, list[Rows]] = {}
        self._matrices: dict[str, tuple[Tensor, tuple[int, int]]] = {}  # see `Written`

    def collect(self, name: str, forms: tuple[Form, ...], at: int) -> None:
        """Add one parameter's gradients of the probes `at`, `at + 1`, ... to the queries.

        Raises:
            ValueError: the bank is sealed.
        """
        if self._holdings is not None:
            raise ValueError("A sealed bank takes no more gradients.")
        weights = self._weights[at : at + samples_of(forms[0])].to(tensor_of(forms))
        self._squares(forms)
        for form in forms:
            if isinstance(form, Rows):
                self._rows.setdefault(name, []).append(_summed_rows(form, weights))
            else:
                self._add(name, form, weights)

    def _add(self, name: str, form: Form, weights: Tensor) -> None:
        """Add to queries that are written out."""
        if name not in self._matrices:
            shape = shape_of(form)
            self._matrices[name] = tensor_of((form,)).new_zeros(self.probes, shape[0] * shape[1]), shape
        matrices, (rows, columns) = self._matrices[name]
        swapped = columns > rows
        for query, matrix in enumerate(matrices):
            chosen = weights[:, query].nonzero()[:, 0]
            if not len(chosen):
                continue
            if isinstance(form, Dense):
                summed = (weights[chosen, query] @ form.values[chosen]).view(rows, columns)
                matrix += (summed.T if swapped else summed).reshape(-1)
            elif isinstance(form, Outer):
                left = (form.left[chosen] * weights[chosen, query][:, None, None]).flatten(0, 1)
                right = form.right[chosen].flatten(0, 1)
                one, other = (right, left) if swapped else (left, right)
                matrix.view(one.shape[1], other.shape[1]).addmm_(one.T, other)
            else:
                mine = _summed_rows(form, weights[:, [query]])
                table = matrix.view(columns, rows).T if swapped else matrix.view(form.table, -1)
                table.index_add_(0, mine.row, mine.values)

    def seal(self) -> None:
        """End the collection."""
        holdings: dict[str, Holding] = {}
        for name, pieces in self._rows.items():
            rows = coalesced(
                torch.cat([form.sample for form in pieces]),
                torch.cat([form.row for form in pieces]),
                torch.cat([form.values for form in pieces]),
                self.probes,
                pieces[0].table,
            )
            if name in self._matrices:
                self._add(name, rows, torch.eye(self.probes, device=rows.values.device).to(rows.values))
            else:
                holdings[name] = Factored(((0, rows),), None)
        holdings.update({name: Written(matrix, shape, None) for name, (matrix, shape) in self._matrices.items()})
        self._rows.clear()
        self._matrices.clear()
        self._holdings = holdings


def _summed_rows(form: Rows, weights: Tensor) -> Rows:
    """Rows of samples as rows of queries: [queries] in the place of samples."""
    queries = weights.shape[1]
    entry, query = weights[form.sample].nonzero(as_tuple=True)
    values = form.values[entry] * weights[form.sample[entry], query][:, None]
    return coalesced(query, form.row[entry], values, queries, form.table)
