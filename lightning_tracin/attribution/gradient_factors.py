"""What happened to the gradients between the backward pass and the step: averaging, unscaling, clipping.

Each parameter's gradient, as the optimizer sees it, is compared with the sum of the parts it was split into. Usually one factor
for all parameters relates them (clipping by norm, a loss scale); else one for each parameter, or one for each element (clipping
by value). The parts get that factor. What still does not add up belongs to no group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

import torch
from torch import Tensor, nn

from lightning_tracin.gradients.group_split import UNDIVIDED, GroupSplit
from lightning_tracin.gradients.group_vectors import PENDING, GroupVectors
from lightning_tracin.gradients.settled_ways import NOTHING

#: Largest difference, relative to a gradient, that rounding may cause, by the least precise data type in the backward pass.
_CLOSE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}

#: An element's factor is not read from parts whose sum is this much smaller than they are.
_CANCELLED = 1e-5


#: Where parts cancel, this part of their size stands for the gradient's, which rounding is compared with.
_ROUNDED = 0.1


@dataclass(frozen=True)
class _Compared:
    """A parameter's gradient and the sum of its parts, on the rows that the parts have."""

    gradient: Tensor
    total: Tensor
    rows: Tensor | None
    beyond: float  # squared norm of the gradient elsewhere
    product: float
    square: float  # of the sum
    norm: float  # squared norm of the gradient
    sizes: float  # sum of the squared norms of the parts, which rounding follows where they cancel
    least: float = 0.0  # squared norm of what is taken for rounding

    def gap(self, factor: float) -> float:
        """How far the gradient is from the factor times the sum, relative to the gradient."""
        scale = max(self.norm, self.least, _ROUNDED**2 * factor * factor * self.sizes)
        if not scale:
            return float(factor * self.square != 0)
        squared = self.norm - 2 * factor * self.product + factor * factor * self.square
        if squared < 1e-6 * scale:  # cancelled: computed from the difference
            squared = float((self.gradient - factor * self.total).double().square().sum()) + self.beyond
        return float((max(squared, 0.0) / scale) ** 0.5)


@dataclass(frozen=True)
class GradientFactors:
    """The factors of the parameters of one optimizer.

    Args:
        parameters: those with a gradient, by name.
        split: holds the parts since the last step.
        scale: what the optimizer itself multiplies gradients with.

    Attributes:
        applied: parameter -> the factor that its parts got, if it is not 1; a number, or one for each element.
    """

    parameters: Mapping[str, nn.Parameter]
    split: GroupSplit
    scale: float = 1.0
    applied: dict[str, Tensor | float] = field(default_factory=dict)

    def apply(self) -> list[str]:
        """Multiply the parts by their factors; the names of parameters whose parts do not add up to the gradient.

        What is left of such a gradient becomes a part of `UNDIVIDED`.
        """
        if self._add_up():
            for name in self.parameters if self.scale != 1.0 else ():
                self._multiply(name, 1.0)
            return []
        compared = {name: _compared(parameter, self.split.vectors[name]) for name, parameter in self.parameters.items()}
        known = {name: one for name, one in compared.items() if one is not None}
        wrong = [name for name in compared if name not in known and self._is_left_whole(name)]
        least = NOTHING**2 * sum(one.norm for one in known.values())
        found = {name: replace(one, least=least) for name, one in known.items()}
        close = _CLOSE[self.split.coarsest]
        ratios = [one.product / one.square for one in found.values() if one.square > 0]
        common = [1.0, *([median(ratios)] if ratios else [])]
        factor = max(common, key=lambda one: sum(other.gap(one) <= close for other in found.values()))
        for name, one in found.items():
            own = one.product / one.square if one.square > 0 else 1.0
            chosen = next((each for each in (factor, own) if one.gap(each) <= close), None)
            if chosen is not None:
                self._multiply(name, chosen)
            elif not self._element_by_element(name, one, factor, close):
                wrong.append(name)
        return wrong

    def _add_up(self) -> bool:
        """Whether all gradients are the sums of their parts, which is usual, and quick to see."""
        close, each = _CLOSE[self.split.coarsest], []
        for name, parameter in self.parameters.items():
            parts = [one for one in self.split.vectors[name].values() if PENDING in one]
            if not parts and bool(_dense(parameter.grad).any()):
                return False
            if parts:
                own, total, beyond = _beside(parameter, parts)
                each.append(
                    (float(torch.linalg.vector_norm(own.sub(total))) + beyond, float(torch.linalg.vector_norm(own)) + beyond)
                )
        least = NOTHING * sum(norm**2 for _, norm in each) ** 0.5
        return all(gap <= close * max(norm, least) for gap, norm in each)

    def _is_left_whole(self, name: str) -> bool:
        """Whether a gradient came in no parts at all, so that it is undivided."""
        gradient = _dense(self.parameters[name].grad)
        if not bool(gradient.any()):
            return False
        self.split.of(name, UNDIVIDED).add(PENDING, gradient * self.scale)
        return True

    def _multiply(self, name: str, factor: float) -> None:
        if factor * self.scale == 1.0 or abs(factor * self.scale - 1.0) < 1e-12:
            return
        self.applied[name] = factor * self.scale
        for vectors in self.split.vectors[name].values():
            if PENDING in vectors:
                vectors[PENDING].mul_(factor * self.scale)

    def _element_by_element(self, name: str, one: _Compared, otherwise: float, close: float) -> bool:
        """Multiply each element by its own factor; False if something of the gradient is left."""
        parts = [vectors for vectors in self.split.vectors[name].values() if PENDING in vectors]
        size = torch.zeros(self.parameters[name].shape, dtype=one.total.dtype, device=one.total.device)
        for vectors in parts:
            size[... if vectors.rows is None else vectors.rows] += vectors[PENDING].abs()
        whole = torch.zeros_like(size)
        whole[... if one.rows is None else one.rows] = one.total
        gradient = _dense(self.parameters[name].grad).to(size)
        is_clear = whole.abs() > _CANCELLED * size
        factor = torch.where(is_clear, gradient / torch.where(is_clear, whole, 1), otherwise)
        plausible = is_clear & (factor >= 0) & (factor <= 1.0 + close) & (otherwise > 0)
        factor = torch.where(plausible | ~is_clear, factor, otherwise)
        left = float((gradient - factor * whole).norm())
        is_explained = left <= 10 * close * float(gradient.norm())
        if not is_explained:  # by no factors at all, then
            factor = torch.full_like(factor, otherwise)
            self.split.of(name, UNDIVIDED).add(PENDING, (gradient - otherwise * whole) * self.scale)
        self.applied[name] = factor * self.scale
        for vectors in parts:
            vectors[PENDING].mul_(vectors.pick(factor)).mul_(self.scale)
        return is_explained


