"""The gradients of all probes, parameter by parameter, and their inner products with train samples' gradients.

A bank has two states. At first it collects gradients batch by batch. `seal` ends that: it sees all batches of a parameter at once
and decides how to hold them (`holding`). From then on the bank gives products.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_tracin.gradients.factored_scale import FactoredScale, factored
from lightning_tracin.gradients.forms import Form, samples_of, tensor_of, tensors
from lightning_tracin.gradients.holding import Holding, Pieces, compact, hold, most_bytes, squared_norms_of
from lightning_tracin.gradients.products import wide_type


class ProbeBank:
    """Gradients of all probes at one snapshot.

    Call `collect` for each batch of probes, then `seal` once, then `contract` for the train samples.

    Args:
        probes: number of probes.
        parts: parameter -> the part of the ingredients that it belongs to.
        part_count: number of parts.
        scales: parameter -> factor of each of its elements, in the parameter's shape; train samples' and probes' gradients are
            both multiplied by it. None means 1. One that is an outer product costs next to nothing (`factored_scale`).

    Example:
        >>> from lightning_tracin.gradients import Dense
        >>> bank = ProbeBank(probes=2, parts={"weight": 0}, part_count=1)
        >>> bank.collect("weight", (Dense(torch.tensor([[1.0, 0.0], [0.0, 2.0]])),), at=0)
        >>> bank.seal()
        >>> dot, squared = torch.zeros(1, 1, 2), torch.zeros(1, 1)
        >>> bank.contract("weight", [(0, (Dense(torch.tensor([[3.0, 4.0]])),))], dot, squared)
        >>> dot.tolist(), squared.tolist()
        ([[[3.0, 8.0]]], [[25.0]])
    """

    def __init__(
        self, probes: int, parts: Mapping[str, int], part_count: int, scales: Mapping[str, Tensor] | None = None
    ) -> None:
        self.probes = probes
        self._parts = parts
        self._part_count = part_count
        factors = {name: factored(scale) for name, scale in (scales or {}).items()}
        self._factors: dict[str, FactoredScale] = {name: one for name, one in factors.items() if one is not None}
        self._scales = scales and {name: scale for name, scale in scales.items() if name not in self._factors}
        self._collected: dict[str, list[tuple[int, tuple[Form, ...]]]] = {}
        self._holdings: dict[str, Holding] | None = None  # None until the bank is sealed
        self._squared: Tensor | None = None

    def collect(self, name: str, forms: tuple[Form, ...], at: int) -> None:
        """Add one parameter's gradients for the probes `at`, `at + 1`, ...

        Raises:
            ValueError: the bank is sealed.
        """
        self._require_unsealed()
        forms = self._factored(name, compact(forms))
        self._collected.setdefault(name, []).append((at, forms))
        self._squares(forms)[self._parts[name], at : at + samples_of(forms[0])] += squared_norms_of(forms, self._scale(name))

    def bytes_held(self, gradients: Mapping[str, tuple[Form, ...]]) -> int:
        """Upper bound on the bytes that the bank holds of these gradients, if all probes are as long as these samples."""
        written_out, storages = 0, {}
        for name, forms in gradients.items():
            most = most_bytes(forms, scaled=self._scale(name) is not None)
            if most is None and name in self._factors:  # scaled copies share nothing
                written_out += sum(tensor.nbytes for tensor in tensors(forms))
            elif most is None:
                kept = [tensor.untyped_storage() for tensor in tensors(forms)]
                storages.update({storage.data_ptr(): storage.nbytes() for storage in kept})  # layers share inputs
            else:
                written_out += most
        return written_out + sum(storages.values())

    def _require_unsealed(self) -> None:
        if self._holdings is not None:
            raise ValueError("A sealed bank takes no more gradients.")

    def _squares(self, forms: tuple[Form, ...]) -> Tensor:
        if self._squared is None:
            tensor = tensor_of(forms)
            self._squared = tensor.new_zeros(self._part_count, self.probes, dtype=wide_type(tensor.dtype))
        return self._squared

    def _scale(self, name: str) -> Tensor | None:
        return None if self._scales is None or name in self._factors else self._scales[name]

    def _factored(self, name: str, forms: tuple[Form, ...]) -> tuple[Form, ...]:
        return self._factors[name].of(forms) if name in self._factors else forms

    def seal(self) -> None:
        """Stop collecting and prepare for products."""
        holdings: dict[str, Holding] = {}
        while self._collected:  # release each parameter's pieces before the next, so that no two are in memory twice
            name, pieces = self._collected.popitem()
            holdings[name] = hold(sorted(pieces, key=lambda piece: piece[0]), self.probes, self._scale(name))
        self._holdings = holdings

    @property
    def squared_norms(self) -> Tensor:
        """Squared norm of each probe's gradient, by part: [parts, probes].

        Raises:
            ValueError: the bank has collected no gradients.
        """
        if self._squared is None:
            raise ValueError("The bank has collected no gradients.")
        return self._squared

    @torch.no_grad()
    def contract(self, name: str, pieces: Pieces, dot: Tensor, squared: Tensor) -> None:
        """Add one parameter's contribution to the ingredients of some train samples.

        Args:
            name: the parameter.
            pieces: the samples' gradients, in order of the samples; samples without a piece have a gradient of zero.
            dot: [parts, samples, probes], inner products, added to.
            squared: [parts, samples], squared norms, added to.

        Raises:
            ValueError: the bank is not sealed.
        """
        if self._holdings is None:
            raise ValueError("A bank gives products once it is sealed.")
        part = self._parts[name]
        pieces = [(at, self._factored(name, forms)) for at, forms in pieces] if name in self._factors else pieces
        holding = self._holdings.get(name)
        if holding is not None:
            holding.multiply(pieces, dot[part], squared[part])
            return
        for at, forms in pieces:  # no probe's loss depends on this parameter
            norms = squared_norms_of(forms, self._scale(name))
            squared[part, at : at + len(norms)] += norms
