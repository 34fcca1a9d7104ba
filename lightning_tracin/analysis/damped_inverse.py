"""Damped inverses of second moments: ``(X'X + c)^-1`` for features X, [samples, features], and a ridge c.

There are two forms, and `gathering` chooses the one that holds fewer bytes:

- **by features**: the Cholesky factor of ``X'X + c``, [features, features];
- **by samples**: the features themselves and the Cholesky factor of ``XX' + c``, [samples, samples]. With the ridge regression of
  a vector v on the samples, ``z = (XX' + c)^-1 X v``, Woodbury's identity is

      (X'X + c)^-1 v = (v - X'z) / c        v' (X'X + c)^-1 v = |z|^2 + |v - X'z|^2 / c

  The squared norm is the value of that regression, which z minimises. So it is never negative, and an error of z only enters it
  squared. The residual ``v - X'z`` cancels where c is small, so this form computes in double precision.

By samples, it is smaller where there are at least twice as many features as samples. At half as many samples as features, both
take about the same time.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Protocol

import torch
from humanize import naturalsize
from torch import Tensor

from lightning_tracin.errors import TracInError

#: Most bytes that one inverse may hold: those of a single-precision factor of 16,384 features.
HELD_BYTES = 1 << 30
#: Samples whose features are in double precision at a time.
_ROWS = 256


class DampedInverse(Protocol):
    """``(X'X + c)^-1``."""

    def solve(self, vectors: Tensor) -> Tensor:
        """``(X'X + c)^-1 v``: [vectors, features]."""

    def squared_norms(self, vectors: Tensor) -> Tensor:
        """``v' (X'X + c)^-1 v``, never negative: [vectors]."""


@dataclass(frozen=True)
class InverseByFeatures:
    """The inverse by the products of features, in single precision.

    Example:
        >>> inverse = InverseByFeatures.of(torch.tensor([[3.0]]), ridge=1.0)
        >>> inverse.solve(torch.tensor([[8.0]])).tolist(), inverse.squared_norms(torch.tensor([[8.0]])).tolist()
        ([[2.0]], [16.0])
    """

    factor: Tensor  # lower triangular L, with L L' = X'X + c: [features, features]

    @classmethod
    def of(cls, moment: Tensor, ridge: float) -> InverseByFeatures:
        """The inverse of ``moment + ridge``; overwrites the moment, [features, features].

        Raises:
            TracInError: the ridge is too small.
        """
        moment.diagonal().add_(ridge)
        return cls(_cholesky(moment, ridge).float())

    def solve(self, vectors: Tensor) -> Tensor:
        """``(X'X + c)^-1 v``: [vectors, features]."""
        solved: Tensor = torch.linalg.solve_triangular(self.factor.T, self._half(vectors), upper=True)
        return solved.T

    def squared_norms(self, vectors: Tensor) -> Tensor:
        """``v' (X'X + c)^-1 v``: [vectors]."""
        return self._half(vectors).square().sum(0)

    def _half(self, vectors: Tensor) -> Tensor:
        """``L^-1 v``: [features, vectors]."""
        half: Tensor = torch.linalg.solve_triangular(self.factor, vectors.float().T, upper=False)
        return half


@dataclass(frozen=True)
class InverseBySamples:
    """The inverse by the products of samples, in double precision.

    Example:
        >>> inverse = InverseBySamples.of(torch.tensor([[1.0, 1.0, 1.0]]), torch.ones(3), ridge=1.0)
        >>> vectors = torch.tensor([[4.0, 0.0, 0.0]])
        >>> inverse.solve(vectors).tolist(), inverse.squared_norms(vectors).tolist()
        ([[3.0, -1.0, -1.0]], [12.0])
    """

    rows: Tensor  # the features X without their scale: [samples, features]
    scale: Tensor  # what each feature is multiplied by: [features]
    factor: Tensor  # lower triangular L, with L L' = XX' + c: [samples, samples]
    ridge: float

    @classmethod
    def of(cls, rows: Tensor, scale: Tensor, ridge: float) -> InverseBySamples:
        """The inverse for ``X = scale * rows``, of [samples, features] and [features], and a ridge above 0.

        Raises:
            TracInError: the ridge is too small.
        """
        scale = scale.double()
        products = torch.zeros(len(rows), len(rows), dtype=torch.float64)  # the lower triangle is what Cholesky reads
        for start in range(0, len(rows), _ROWS):
            some = rows[start : start + _ROWS].double() * scale.square()
            for other in range(0, start + 1, _ROWS):
                products[start : start + _ROWS, other : other + _ROWS] = some @ rows[other : other + _ROWS].double().T
        trace = float(products.diagonal().sum())
        if ridge < torch.finfo(torch.float64).eps * trace:
            raise _too_small(ridge, trace)
        products.diagonal().add_(ridge)
        return cls(rows, scale, _cholesky(products, ridge), ridge)

    def solve(self, vectors: Tensor) -> Tensor:
        """``(X'X + c)^-1 v``, in the vectors' precision: [vectors, features]."""
        _, rest = self._regression(vectors)
        return rest.div_(self.ridge).to(vectors.dtype)

    def squared_norms(self, vectors: Tensor) -> Tensor:
        """``v' (X'X + c)^-1 v``, in the vectors' precision: [vectors]."""
        found, rest = self._regression(vectors)
        norms: Tensor = found.square().sum(0) + rest.square().sum(1) / self.ridge
        return norms.to(vectors.dtype)

    def _regression(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """z, [samples, vectors], and the residual ``v - X'z``, [vectors, features]."""
        rest, chunks = vectors.double(), torch.split(self.rows, _ROWS)
        scaled = rest * self.scale
        products = torch.cat([some.double() @ scaled.T for some in chunks])
        found = torch.cholesky_solve(products, self.factor)
        fitted = torch.zeros_like(rest)
        for some, mine in zip(chunks, torch.split(found, _ROWS), strict=True):
            fitted.addmm_(mine.T, some.double())
        return found, torch.sub(rest, fitted.mul_(self.scale), out=fitted)


class Gathering(Protocol):
    """What the second moment of some features needs of the samples, added shard by shard."""

    def add(self, features: Tensor) -> None:
        """Add some samples: [samples, features]."""

    def energy(self) -> Tensor:
        """The mean square of each feature: [features]."""

    def inverse(self, scale: Tensor, ridge: float) -> DampedInverse:
        """The damped inverse of the second moment of ``scale * features``. Can be called once."""


class GatheredMoment:
    """Keeps the sum of the samples' outer products."""

    def __init__(self, count: int, dim: int) -> None:
        self._count, self._sum = count, torch.zeros(dim, dim, dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """Add some samples: [samples, features]."""
        self._sum += features.T @ features

    def energy(self) -> Tensor:
        """The mean square of each feature: [features]."""
        return self._sum.diagonal() / self._count

    def inverse(self, scale: Tensor, ridge: float) -> InverseByFeatures:
        """The damped inverse of the second moment of ``scale * features``; overwrites the sum."""
        return InverseByFeatures.of(self._sum.div_(self._count).mul_(scale[:, None]).mul_(scale), ridge)


class GatheredRows:
    """Keeps the samples' features."""

    def __init__(self, count: int, dim: int) -> None:
        self._rows, self._filled = torch.empty(count, dim), 0

    def add(self, features: Tensor) -> None:
        """Add some samples: [samples, features]."""
        self._rows[self._filled : self._filled + len(features)] = features
        self._filled += len(features)

    def energy(self) -> Tensor:
        """The mean square of each feature: [features]."""
        total = sum(some.double().square().sum(0) for some in torch.split(self._rows, _ROWS))
        return torch.as_tensor(total) / len(self._rows)

    def inverse(self, scale: Tensor, ridge: float) -> InverseBySamples:
        """The damped inverse of the second moment of ``scale * features``."""
        return InverseBySamples.of(self._rows, scale / len(self._rows) ** 0.5, ridge)


def gathering(count: int, dim: int) -> Gathering:
    """What gathers this many samples of so many features for the form that holds fewer bytes.

    Raises:
        TracInError: even that form holds more than `HELD_BYTES`.

    Example:
        >>> type(gathering(300, 8192)).__name__, type(gathering(5000, 8192)).__name__
        ('GatheredRows', 'GatheredMoment')
    """
    by_samples, by_features = 4 * count * dim + 8 * count**2, 4 * dim**2
    held = min(by_samples, by_features)
    if held > HELD_BYTES:
        most = max(isqrt(HELD_BYTES // 4), HELD_BYTES // (4 * count) - 2 * count)
        raise TracInError(
            f"Whitening {dim:,} features of {count:,} train samples together holds {naturalsize(held)} in memory; use "
            f"blocks='layer', or a `projection_dim` of at most {most:,}."
        )
    return GatheredRows(count, dim) if by_samples <= by_features else GatheredMoment(count, dim)


def _cholesky(damped: Tensor, ridge: float) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(damped)
    if failed:
        raise _too_small(ridge, float(damped.diagonal().sum()))
    found: Tensor = factor
    return found


def _too_small(ridge: float, trace: float) -> TracInError:
    return TracInError(
        f"A ridge of {ridge:.2g} is too small to invert a second moment with a trace of {trace:.2g} in floating-point numbers; "
        "take a larger `damping`."
    )