def _compared(parameter: nn.Parameter, vectors: Mapping[int, GroupVectors]) -> _Compared | None:
    """A parameter's gradient beside the sum of its parts; None if there are no parts."""
    parts = [one for one in vectors.values() if PENDING in one]
    if not parts:
        return None
    own, total, beyond = _beside(parameter, parts)
    rows = None if len(total) == len(parameter) else _rows(parts)
    sizes = sum(_dot(one[PENDING], one[PENDING]) for one in parts)
    norm = _dot(own, own) + beyond**2
    return _Compared(own, total, rows, beyond**2, _dot(own, total), _dot(total, total), norm, sizes)


def _beside(parameter: nn.Parameter, parts: Sequence[GroupVectors]) -> tuple[Tensor, Tensor, float]:
    """The gradient and the sum of its parts, of a table on the rows that the parts have, and the gradient's norm elsewhere."""
    gradient = _dense(parameter.grad).to(parts[0][PENDING])
    if any(one.rows is None for one in parts):
        total = parts[0].dense(PENDING)
        for number, one in enumerate(parts[1:]):
            other = one.dense(PENDING)
            total = total.add(other) if number == 0 else total.add_(other)
        return gradient, total, 0.0
    rows = _rows(parts)
    total = gradient.new_zeros(len(rows), *gradient.shape[1:])
    places = torch.full((len(gradient),), -1, dtype=torch.int64, device=gradient.device)
    places[rows] = torch.arange(len(rows), device=gradient.device)
    for one in parts:
        assert one.rows is not None
        total.index_add_(0, places[one.rows], one[PENDING])
    elsewhere = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    elsewhere[rows] = 0
    return gradient[rows], total, float(torch.linalg.vector_norm(elsewhere))


def _rows(parts: Sequence[GroupVectors]) -> Tensor:
    rows: Tensor = torch.unique(torch.cat([one.rows for one in parts if one.rows is not None]))
    return rows


def _dot(one: Tensor, other: Tensor) -> float:
    return float(torch.dot(one.reshape(-1), other.reshape(-1)))


def _dense(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    dense: Tensor = gradient.to_dense() if gradient.is_sparse else gradient.detach()
    return dense
