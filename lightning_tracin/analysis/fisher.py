"""Whitening of projected features by the Fisher information: the damped second moment of the train features.

With F = (1/n) sum over train samples of phi phi' + ridge, the inner product of two features is ``phi' F^-1 psi``. Directions
that most train samples share count less (TrackStar, Chang et al. 2024, arXiv 2410.17413; TRAK, Park et al. 2023,
arXiv 2303.14186). Cosines use the same inner product.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_tracin.errors import TracInError

#: Largest number of features whitened together; F has its square in elements.
_LARGEST_BLOCK = 16_384


@dataclass(frozen=True)
class Whitener:
    """The inner product at one snapshot, block by block.

    Example:
        >>> whitener = Whitener((torch.tensor([0]),), (torch.tensor([[2.0]]),))  # one feature, F = 4
        >>> whitener.dual(torch.tensor([[8.0]])).tolist()
        [[2.0]]
    """

    blocks: tuple[Tensor, ...]  # feature indices of each block
    factors: tuple[Tensor, ...]  # lower triangular L of each block, F = L L'

    def squared_norms(self, features: Tensor) -> Tensor:
        """``phi' F^-1 phi`` of each block: [blocks, samples]."""
        return torch.stack([self._solved(features, i).square().sum(0) for i in range(len(self.blocks))])

    def dual(self, features: Tensor) -> Tensor:
        """``F^-1 phi``: [samples, features]. Its plain inner product with psi is the one under F."""
        out = torch.zeros_like(features)
        for i, block in enumerate(self.blocks):
            out[:, block] = torch.linalg.solve_triangular(self.factors[i].T, self._solved(features, i), upper=True).T
        return out

    def _solved(self, features: Tensor, i: int) -> Tensor:
        """``L^-1 phi``: [features of the block, samples]."""
        solved: Tensor = torch.linalg.solve_triangular(self.factors[i], features[:, self.blocks[i]].T, upper=False)
        return solved


def whitener_of(shards: Iterable[Tensor], blocks: Sequence[Tensor], damping: float) -> Whitener:
    """Compute F and its Cholesky factors from the train features.

    Args:
        shards: train features [samples, features], shard by shard; one shard at a time is in memory.
        blocks: feature indices of each block.
        damping: the ridge as a fraction of F's trace over all blocks.

    Raises:
        TracInError: a block has too many features, or all features are zero.

    Example:
        >>> features = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> whitener_of([features], [torch.tensor([0, 1])], damping=0.0).squared_norms(features).round(decimals=4).tolist()
        [[2.0, 2.0]]
    """
    largest = max(map(len, blocks))
    if largest > _LARGEST_BLOCK:
        raise TracInError(
            f"Whitening {largest:,} features together needs {largest**2 * 8 / 1e9:.0f} GB; use blocks='layer', or a "
            f"`projection_dim` of at most {_LARGEST_BLOCK:,}."
        )
    moments = [torch.zeros(len(block), len(block), dtype=torch.float64) for block in blocks]
    count = 0
    for features in shards:
        count += len(features)
        for moment, block in zip(moments, blocks, strict=True):
            mine = features[:, block]
            moment += mine.T @ mine
    trace = sum(float(moment.diagonal().sum()) for moment in moments) / count
    if trace == 0:
        raise TracInError("All features of the train samples are zero, so there is nothing to whiten them by.")
    factors = []
    for moment in moments:
        moment /= count
        moment.diagonal().add_(damping * trace)
        factors.append(torch.linalg.cholesky(moment).float())
    return Whitener(tuple(blocks), tuple(factors))
