"""What one process of a sharded fit holds: the pieces of parameters, buffers and second moments that it has to write.

The names of torch's distributed tensors are imported where they are used: most fits do not need them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_tracin.attribution.adam import moments_of
from lightning_tracin.storage.frozen_digest import sampled_every
from lightning_tracin.storage.pieces import Piece


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is spread over processes.

    Example:
        >>> is_sharded(torch.zeros(2))
        False
    """
    return hasattr(tensor, "placements")


def own_piece(tensor: Tensor, rank: int) -> Piece | None:
    """The piece of a tensor that this process has to write.

    Args:
        tensor: whole, or a DTensor.
        rank: of this process.

    Returns:
        None if it holds nothing of the tensor, or what another process writes, too.

    Example:
        >>> own_piece(torch.zeros(2), rank=0).start, own_piece(torch.zeros(2), rank=1)
        ((0,), None)
    """
    shape = tuple(tensor.shape)
    if not is_sharded(tensor):
        return Piece(tensor.detach(), shape, (0,) * len(shape)) if rank == 0 else None
    sharded: Any = tensor.detach()
    position = sharded.device_mesh.get_coordinate()
    if position is None:
        return None
    if any(place.is_replicate() and at > 0 for place, at in zip(sharded.placements, position, strict=True)):
        return None
    [box] = sharded.__create_chunk_list__()  # where it is, as torch's own distributed checkpoints have it
    values: Tensor = sharded.to_local()
    return Piece(values, shape, tuple(box.offsets)) if values.numel() else None


def sharded_again(module: nn.Module) -> None:
    """Let go of weights that FSDP2 has gathered for an evaluation and not yet freed: it gathers them again when it needs them.

    Args:
        module: whose parts may be sharded by `fully_shard`.
    """
    for part in module.modules():
        reshard = getattr(part, "reshard", None)
        if callable(reshard) and callable(getattr(part, "unshard", None)):  # the class has no public name before torch 2.6
            reshard()


def own_weights(module: nn.Module, names: Collection[str], rank: int) -> dict[str, Piece]:
    """This process's pieces of the named parameters and of all buffers.

    Args:
        module: whose parameters are sharded now, see `sharded_again`.
        names: of parameters.
        rank: of this process.

    Example:
        >>> sorted(own_weights(nn.BatchNorm1d(2), ["weight"], rank=0))
        ['num_batches_tracked', 'running_mean', 'running_var', 'weight']
    """
    tensors: dict[str, Tensor] = {name: one for name, one in module.named_parameters() if name in names}
    tensors.update(module.named_buffers())
    pieces = {name: own_piece(one, rank) for name, one in tensors.items()}
    return {name: piece for name, piece in pieces.items() if piece is not None}


def copied_pieces(pieces: Mapping[str, Piece]) -> dict[str, Piece]:
    """Copies of pieces on the CPU.

    Example:
        >>> weight = torch.zeros(1)
        >>> kept = copied_pieces({"weight": Piece(weight, (1,), (0,))})
        >>> _ = weight.add_(1)
        >>> kept["weight"].values
        tensor([0.])
    """
    return {name: Piece(one.values.to("cpu", copy=True), one.shape, one.start) for name, one in pieces.items()}


@torch.no_grad()
def own_moments(optimizers: Sequence[Optimizer], parameters: Mapping[str, Tensor], rank: int) -> dict[str, Piece]:
    """This process's pieces of Adam's second moments, as `attribution.adam.scales_of_moments` reads them.

    Args:
        optimizers: the fit's, in their current state.
        parameters: name -> parameter.
        rank: of this process.

    Raises:
        TracInError: an optimizer's state has no second moments under torch's names.
    """

    def local(tensor: Tensor) -> Tensor:
        piece = own_piece(tensor, rank)
        return torch.empty(0) if piece is None else piece.values

    found: dict[str, Piece] = {}
    places = {name: own_piece(parameter, rank) for name, parameter in parameters.items()}
    for name, values in moments_of(optimizers, parameters, local).items():
        place = places.get(name.partition("/")[2])
        if name.startswith("settings/"):
            if rank == 0:
                found[name] = Piece(values, tuple(values.shape), (0,))
        elif place is not None:
            found[name] = Piece(values, place.shape, place.start)
    return found


def sampled_together(rank: int, gather: Callable[[Tensor], Tensor]) -> Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]:
    """`frozen_digest.samples_of` for sharded parameters: each process gives the samples that it holds, and has all of them.

    Args:
        rank: of this process.
        gather: the values of all processes, [ranks, *shape], from those of each.

    Example:
        >>> of_one = sampled_together(rank=0, gather=lambda values: values[None])
        >>> of_one({"weight": torch.arange(4096).view(64, 64)})["weight"][:3]
        tensor([0., 4., 8.])
    """

    def samples(parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if not parameters:
            return {}
        own = {name: _own_samples(one, rank) for name, one in parameters.items()}
        # As integers, of which all but one are 0, so that a sum is every bit of that one.
        together = gather(torch.cat([one.view(torch.int32) for one in own.values()])).sum(0, dtype=torch.int32)
        parts = torch.split(together.view(torch.float32), [len(one) for one in own.values()])
        return dict(zip(own, parts, strict=True))

    return samples


def _own_samples(parameter: Tensor, rank: int) -> Tensor:
    """The samples of a parameter that this process holds, and 0 for all others."""
    elements = parameter.numel()
    positions = torch.arange(0, elements, sampled_every(elements))
    found = torch.zeros(len(positions))
    piece = own_piece(parameter, rank)
    if piece is None:
        return found
    if piece.values.numel() == elements:
        return piece.values.flatten()[positions.to(piece.values.device)].to("cpu", torch.float32)
    inside, where = torch.ones(len(positions), dtype=torch.bool), []
    for at, start, size in zip(torch.unravel_index(positions, piece.shape), piece.start, piece.values.shape, strict=True):
        where.append(at - start)
        inside &= (at >= start) & (at < start + size)
    picked = piece.values[tuple(one[inside].to(piece.values.device) for one in where)]
    found[inside] = picked.to("cpu", torch.float32)
    return found
