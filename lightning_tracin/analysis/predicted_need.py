"""What a probe's loss would be without a language: a refit, linearised at each snapshot.

A refit without language G takes the steps of the fit on the mean loss of the samples that are left, R. It parts from the fit by a
push and comes back by the curvature of the samples that still pull. With features phi in the metric of the steps, a rate a for
all steps of a snapshot's interval, and f the part of G in all samples,

    the push of the interval:   a f (mean of G's phi - mean of R's phi)
    what is left of it:         (1 + b H)^-1 push,   H = mean over R of w phi phi',   b = rate of this and all later steps
    the rise of a probe's loss: its phi times what is left, summed over snapshots.

- The push has R's mean in it because a batch's mean loss gives the samples that are left the weight of those that are gone.
  Without a language that is like the others, nothing changes to the first order.
- ``(1 + b H)^-1`` is what gradient flow for a time b leaves of a push, closely, as in `analysis.fisher`.
- H is the Gauss-Newton matrix along each sample's own gradient: for a loss -log p of one label, w = p / (1 - p). It is exact for
  two classes; with more, curvature between wrong labels is left out. The gradient of a sample that is fitted well is small, but
  it resists change: without w (`curvature="fisher"`, w = 1), H is too small late in a fit.
- G's samples are not in H. An influence function keeps them there, and so finds too little for large groups (Koh et al. 2019,
  arXiv 1905.13289; Basu et al. 2020, arXiv 1911.00418, for the second order).

Where a language is large, so is what the first order leaves out: the figure is a prediction, and docs/evidence.md says how good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_tracin.analysis.damped_inverse import InverseBySamples
from lightning_tracin.errors import TracInError

#: Bytes of the matrices of languages that are added up in one reading of the features.
HELD_BYTES = 2**31
#: Largest number of features; H has its square in elements.
_MOST = 16_384

#: Reads the train features shard by shard: indices of samples, and [samples, features].
Shards = Callable[[], Iterator[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Pull:
    """What a snapshot says of its steps.

    Attributes:
        rates: learning rate of each feature in the interval, [features].
        now: optimizer steps of the interval.
        later: how much rate the fit has from this interval on, in parts of the interval's own: 1 for the last one.
        weights: w of each train sample, [train].
    """

    rates: Tensor
    now: int
    later: float
    weights: Tensor


def label_weights(losses: Tensor) -> Tensor:
    """The weight w of each sample from its loss, -log p: p / (1 - p).

    Example:
        >>> label_weights(-torch.tensor([0.5, 0.9]).log()).round(decimals=4).tolist()
        [1.0, 9.0]
    """
    return 1 / torch.expm1(losses.double()).clamp_min(1e-6)


def predicted_rise(shards: Shards, probes: Tensor, groups: Sequence[int], pull: Pull) -> Tensor:
    """By how many nats each probe's loss is higher without each group, by one snapshot: [groups, probes].

    Args:
        shards: reads the train features; every sample comes once.
        probes: features of the probes, [probes, features].
        groups: the group of each train sample, 0, 1, ...
        pull: of the snapshot.

    Raises:
        TracInError: there are too many features, or a group has all samples.

    Example:
        Two samples of two groups along one axis, and a probe; one step at a rate of 0.1, so that nothing has pulled back yet:

        >>> features = torch.tensor([[2.0], [-1.0]])
        >>> pull = Pull(torch.tensor([0.1]), now=1, later=0.0, weights=torch.ones(2))
        >>> shards = lambda: iter([(torch.tensor([0, 1]), features)])
        >>> predicted_rise(shards, torch.tensor([[1.0]]), [0, 1], pull).round(decimals=4).tolist()
        [[0.15], [-0.15]]
    """
    owner = torch.as_tensor(groups)
    counts = owner.bincount().double()
    count, dim = len(owner), probes.shape[1]
    if bool((counts == count).any()):
        raise TracInError("All train samples are in one language, so there is no fit without it.")
    scale = pull.rates.double().sqrt()  # in the coordinates theta / sqrt(rates), every step has the rate 1
    sums = torch.zeros(len(counts), dim, dtype=torch.float64)
    for index, features in shards():
        sums.index_add_(0, owner[index], scale * features)
    rest = (sums.sum(0) - sums) / (count - counts)[:, None]
    push = pull.now * (counts / count)[:, None] * (sums / counts[:, None] - rest)
    solve = _by_samples if count <= dim else _by_features
    left = solve(shards, owner, push, scale, pull)
    found: Tensor = left @ (scale * probes).T
    return found


def _by_samples(shards: Shards, owner: Tensor, push: Tensor, scale: Tensor, pull: Pull) -> Tensor:
    """``(1 + b H)^-1 push`` of each group by the products of samples, where these are fewer than features."""
    every = torch.zeros(len(owner), len(scale), dtype=torch.float64)
    for index, features in shards():
        every[index] = scale * features
    every *= pull.weights.double().sqrt()[:, None]
    left = torch.empty_like(push)
    for group, line in enumerate(push):
        rest = every[owner != group]
        ridge = len(rest) / _time(pull)
        left[group] = ridge * InverseBySamples.of(rest, torch.ones(len(scale)), ridge).solve(line[None])[0]
    return left


def _by_features(shards: Shards, owner: Tensor, push: Tensor, scale: Tensor, pull: Pull) -> Tensor:
    """The same by the matrix of features, which is made for some groups at a time."""
    dim, groups = push.shape[1], len(push)
    if dim > _MOST:
        raise TracInError(
            f"The curvature of {dim:,} features needs {dim**2 * 8 / 1e9:.0f} GB; take a `projection_dim` of at most {_MOST:,}."
        )
    counts, left = owner.bincount(), push.clone()
    size = max(1, HELD_BYTES // (8 * dim**2) - 1)
    for first in range(0, groups, size):
        some = range(first, min(groups, first + size))
        whole = torch.zeros(dim, dim, dtype=torch.float64)
        mine = torch.zeros(len(some), dim, dim, dtype=torch.float64)
        for index, features in shards():
            rows = scale * features * pull.weights[index].double().sqrt()[:, None]
            whole += rows.T @ rows
            for position, group in enumerate(some):
                own = rows[owner[index] == group]
                mine[position] += own.T @ own
        for position, group in enumerate(some):
            damped = (whole - mine[position]) * (_time(pull) / (len(owner) - counts[group]))
            damped.diagonal().add_(1)
            left[group] = torch.cholesky_solve(push[group][:, None], torch.linalg.cholesky(damped))[:, 0]
    return left


def _time(pull: Pull) -> float:
    """The time b in steps of the interval's rates; never 0, which would leave nothing to divide by."""
    return max(pull.now * pull.later, 1e-12)
