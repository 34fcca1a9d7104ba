"""Gradients of several batches' samples, held back until there are enough of them.

The probes' gradients are read from memory once for every product with them, and products of a few samples run far below
the processor's limit. Factors of a batch's gradients are small, so they wait until a block of samples is complete.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_tracin.gradients.bank import ProbeBank
from lightning_tracin.gradients.forms import Form, tensors

#: Samples of a block: more make products hardly faster.
BLOCK = 256


class HeldBlock:
    """Collects a block of train samples, batch by batch, and gives its ingredients.

    Args:
        most_bytes: of factors to hold; a block with more is complete before it has its samples.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._pieces: dict[str, list[tuple[int, tuple[Form, ...]]]] = {}
        self._storages: dict[int, int] = {}  # address -> bytes: layers share inputs, which count once
        self.samples = 0

    def add(self, name: str, forms: tuple[Form, ...]) -> None:
        """Take one parameter's gradients of the batch that comes after the `samples` so far."""
        self._pieces.setdefault(name, []).append((self.samples, forms))
        for tensor in tensors(forms):
            storage = tensor.untyped_storage()
            self._storages[storage.data_ptr()] = storage.nbytes()

    def end_batch(self, samples: int) -> None:
        """Say that the batch that was added had so many samples."""
        self.samples += samples

    @property
    def is_complete(self) -> bool:
        """Whether the block should be multiplied now."""
        return self.samples >= BLOCK or sum(self._storages.values()) >= self._most_bytes

    @torch.no_grad()
    def contract(self, bank: ProbeBank, dot: Tensor, squared: Tensor) -> None:
        """Add the block's products and squared norms, and start the next block.

        Args:
            bank: the probes.
            dot: [parts, samples, probes], added to.
            squared: [parts, samples], added to.
        """
        while self._pieces:
            name, pieces = self._pieces.popitem()
            bank.contract(name, pieces, dot, squared)
        self._storages.clear()
        self.samples = 0
