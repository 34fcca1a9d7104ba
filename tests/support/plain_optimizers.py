"""Optimizers written out from their papers, step by step, for gradients that are split by source: the oracle of accounts.

Each keeps the second moments of the sum of all gradients, and a first moment for each source. `step` returns each source's part
of the update, with "decay" for weight decay.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Parts = dict[object, Tensor]
PlainStep = Callable[[Parts, Tensor], Parts]


def _with_coupled(parts: Parts, weights: Tensor, decay: float, sign: int = 1) -> Parts:
    return {**{source: sign * one for source, one in parts.items()}, **({"decay": decay * weights} if decay else {})}


class _Moments(dict[object, Tensor]):
    def follow(self, parts: Parts, keep: float, gain: float | Tensor) -> _Moments:
        for source in {*self, *parts}:
            old, new = self.get(source, torch.zeros(())), parts.get(source, torch.zeros(()))
            self[source] = keep * old + gain * new
        return self


def sgd(
    lr: float, momentum: float = 0.0, dampening: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0, maximize=False
):
    moments: _Moments = _Moments()
    begun = []

    def step(parts: Parts, weights: Tensor) -> Parts:
        parts = _with_coupled(parts, weights, weight_decay, -1 if maximize else 1)
        if not momentum:
            return {source: -lr * one for source, one in parts.items()}
        moments.follow(parts, momentum, 1 - dampening if begun else 1.0)
        begun.append(True)
        if nesterov:
            return {source: -lr * (parts.get(source, 0) + momentum * one) for source, one in moments.items()}
        return {source: -lr * one for source, one in moments.items()}

    return step


def adam(
    lr: float,
    betas=(0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    amsgrad=False,
    maximize=False,
):
    moments, second, largest, count = _Moments(), torch.zeros(()), torch.zeros(()), 0

    def step(parts: Parts, weights: Tensor) -> Parts:
        nonlocal second, largest, count
        count += 1
        sign = -1 if maximize else 1
        parts = _with_coupled(parts, weights, 0.0 if decoupled else weight_decay, sign)
        total = sum(parts.values())
        second = betas[1] * second + (1 - betas[1]) * total**2
        largest = torch.maximum(largest, second)
        used = (largest if amsgrad else second) / (1 - betas[1] ** count)
        moments.follow(parts, betas[0], 1 - betas[0])
        found = {source: -lr * one / (1 - betas[0] ** count) / (used.sqrt() + eps) for source, one in moments.items()}
        return {**found, "decay": -lr * weight_decay * weights} if decoupled and weight_decay else found

    return step


def adamax(lr: float, betas=(0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0):
    moments, largest, count = _Moments(), torch.zeros(()), 0

    def step(parts: Parts, weights: Tensor) -> Parts:
        nonlocal largest, count
        count += 1
        parts = _with_coupled(parts, weights, weight_decay)
        largest = torch.maximum(betas[1] * largest, sum(parts.values()).abs() + eps)
        moments.follow(parts, betas[0], 1 - betas[0])
        return {source: -lr / (1 - betas[0] ** count) * one / largest for source, one in moments.items()}

    return step


def nadam(lr: float, betas=(0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0, momentum_decay: float = 4e-3):
    moments, second, count, product = _Moments(), torch.zeros(()), 0, 1.0

    def step(parts: Parts, weights: Tensor) -> Parts:
        nonlocal second, count, product
        count += 1
        parts = _with_coupled(parts, weights, weight_decay)
        mu, following = (betas[0] * (1 - 0.5 * 0.96 ** (at * momentum_decay)) for at in (count, count + 1))
        product *= mu
        second = betas[1] * second + (1 - betas[1]) * sum(parts.values()) ** 2
        spread = (second / (1 - betas[1] ** count)).sqrt() + eps
        moments.follow(parts, betas[0], 1 - betas[0])
        now = lr * (1 - mu) / (1 - product)
        return {
            source: -(now * parts.get(source, 0) + lr * following / (1 - product * following) * one) / spread
            for source, one in moments.items()
        }

    return step


def radam(lr: float, betas=(0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0):
    moments, second, count = _Moments(), torch.zeros(()), 0
    longest = 2 / (1 - betas[1]) - 1

    def step(parts: Parts, weights: Tensor) -> Parts:
        nonlocal second, count
        count += 1
        parts = _with_coupled(parts, weights, weight_decay)
        second = betas[1] * second + (1 - betas[1]) * sum(parts.values()) ** 2
        moments.follow(parts, betas[0], 1 - betas[0])
        correction = 1 - betas[1] ** count
        length = longest - 2 * count * betas[1] ** count / correction
        scale = torch.ones(())
        if length > 5:
            rectified = math.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
            scale = rectified * math.sqrt(correction) / (second.sqrt() + eps)
        return {source: -lr * one / (1 - betas[0] ** count) * scale for source, one in moments.items()}

    return step


def rmsprop(lr: float, alpha: float = 0.99, eps: float = 1e-8, momentum: float = 0.0, centered=False, weight_decay: float = 0.0):
    moments, second, first = _Moments(), torch.zeros(()), torch.zeros(())

    def step(parts: Parts, weights: Tensor) -> Parts:
        nonlocal second, first
        parts = _with_coupled(parts, weights, weight_decay)
        total = sum(parts.values())
        second = alpha * second + (1 - alpha) * total**2
        first = alpha * first + (1 - alpha) * total
        spread = (second - first**2 if centered else second).sqrt() + eps
        if not momentum:
            return {source: -lr * one / spread for source, one in parts.items()}
        return {source: -lr * one for source, one in moments.follow(parts, momentum, 1 / spread).items()}

    return step


def adagrad(lr: float, lr_decay: float = 0.0, eps: float = 1e-10, weight_decay: float = 0.0):
    second, count = torch.zeros(()), 0

    def step(parts: Parts, weights: Tensor) -> Parts:
        nonlocal second, count
        count += 1
        parts = _with_coupled(parts, weights, weight_decay)
        second = second + sum(parts.values()) ** 2
        return {source: -lr / (1 + (count - 1) * lr_decay) * one / (second.sqrt() + eps) for source, one in parts.items()}

    return step


def adadelta(lr: float, rho: float = 0.9, eps: float = 1e-6, weight_decay: float = 0.0):
    second, moved = torch.zeros(()), torch.zeros(())

    def step(parts: Parts, weights: Tensor) -> Parts:
        nonlocal second, moved
        parts = _with_coupled(parts, weights, weight_decay)
        second = rho * second + (1 - rho) * sum(parts.values()) ** 2
        scale = (moved + eps).sqrt() / (second + eps).sqrt()
        moved = rho * moved + (1 - rho) * (scale * sum(parts.values())) ** 2
        return {source: -lr * scale * one for source, one in parts.items()}

    return step


def adafactor(lr: float, beta2_decay: float = -0.8, eps=(None, 1e-3), d: float = 1.0, weight_decay: float = 0.0):
    """As torch has it: relative steps, no first moment."""
    rows = columns = vector = torch.zeros(())
    count = 0

    def step(parts: Parts, weights: Tensor) -> Parts:
        nonlocal rows, columns, vector, count
        count += 1
        small = torch.finfo(weights.dtype).eps if eps[0] is None else eps[0]
        gain = count**beta2_decay
        total = sum(parts.values())
        alpha = max(eps[1], float(weights.norm()) / math.sqrt(weights.numel())) * min(lr, 1 / math.sqrt(count))
        if weights.ndim > 1:
            rows = (1 - gain) * rows + gain * (total**2).mean(-1, keepdim=True)
            columns = (1 - gain) * columns + gain * (total**2).mean(-2, keepdim=True)
            second = rows * columns / rows.mean(-2, keepdim=True).clamp(min=small)
        else:
            second = vector = (1 - gain) * vector + gain * total**2
        scale = 1 / second.clamp(min=small**2).sqrt()
        cut = max(1.0, float((scale * total).norm()) / math.sqrt(weights.numel()) / d)
        found = {source: -alpha / cut * scale * one for source, one in parts.items()}
        return {**found, "decay": -lr * weight_decay * weights} if weight_decay else found

    return step


def fairseq_adafactor(lr: float, beta1: float | None, weight_decay: float = 0.0):
    """As transformers has it, with a fixed rate, `relative_step=False` and `scale_parameter=False`."""
    rows = columns = vector = torch.zeros(())
    moments, count = _Moments(), 0

    def step(parts: Parts, weights: Tensor) -> Parts:
        nonlocal rows, columns, vector, count
        count += 1
        keep = 1 - count**-0.8
        total = sum(parts.values())
        if weights.ndim > 1:
            rows = keep * rows + (1 - keep) * (total**2 + 1e-30).mean(-1)
            columns = keep * columns + (1 - keep) * (total**2 + 1e-30).mean(-2)
            scale = 1 / ((rows / rows.mean(-1, keepdim=True))[..., None] * columns[..., None, :]).sqrt()
        else:
            vector = keep * vector + (1 - keep) * (total**2 + 1e-30)
            scale = 1 / vector.sqrt()
        cut = max(1.0, float((scale * total).norm()) / math.sqrt(weights.numel()))
        found = {source: lr / cut * scale * one for source, one in parts.items()}
        if beta1 is not None:
            found = dict(moments.follow(found, beta1, 1 - beta1))
        found = {source: -one for source, one in found.items()}
        return {**found, "decay": -lr * weight_decay * weights} if weight_decay else found

    return step
