"""Whitening of projected features by the Fisher information: the damped second moment of the train features.

With F = (1/n) sum over train samples of phi phi' and the ridge c = damping * trace(F), the inner product of two features is
``phi' (F + c)^-1 psi``. Directions that most train samples share count less (TrackStar, Chang et al. 2024, arXiv 2410.17413;
TRAK, Park et al. 2023, arXiv 2303.14186).

**Where learning rates enter.** A score has to be an inner product ``phi' M psi`` with one symmetric positive semi-definite M. Let
W be the diagonal matrix of each feature's weight: its group's learning rate times visits. Without whitening, M = W. With it,
``W (F + c)^-1`` is not symmetric, so a product must not be split into groups that are weighted afterwards. Steps with the rates W
are plain steps of rate s in the coordinates ``theta / sqrt(R)``, where R = W / s. There, features are ``sqrt(R) phi``. So the
weights enter before the whitening: features are scaled by sqrt(R), and the scaled features are whitened by their own moment.

    M = s N,    N = sqrt(R) (sqrt(R) F sqrt(R) + c)^-1 sqrt(R) = (F + c R^-1)^-1,    s = trace(W F) / trace(F)

So the ridge is higher where rates are lower. That is what a fit does that ends early: steps of rate W shrink directions like a
ridge in proportion to W^-1 (Ali, Kolter and Tibshirani 2019, arXiv 1810.10082). s is the mean rate, weighted by the features'
energy, so the trace of the scaled moment is that of F. s weights the snapshot, as the learning rate does in TracInCP. M is
``w (F + c)^-1`` if all rates are w, and approaches W / c, TracInCP's, for a large ridge.

**The ridge of the fit itself** (`damping="steps"`). Gradient flow for a time t on a quadratic loss with curvature F answers a
constant push phi with ``F^-1 (1 - exp(-t F)) phi``, which ``(F + 1/t)^-1 phi`` follows closely: what a sample did is undone in
part by the steps on all samples. In the K steps of a snapshot's interval with the rates W, t = K W, so nothing is left to choose:
M = (F + 1/(K W))^-1 / K = (K F + 1/W)^-1, which is W, TracInCP's, where the curvature is small; N = M / s. F stands for the
Hessian, which it is not quite, and what one interval passes on to the next is left out (SOURCE, Bae et al. 2024, arXiv
2405.12186, has both). Weights are rates times visits, so K is in steps per visit.

If each layer is whitened alone, F has no blocks between layers, and each layer has an s, R and N of its own. The formulas of
`analysis.scores` then apply with layers in place of groups: products and norms are those of N, and the weights are s.

The inverses are those of `analysis.damped_inverse`, which makes no matrix of features by features where samples are few.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_tracin.analysis.damped_inverse import DampedInverse, gathering
from lightning_tracin.errors import TracInError


@dataclass(frozen=True)
class Whitener:
    """The inner product at one snapshot, block by block; see the formulas above.

    Example:
        >>> from lightning_tracin.analysis.damped_inverse import InverseByFeatures
        >>> block, inverse, scale = torch.tensor([0]), InverseByFeatures(torch.tensor([[2.0]])), torch.tensor([1.0])  # F = 4
        >>> whitener = Whitener((block,), (inverse,), (scale,), weights=(1.0,))
        >>> whitener.dual(torch.tensor([[8.0]])).tolist()
        [[2.0]]
    """

    blocks: tuple[Tensor, ...]  # feature indices of each block
    inverses: tuple[DampedInverse, ...]  # of the damped moment of each block's scaled features
    scales: tuple[Tensor, ...]  # sqrt(R) of each block's features, in double precision
    weights: tuple[float, ...]  # s of each block

    def squared_norms(self, features: Tensor) -> Tensor:
        """``phi' N phi`` of each block, never negative: [blocks, samples]."""
        norms = [inverse.squared_norms(self._scaled(features, i)) for i, inverse in enumerate(self.inverses)]
        return torch.stack([one.to(features.dtype) for one in norms])

    def dual(self, features: Tensor) -> Tensor:
        """``M phi``: [samples, features]. Its plain inner product with psi is the weighted one."""
        out = torch.zeros_like(features)
        for i, block in enumerate(self.blocks):
            solved = self.inverses[i].solve(self._scaled(features, i))
            out[:, block] = (self.weights[i] * self.scales[i] * solved).to(out.dtype)
        return out

    def _scaled(self, features: Tensor, i: int) -> Tensor:
        """``sqrt(R) phi``: [samples, features of the block]."""
        return self.scales[i] * features[:, self.blocks[i]]


def whitener_of(
    shards: Iterable[Tensor], count: int, blocks: Sequence[Tensor], damping: float, rates: Tensor, steps: float | None = None
) -> Whitener:
    """Compute F from the train features, and the inner product that follows from it.

    Args:
        shards: train features [samples, features], shard by shard; they are read once.
        count: number of train samples in all shards. A block of at least twice as many features keeps its features of all
            samples; of others, one shard at a time is in memory.
        blocks: feature indices of each block.
        damping: the ridge as a fraction of F's trace over all blocks.
        rates: the weight of each feature, 0 or more: [features].
        steps: K of the fit's own ridge, which takes the place of `damping`: optimizer steps per unit of `rates`. None: `damping`.

    Raises:
        TracInError: a block is too large, there are more or fewer samples than `count`, all features are zero, or the ridge is
            too small.

    Example:
        >>> features = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> whitener = whitener_of([features], 2, [torch.tensor([0, 1])], damping=0.0, rates=torch.ones(2))
        >>> whitener.squared_norms(features).round(decimals=4).tolist()
        [[2.0, 2.0]]
    """
    largest = max(map(len, blocks))
    if steps is None and damping == 0 and count < largest:
        raise TracInError(
            f"The second moment of {largest:,} features of {count:,} train samples has no inverse; take a `damping` above 0."
        )
    gathered = [gathering(count, len(block)) for block in blocks]
    seen = 0
    for features in shards:
        seen += len(features)
        if seen > count:
            break
        for mine, block in zip(gathered, blocks, strict=True):
            mine.add(features[:, block])
    if seen != count:
        found = f"only {seen:,}" if seen < count else "more"
        raise TracInError(
            f"Whitening needs the features of {count:,} train samples, but {found} are stored; run the attribution again."
        )
    energies = [mine.energy() for mine in gathered]
    trace = sum(float(energy.sum()) for energy in energies)
    if trace == 0:
        raise TracInError("All features of the train samples are zero, so there is nothing to whiten them by.")
    inverses, scales, weights = [], [], []
    for mine, block, energy in zip(gathered, blocks, energies, strict=True):
        weight, relative = _mean_rate(rates[block].double(), energy)
        scale = relative.sqrt()
        if steps is None:
            inverses.append(mine.inverse(scale, damping * trace))
        else:
            inverses.append(mine.inverse(scale * (steps * weight) ** 0.5, 1.0))
        scales.append(scale)
        weights.append(weight)
    return Whitener(tuple(blocks), tuple(inverses), tuple(scales), tuple(weights))


def _mean_rate(rates: Tensor, energy: Tensor) -> tuple[float, Tensor]:
    """s, the mean rate weighted by energy, and the rates relative to it.

    If s is 0, the block has no influence; relative rates of 1 then leave its norms as they are without weights.
    """
    if bool((rates == rates[0]).all()):
        return float(rates[0]), torch.ones_like(rates)
    weighted = float((rates * energy).sum())
    if weighted == 0:
        return 0.0, torch.ones_like(rates)
    mean = weighted / float(energy.sum())
    return mean, rates / mean
