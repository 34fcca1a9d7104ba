"""Which sample each row belongs to, where a step picks rows by a mask: `logits[labels != -100]`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


class SelectedRows:
    """Follows rows that a mask picked through the operations that keep their number.

    Args:
        samples: of the batch. A mask has as many elements for each.

    Example:
        >>> rows, values = SelectedRows(samples=2), torch.arange(6.0).view(2, 3)
        >>> mask = torch.tensor([[True, False, False], [True, True, False]])
        >>> rows.note(Tensor.__getitem__, (values, mask), {}, picked := values[mask])
        >>> rows.owner(picked).tolist()
        [0, 1, 1]
    """

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._owners: Any = WeakTensorKeyDictionary()

    def owner(self, tensor: Any) -> Tensor | None:
        """The sample of each row, [rows]; None if the rows were not picked."""
        owner: Tensor | None = self._owners.get(tensor) if isinstance(tensor, Tensor) and len(self._owners) else None
        return owner

    def note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor) -> None:
        """Note what a torch function returned, a tensor of at least one dimension."""
        if func in (Tensor.__getitem__, Tensor.masked_select, torch.masked_select):
            mask = args[1] if len(args) > 1 else kwargs.get("mask")
            if isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.dim() and not mask.numel() % self._samples:
                owner = mask.detach().reshape(self._samples, -1).nonzero()[:, 0]
                if len(owner) == len(value):
                    self._owners[value] = owner
                return
        if not len(self._owners):
            return
        found = next((of for given in (*args, *kwargs.values()) if (of := self.owner(given)) is not None), None)
        if found is not None and len(found) == len(value):
            self._owners[value] = found
