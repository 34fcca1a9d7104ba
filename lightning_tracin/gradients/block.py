"""Gradients of several batches, collected until there are enough samples to multiply efficiently.

Every product reads all the probes' gradients from memory, and products of a few samples run far below the processor's limit. The
factors of a batch's gradients are small, so they are kept until a block of samples is complete.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_tracin.gradients.bank import ProbeBank
from lightning_tracin.gradients.forms import Form, tensors

#: Samples in a block. Larger blocks are hardly faster.
BLOCK = 256


class HeldBlock:
    """Collects a block of train samples, batch by batch, and computes its ingredients.

    Args:
        most_bytes: a block whose factors take this many bytes is complete, even if it has fewer samples.

    Example:
        >>> from lightning_tracin.gradients import Dense
        >>> block = HeldBlock(most_bytes=16)
        >>> block.add("weight", (Dense(torch.ones(2, 1)),))  # 2 samples of 4 bytes
        >>> block.end_batch(samples=2)
        >>> block.samples, block.is_complete
        (2, False)
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._pieces: dict[str, list[tuple[int, tuple[Form, ...]]]] = {}
        self._storages: dict[int, int] = {}  # address -> bytes: layers share inputs, which count once
        self.samples = 0

    def add(self, name: str, forms: tuple[Form, ...]) -> None:
        """Add one parameter's gradients for the current batch, which follows the `samples` collected so far."""
        self._pieces.setdefault(name, []).append((self.samples, forms))
        for tensor in tensors(forms):
            storage = tensor.untyped_storage()
            self._storages[storage.data_ptr()] = storage.nbytes()

    def end_batch(self, samples: int) -> None:
        """End the current batch, which has this many samples."""
        self.samples += samples

    @property
    def is_complete(self) -> bool:
        """Whether the block should be multiplied now."""
        return self.samples >= BLOCK or sum(self._storages.values()) >= self._most_bytes

    @torch.no_grad()
    def contract(self, bank: ProbeBank, dot: Tensor, squared: Tensor) -> None:
        """Add the block's inner products and squared norms, and start the next block.

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
