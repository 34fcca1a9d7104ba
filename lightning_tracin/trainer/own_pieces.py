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


def own_piece(tensor: Tensor) -> Piece | None:
    """The piece of a tensor that this process holds; None if it holds nothing of it.

    Args:
        tensor: whole, or a DTensor.

    Example:
        >>> own_piece(torch.zeros(2)).start
        (0,)
    """
    shape = tuple(tensor.shape)
    if not is_sharded(tensor):
        return Piece(tensor.detach(), shape, (0,) * len(shape))
    sharded: Any = tensor.detach()
    if sharded.device_mesh.get_coordinate() is None:
        return None
    [box] = sharded.__create_chunk_list__()  # where it is, as torch's own distributed checkpoints have it
    values: Tensor = sharded.to_local()
    return Piece(values, shape, tuple(box.offsets)) if values.numel() else None


def without_copies(pieces: Mapping[str, Piece | None], rank: int, gather: Callable[[Tensor], Tensor]) -> dict[str, Piece]:
    """The pieces that this process has to write: those that no process of a lower rank holds, too.

    Tensors that are not sharded, or only within groups of processes, are the same on several of them.

    Args:
        pieces: what this process holds, with the same names in the same order on all processes.
        rank: of this process.
        gather: see `sampled_together`.

    Example:
        >>> pieces = {"weight": own_piece(torch.zeros(2))}
        >>> for rank in range(2):
        ...     list(without_copies(pieces, rank, gather=lambda values: torch.stack([values, values])))
        ['weight']
        []
    """
    dimensions = max((len(one.start) for one in pieces.values() if one is not None), default=0)
    most = int(gather(torch.tensor([dimensions])).max())
    places = [(-1,) * (most + 1) if one is None else (0, *one.start, *(most - len(one.start)) * (0,)) for one in pieces.values()]
    everywhere = gather(torch.tensor(places, dtype=torch.int64).view(len(places), most + 1))
    seen = (everywhere[:rank] == everywhere[rank]).all(-1).any(0)
    held = zip(pieces.items(), seen.tolist(), strict=True)
    return {name: piece for (name, piece), is_seen in held if piece is not None and not is_seen}


def sharded_again(module: nn.Module) -> None:
    """Let go of weights that FSDP2 has gathered for an evaluation and not yet freed: it gathers them again when it needs them.

    Args:
        module: whose parts may be sharded by `fully_shard`.
    """
    for part in module.modules():
        reshard = getattr(part, "reshard", None)
        if callable(reshard) and callable(getattr(part, "unshard", None)):  # the class has no public name before torch 2.6
            reshard()


def own_weights(module: nn.Module, names: Collection[str]) -> dict[str, Piece | None]:
    """This process's pieces of the named parameters and of all buffers.

    Args:
        module: whose parameters are sharded now, see `sharded_again`.
        names: of parameters.

    Example:
        >>> sorted(own_weights(nn.BatchNorm1d(2), ["weight"]))
        ['num_batches_tracked', 'running_mean', 'running_var', 'weight']
    """
    tensors: dict[str, Tensor] = {name: one for name, one in module.named_parameters() if name in names}
    tensors.update(module.named_buffers())
    return {name: own_piece(one) for name, one in tensors.items()}


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
def own_moments(optimizers: Sequence[Optimizer], parameters: Mapping[str, Tensor]) -> dict[str, Piece | None]:
    """This process's pieces of what `attribution.adam.scales_of_moments` reads.

    Args:
        optimizers: the fit's, in their current state.
        parameters: name -> parameter.

    Raises:
        TracInError: an optimizer's state has no second moments under torch's names.

    Example:
        >>> weight = torch.zeros(2, requires_grad=True)
        >>> sorted(own_moments([torch.optim.Adam([weight])], {"weight": weight}))
        ['second/weight', 'settings/weight']
    """

    def local(tensor: Tensor) -> Tensor:
        piece = own_piece(tensor)
        return torch.empty(0) if piece is None else piece.values

    places = {f"second/{name}": own_piece(parameter) for name, parameter in parameters.items()}
    found: dict[str, Piece | None] = {}
    for name, values in moments_of(optimizers, parameters, local).items():
        place = places.get(name, Piece(values, tuple(values.shape), (0,)))
        found[name] = None if place is None else Piece(values, place.shape, place.start)
    return found


def sampled_together(gather: Callable[[Tensor], Tensor]) -> Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]:
    """`frozen_digest.samples_of` for sharded parameters: each process gives the samples that it holds, and has all of them.

    Args:
        gather: the values of all processes, [ranks, *shape], from those of each.

    Example:
        >>> of_one = sampled_together(gather=lambda values: values[None])
        >>> of_one({"weight": torch.arange(4096).view(64, 64)})["weight"][:3]
        tensor([0., 4., 8.])
    """

    def samples(parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if not parameters:
            return {}
        own = {name: _own_samples(one) for name, one in parameters.items()}
        values = gather(torch.cat([one for one, _ in own.values()]))
        holder = gather(torch.cat([held for _, held in own.values()])).argmax(0)  # the first that has it
        together = values[holder, torch.arange(len(holder))]
        parts = torch.split(together, [len(one) for one, _ in own.values()])
        return dict(zip(own, parts, strict=True))

    return samples


def _own_samples(parameter: Tensor) -> tuple[Tensor, Tensor]:
    """The samples of a parameter, 0 where this process does not hold them, and whether it does, as 1 and 0."""
    positions = torch.arange(0, parameter.numel(), sampled_every(parameter.numel()))
    found, held = torch.zeros(len(positions)), torch.zeros(len(positions), dtype=torch.int64)
    piece = own_piece(parameter)
    if piece is None:
        return found, held
    if not piece.shape:  # a number
        return piece.values.reshape(1).to("cpu", torch.float32), torch.ones(1, dtype=torch.int64)
    inside, where = torch.ones(len(positions), dtype=torch.bool), []
    for at, start, size in zip(torch.unravel_index(positions, piece.shape), piece.start, piece.values.shape, strict=True):
        where.append(at - start)
        inside &= (at >= start) & (at < start + size)
    picked = piece.values[tuple(one[inside].to(piece.values.device) for one in where)]
    found[inside], held[inside] = picked.to("cpu", torch.float32), 1
    return found, held
