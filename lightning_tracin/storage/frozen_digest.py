"""Digest of the parameters that a snapshot does not store: a module that is given later must have the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

#: Approximate number of values of each frozen parameter that enter the digest.
_DIGESTED = 1024


def sampled_every(elements: int) -> int:
    """The distance between the elements of a parameter that enter the digest.

    Example:
        >>> sampled_every(10), sampled_every(5000)
        (1, 4)
    """
    return max(1, elements // _DIGESTED)


def samples_of(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values of parameters that enter the digest, in float32 on the CPU.

    Example:
        >>> samples_of({"weight": torch.arange(4096)})["weight"][:3]
        tensor([0., 4., 8.])
    """
    return {
        name: one.detach().flatten()[:: sampled_every(one.numel())].to("cpu", torch.float32) for name, one in parameters.items()
    }


def frozen_digest(
    model: nn.Module,
    kept: Collection[str],
    samples: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = samples_of,
) -> str:
    """Digest of all parameters except the named ones: their names, their shapes, and some of their values.

    Args:
        model: the model.
        kept: names of the parameters that do not enter it.
        samples: gives these values, where the model is sharded.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> before = frozen_digest(layer, ["weight"])
        >>> _ = nn.init.ones_(layer.weight), nn.init.ones_(layer.bias)
        >>> before == frozen_digest(layer, ["weight"])  # the bias has changed
        False
    """
    digest = hashlib.sha256()
    frozen = {name: parameter for name, parameter in model.named_parameters() if name not in kept}
    some = samples(frozen)
    for name, parameter in frozen.items():
        digest.update(f"{name}\0{list(parameter.shape)}\0".encode() + some[name].numpy().tobytes())
    return digest.hexdigest()
