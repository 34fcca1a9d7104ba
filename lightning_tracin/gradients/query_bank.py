"""Weighted sums of probes' gradients, so that a mean over many probes costs as much as a single probe.

Inner products are linear in the probe: the mean of a train sample's products with many probes is its product with their mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_tracin.gradients.bank import ProbeBank
from lightning_tracin.gradients.forms import (
    Dense,
    Form,
    Outer,
    Rows,
    add_rows,
    coalesced,
    samples_of,
    shape_of,
    sum_of_rows,
    tensor_of,
)
from lightning_tracin.gradients.holding import Factored, Holding, Written
from lightning_tracin.gradients.products import squared_norms


class ProbeNorms:
    """Squared norms of probes' gradients by part, batch by batch.

    Args:
        probes: number of probes.
        parts: parameter -> its part.
        part_count: number of parts.

    Example:
        >>> norms = ProbeNorms(probes=3, parts={"weight": 0}, part_count=1)
        >>> norms.collect("weight", (Dense(torch.tensor([[3.0, 4.0]])),), at=1)
        >>> norms.squared.tolist()
        [[0.0, 25.0, 0.0]]
    """

    def __init__(self, probes: int, parts: Mapping[str, int], part_count: int) -> None:
        self._parts = parts
        self.squared: Tensor = torch.zeros(part_count, probes)  # [parts, probes]

    def collect(self, name: str, forms: tuple[Form, ...], at: int) -> None:
        """Add one parameter's gradients for the probes `at`, `at + 1`, ..."""
        norms = squared_norms(forms)
        self.squared = self.squared.to(norms.device, torch.promote_types(self.squared.dtype, norms.dtype))
        self.squared[self._parts[name], at : at + len(norms)] += norms


class QueryBank(ProbeBank):
    """A `ProbeBank` of a few queries, each a weighted sum of the probes' gradients.

    Each batch is added to the sums at once: rows of a table to rows, everything else to a matrix. If a parameter has both (a
    table that is also a layer's weight), `seal` adds its rows to the matrix.

    Args:
        weights: [probes, queries]: weight of each probe's gradient in each query.
        parts: parameter -> its part.
        part_count: number of parts.

    Example:
        >>> bank = QueryBank(torch.tensor([[0.5], [0.5]]), parts={"weight": 0}, part_count=1)  # one query: the mean of two probes
        >>> bank.collect("weight", (Dense(torch.tensor([[1.0, 0.0], [0.0, 2.0]])),), at=0)
        >>> bank.seal()
        >>> bank.contract("weight", [(0, (Dense(torch.tensor([[3.0, 4.0]])),))], dot := torch.zeros(1, 1, 1), torch.zeros(1, 1))
        >>> dot.item()
        5.5
    """

    def __init__(self, weights: Tensor, parts: Mapping[str, int], part_count: int) -> None:
        super().__init__(weights.shape[1], parts, part_count)
        self._weights = weights
        self._members = weights.cpu() != 0  # here, so that the processor does not wait for an accelerator at every layer
        self._chosen: dict[tuple[int, int], list[Tensor]] = {}  # a batch of probes -> those of each query
        self._rows: dict[str, list[Rows]] = {}
        self._matrices: dict[str, tuple[Tensor, tuple[int, int]]] = {}  # see `Written`

    def collect(self, name: str, forms: tuple[Form, ...], at: int) -> None:
        """Add one parameter's gradients for the probes `at`, `at + 1`, ... to the queries.

        Raises:
            ValueError: the bank is sealed.
        """
        self._require_unsealed()
        samples = samples_of(forms[0])
        weights = self._weights[at : at + samples].to(tensor_of(forms))
        self._squares(forms)
        for form in forms:
            if isinstance(form, Rows):
                self._rows.setdefault(name, []).append(_summed_rows(form, weights))
            else:
                self._add(name, form, weights, self._batch(at, samples))

    def _batch(self, at: int, samples: int) -> list[Tensor]:
        """Which of some probes each query is a sum of, by their position among these."""
        if (at, samples) not in self._chosen:
            members = self._members[at : at + samples].T
            self._chosen[at, samples] = [of_query.nonzero()[:, 0].to(self._weights.device) for of_query in members]
        return self._chosen[at, samples]

    def _add(self, name: str, form: Dense | Outer, weights: Tensor, members: Sequence[Tensor]) -> None:
        """Add to queries that are written out."""
        if name not in self._matrices:
            shape = shape_of(form)
            self._matrices[name] = tensor_of((form,)).new_zeros(self.probes, shape[0] * shape[1]), shape
        matrices, shape = self._matrices[name]
        swapped = shape[1] > shape[0]
        for query, (matrix, chosen) in enumerate(zip(matrices, members, strict=True)):
            if not len(chosen):
                continue
            if isinstance(form, Dense):
                summed = (weights[chosen, query] @ form.values[chosen]).view(shape)
                matrix += (summed.T if swapped else summed).reshape(-1)
            else:
                left = (form.left[chosen] * weights[chosen, query][:, None, None]).flatten(0, 1)
                right = form.right[chosen].flatten(0, 1)
                one, other = (right, left) if swapped else (left, right)
                matrix.view(one.shape[1], other.shape[1]).addmm_(one.T, other)

    def seal(self) -> None:
        """Stop collecting and prepare for products."""
        holdings: dict[str, Holding] = {}
        for name, pieces in self._rows.items():
            rows = sum_of_rows(pieces)
            if name in self._matrices:
                add_rows(rows, *self._matrices[name])
            else:
                holdings[name] = Factored(((0, rows),), None)
        holdings.update({name: Written(matrix, shape, None) for name, (matrix, shape) in self._matrices.items()})
        self._rows.clear()
        self._matrices.clear()
        self._holdings = holdings


def _summed_rows(form: Rows, weights: Tensor) -> Rows:
    """Weighted sums over samples: rows with queries in place of samples."""
    queries = weights.shape[1]
    entry, query = weights[form.sample].nonzero(as_tuple=True)
    values = form.values[entry] * weights[form.sample[entry], query][:, None]
    return coalesced(query, form.row[entry], values, queries, form.table)
