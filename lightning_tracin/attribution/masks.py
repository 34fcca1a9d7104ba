"""Masks of parameters: influence within a subnetwork.

A mask is a safetensors file with a 0/1 tensor for each parameter. Only elements where the mask is 1 are scored; parameters that
are missing or 0 everywhere are ignored. `attention_heads` makes masks of a language's most important heads (after Choenni,
Shutova and Garrette 2024, arXiv 2311.08273), and of random heads as a control.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lightning_tracin.errors import TracInError
from lightning_tracin.storage.files import read_tensors, write_tensors


@dataclass(frozen=True)
class Mask:
    """Which elements of which parameters to score."""

    path: Path  # its file, for messages
    tensors: Mapping[str, Tensor]  # parameter -> bool tensor of its shape

    @cached_property
    def names(self) -> frozenset[str]:
        """The parameters with at least one kept element."""
        return frozenset(name for name, kept in self.tensors.items() if kept.any())

    @cached_property
    def sha256(self) -> str:
        """Digest of the kept elements, independent of the file's order and data types."""
        digest = hashlib.sha256()
        for name in sorted(self.names):
            kept = self.tensors[name]
            digest.update(f"{name}\0{list(kept.shape)}\0".encode())
            digest.update(np.packbits(kept.numpy()).tobytes())
        return digest.hexdigest()

    def require_fits(self, module: nn.Module) -> None:
        """Check that the mask fits a module.

        Raises:
            TracInError: a name is not a trainable parameter of the module, or a shape differs.
        """
        parameters = dict(module.named_parameters())
        every = dict(module.named_parameters(remove_duplicate=False))
        for name, kept in self.tensors.items():
            if name not in every:
                raise TracInError(
                    f"The mask {self.path} names {name!r}, which is not a parameter of this module; names are like "
                    f"{next((other for other in parameters if other.endswith(f'.{name}')), next(iter(parameters)))!r}."
                )
            if name not in parameters:
                first = next(other for other, parameter in parameters.items() if parameter is every[name])
                raise TracInError(f"The mask {self.path} names {name!r}, which shares the weight of {first!r}; name that one.")
            if kept.shape != parameters[name].shape:
                raise TracInError(
                    f"The mask {self.path} has shape {list(kept.shape)} for the parameter {name!r}, which has "
                    f"{list(parameters[name].shape)}; a mask has one number per element."
                )
            if not parameters[name].requires_grad:
                raise TracInError(
                    f"The mask {self.path} names {name!r}, which is not trainable and so has no gradient to compare; leave it "
                    "out of the mask, or train it from the start."
                )

    def restricted(self, names: frozenset[str]) -> frozenset[str]:
        """The named parameters with at least one kept element.

        Raises:
            TracInError: there are none.
        """
        both = names & self.names
        if not both:
            raise TracInError(
                f"The mask {self.path} keeps no element of the parameters that are trainable now and that `parameters` chooses, "
                f"such as {min(names)!r}; it keeps some of {min(self.names)!r}."
            )
        return both

    def elements(self, names: frozenset[str]) -> int:
        """Number of kept elements of the named parameters."""
        return sum(int(self.tensors[name].sum()) for name in names)

    def scales(self, names: frozenset[str], others: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Factors of the gradients of the named parameters: 0 or 1, times other scales if given."""
        return {
            name: self.tensors[name].float() if others is None else torch.where(self.tensors[name], others[name], 0.0)
            for name in names
        }


def write_mask(path: Path, mask: Mapping[str, Tensor]) -> None:
    """Write a mask (parameter -> 0/1 tensor of its shape) for `TracInCallback(mask=...)`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "mask.safetensors"
        ...     write_mask(path, {"weight": torch.tensor([1, 0, 1]), "bias": torch.zeros(1)})
        ...     read_mask(path).names
        frozenset({'weight'})
    """
    write_tensors(path, mask)


def read_mask(path: Path) -> Mask:
    """Read a mask.

    Raises:
        TracInError: the file is missing or damaged, contains values other than 0 and 1, or keeps nothing.
    """
    if not path.is_file():
        raise TracInError(f"The mask {path} does not exist; `lightning_tracin.attribution.masks.write_mask` writes one.")
    tensors = read_tensors(path, remedy="write the mask again")
    for name, tensor in tensors.items():
        odd = tensor[(tensor != 0) & (tensor != 1)]
        if len(odd):
            raise TracInError(
                f"The mask {path} has the value {odd[0].item():g} for {name!r}; use 1 for elements to score and 0 for the others."
            )
    mask = Mask(path, {name: tensor != 0 for name, tensor in tensors.items()})
    if not tensors:
        raise TracInError(f"The mask {path} names no parameter, so nothing would be compared.")
    if not mask.names:
        raise TracInError(f"The mask {path} keeps no element: its tensors are 0 everywhere, so nothing would be compared.")
    return mask
