"""The probes' gradients, held parameter by parameter, and the train samples' products with them.

A bank goes through two states. While it collects, it only gathers each parameter's gradients, batch by batch. `seal` ends that
and decides for each parameter, from all batches at once, how it is held (`holding`); from then on the bank gives products.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_tracin.gradients.forms import Form, samples_of, tensor_of, tensors
from lightning_tracin.gradients.holding import Holding, Pieces, compact, hold, most_bytes, squared_norms_of
from lightning_tracin.gradients.products import wide_type


class ProbeBank:
    """Gradients of all probes at one snapshot.

    First `collect` takes the probes' gradients batch by batch, then `seal` ends that, then `contract` gives products.

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
        self._collected: dict[str, list[tuple[int, tuple[Form, ...]]]] = {}
        self._holdings: dict[str, Holding] | None = None  # None until the bank is sealed
        self._squared: Tensor | None = None

    def collect(self, name: str, forms: tuple[Form, ...], at: int) -> None:
        """Take one parameter's gradients of the probes `at`, `at + 1`, ...

        Raises:
            ValueError: the bank is sealed.
        """
        if self._holdings is not None:
            raise ValueError("A sealed bank takes no more gradients.")
        forms = compact(forms)
        self._collected.setdefault(name, []).append((at, forms))
        self._squares(forms)[self._parts[name], at : at + samples_of(forms[0])] += squared_norms_of(forms, self._scale(name))

    def bytes_held(self, gradients: Mapping[str, tuple[Form, ...]]) -> int:
        """What the bank would hold of these gradients at the most, were all probes as long as these samples."""
        written_out, storages = 0, {}
        for name, forms in gradients.items():
            most = most_bytes(forms, scaled=self._scale(name) is not None)
            if most is None:
                kept = [tensor.untyped_storage() for tensor in tensors(forms)]
                storages.update({storage.data_ptr(): storage.nbytes() for storage in kept})  # layers share inputs
            else:
                written_out += most
        return written_out + sum(storages.values())

    def _squares(self, forms: tuple[Form, ...]) -> Tensor:
        if self._squared is None:
            tensor = tensor_of(forms)
            self._squared = tensor.new_zeros(self._part_count, self.probes, dtype=wide_type(tensor.dtype))
        return self._squared

    def _scale(self, name: str) -> Tensor | None:
        return None if self._scales is None else self._scales[name]

    def seal(self) -> None:
        """End the collection: from now on the bank gives products."""
        holdings: dict[str, Holding] = {}
        while self._collected:  # one at a time, so that no two of them are in memory twice
            name, pieces = self._collected.popitem()
            holdings[name] = hold(sorted(pieces, key=lambda piece: piece[0]), self.probes, self._scale(name))
        self._holdings = holdings

    @property
    def squared_norms(self) -> Tensor:
        """Squared norm of each probe's gradient by part: [parts, probes].

        Raises:
            ValueError: the bank has collected no gradients.
        """
        if self._squared is None:
            raise ValueError("The bank has collected no gradients.")
        return self._squared

    @torch.no_grad()
    def contract(self, name: str, pieces: Pieces, dot: Tensor, squared: Tensor) -> None:
        """Add one parameter's part to the ingredients of some train samples.

        Args:
            name: the parameter.
            pieces: the samples' gradients, in order of the samples; samples that no piece has are zero.
            dot: [parts, samples, probes], added to.
            squared: [parts, samples], added to: squared norms.

        Raises:
            ValueError: the bank is not sealed.
        """
        if self._holdings is None:
            raise ValueError("A bank gives products once it is sealed.")
        part = self._parts[name]
        holding = self._holdings.get(name)
        if holding is not None:
            holding.multiply(pieces, dot[part], squared[part])
            return
        for at, forms in pieces:  # no probe's loss depends on this parameter
            norms = squared_norms_of(forms, self._scale(name))
            squared[part, at : at + len(norms)] += norms
