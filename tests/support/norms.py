"""Root-mean-square norms written by hand, and layers that only look like them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 6


class Scaled(nn.Module):
    """Written by hand: another class name, and another name of epsilon."""

    def __init__(self, smallest: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))
        self.smallest = smallest

    def normalised(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + self.smallest).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        return self.normalised(x) * self.weight


class WithConstant(Scaled):
    """Its epsilon stands in its code."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * (x * x).mean(-1, keepdim=True).add(3e-5).rsqrt()


class OnePlus(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return self.normalised(x) * (1 + self.weight)


class Functional(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (WIDTH,), self.weight, self.smallest)


class ByLength(Scaled):
    """The square root of the mean is the length over that of the width."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True) * WIDTH**0.5 * self.weight


class AddsWhole(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.floor().relu()


class OtherWhereAllIsLarge(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight if x.abs().min() > 1 else super().forward(x)


class OtherWhereAllIsSmall(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight if 1e-8 < x.abs().max() < 1e-2 else super().forward(x)


class OtherForZeros(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where((x == 0).all(-1, keepdim=True), self.weight, super().forward(x))


class Centred(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(-1, keepdim=True))


class Shifted(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.1


class ClampedBefore(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clamp(-1e4, 1e4))


class ClampedAfter(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(max=2)


class EpsilonOutside(Scaled):
    def normalised(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True).sqrt() + self.smallest)


class EpsilonAsLeast(Scaled):
    def normalised(self, x: Tensor) -> Tensor:
        return x / x.square().mean(-1, keepdim=True).clamp(min=self.smallest).sqrt()


class MeanOfSizes(Scaled):
    def normalised(self, x: Tensor) -> Tensor:
        return x / (x.abs().mean(-1, keepdim=True) + self.smallest)


class OfHalf(Scaled):
    def normalised(self, x: Tensor) -> Tensor:
        return x / (x[..., : WIDTH // 2].square().mean(-1, keepdim=True) + self.smallest).sqrt()


class OverPositions(Scaled):
    def normalised(self, x: Tensor) -> Tensor:
        return x / (x.square().mean((-2, -1), keepdim=True) + self.smallest).sqrt() if x.ndim > 2 else super().normalised(x)


class ButTheFirst(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., :1, :], super().forward(x[..., 1:, :])], -2)


class Squared(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.weight


class Positive(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return self.normalised(x) * self.weight.abs()


class Exponential(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return self.normalised(x) * self.weight.exp()


class Bounded(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return self.normalised(x) * self.weight.clamp(-5, 5)


class Rolled(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return self.normalised(x) * self.weight.roll(1)


class HalfDetached(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return self.normalised(x) * (self.weight + self.weight.detach()) / 2


class OneForAll(Scaled):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))


class Dropped(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.05, self.training)


class OtherInTraining(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else x * self.weight


class WithBuffer(Scaled):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.factor


class WithChild(Scaled):
    def __init__(self) -> None:
        super().__init__()
        self.after = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(super().forward(x))


class WithList(Scaled):
    """Holds something that may change."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = [1.0]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.factors[0]


class Counting(Scaled):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class InPlace(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(1.0))


class ForLengthFive(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2] != 5:
            raise ValueError("five positions only")
        return super().forward(x)


class Gated(Scaled):
    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        return super().forward(x if gate is None else x * gate)


class TakesAnything(Scaled):
    def forward(self, x: Tensor, **options: Tensor) -> Tensor:
        return super().forward(x * options.get("gate", 1.0))


class TakesAll(Scaled):
    def forward(self, *inputs: Tensor) -> Tensor:
        return super().forward(sum(inputs))


def gated(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(function)
    def wrapped(self: nn.Module, x: Tensor, gate: float = 1.0) -> Tensor:
        return function(self, x * gate)

    return wrapped


class Wrapped(Scaled):
    @gated
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class CalledOtherwise(Scaled):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) * self.weight


NEAR_MISSES = [
    AddsWhole,
    OtherWhereAllIsLarge,
    OtherWhereAllIsSmall,
    OtherForZeros,
    Centred,
    Shifted,
    ClampedBefore,
    ClampedAfter,
    EpsilonOutside,
    EpsilonAsLeast,
    MeanOfSizes,
    OfHalf,
    OverPositions,
    ButTheFirst,
    Squared,
    Positive,
    Exponential,
    Bounded,
    Rolled,
    HalfDetached,
    OneForAll,
    Dropped,
    OtherInTraining,
    WithBuffer,
    WithChild,
    WithList,
    Counting,
    InPlace,
    ForLengthFive,
    Gated,
    TakesAnything,
    TakesAll,
    Wrapped,
    CalledOtherwise,
]
