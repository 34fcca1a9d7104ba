"""Scores under the Fisher information: projected features whitened by the damped second moment of the train features.

With F = (1/n) sum over train samples of phi phi' + ridge, the inner product of two features is ``phi' F^-1 psi``: directions
that most train samples share count less (TrackStar, Chang et al. 2024, arXiv 2410.17413; TRAK, Park et al. 2023,
arXiv 2303.14186). Cosines are taken in that inner product.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_tracin.errors import TracInError

#: Features that can be whitened together: F has the square of it.
_MOST = 16_384


@dataclass(frozen=True)
class Whitener:
    """The inner product of one snapshot, block by block."""

    blocks: tuple[Tensor, ...]  # of each: the features that belong to it
    factors: tuple[Tensor, ...]  # of each: lower triangular L with F = L L'

    def squared_norms(self, features: Tensor) -> Tensor:
        """``phi' F^-1 phi`` by block: [blocks, samples]."""
        return torch.stack([self._solved(features, i).square().sum(0) for i in range(len(self.blocks))])

    def dual(self, features: Tensor) -> Tensor:
        """``F^-1 phi``: [samples, features]; plain inner products with it are those under F."""
        out = torch.zeros_like(features)
        for i, block in enumerate(self.blocks):
            out[:, block] = torch.linalg.solve_triangular(self.factors[i].T, self._solved(features, i), upper=True).T
        return out

    def _solved(self, features: Tensor, i: int) -> Tensor:
        """``L^-1 phi``: [features of the block, samples]."""
        solved: Tensor = torch.linalg.solve_triangular(self.factors[i], features[:, self.blocks[i]].T, upper=False)
        return solved


def whitener_of(shards: Iterable[Tensor], blocks: Sequence[Tensor], damping: float) -> Whitener:
    """The inner product that the train features define.

    Args:
        shards: the train features, shard by shard: [samples, features]; only one needs to be in memory.
        blocks: the features of each block.
        damping: the ridge as a part of F's trace, over all blocks: so it does not change with the number of features.

    Raises:
        TracInError: a block has too many features, or all features are zero.
    """
    largest = max(map(len, blocks))
    if largest > _MOST:
        raise TracInError(
            f"Whitening {largest:,} features together needs {largest**2 * 8 / 1e9:.0f} GB; use blocks='layer', or a "
            f"`projection_dim` of at most {_MOST:,}."
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
