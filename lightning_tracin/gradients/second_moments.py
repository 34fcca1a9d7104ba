"""The second moment of every coordinate of the gradients, and the damping under which it predicts other samples best.

**Damping.** The inverse of an estimated second moment is dominated by the directions that were estimated worst: those in which
the samples at hand happen to have almost no gradient. Damping c bounds the inverse. It is chosen here by what it is for,
estimating the second moment, and not by what scores it leads to. The samples are split into two halves. From each half come the
second moments ``lambda_j`` of all coordinates j, and the other half says how likely its gradients are if coordinate j has the
variance ``lambda_j + c``. Up to constants, the negative log-likelihood of a Gaussian with mean zero is

    sum over j of  log(lambda_j + c) + m_j / (lambda_j + c),        m_j: the second moment in the other half

Both directions are added up, and the smallest sum on a grid of c wins. Without damping, a coordinate that one half has no
gradient in costs ``m_j / 0``; with much of it, all coordinates get the same variance. c is a multiple of the mean second moment,
and it is chosen for each parameter alone, since each parameter has a factor of its own in the likelihood.

Coordinates in which no sample has a gradient (a token that does not occur, a direction that inputs never have) are left out: both
halves agree that their variance is 0, so they would push c to 0. So are parameters whose gradients are nothing but rounding, such
as the bias of attention's keys, which the softmax cancels: the inverse would make that noise as large as any gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightning_tracin.gradients.forms import Form, Outer, Rows, samples_of, some_rows, sum_of_rows, tensor_of, whole
from lightning_tracin.gradients.products import wide_type
from lightning_tracin.gradients.tiles import step_of, tiles

#: The grid of dampings, as multiples of the mean second moment of a parameter's coordinates.
DAMPINGS: tuple[float, ...] = tuple(10.0 ** (step / 2) for step in range(-12, 5))

#: A second moment below this part of the parameter's largest is rounding, and so is a parameter below this part of all.
ROUNDING = 1e-12

#: Elements that are written out at a time: in one tile, and of whole gradients where a parameter has forms of several kinds.
TILE, BLOCK = 1_000_000, 64_000_000


class SecondMoments:
    """Sums of squared coordinates over the samples of two halves.

    Example:
        >>> moments = SecondMoments()
        >>> from lightning_tracin.gradients import Dense
        >>> moments.add("bias", 2, (Dense(torch.tensor([[1.0, 2.0], [3.0, 0.0]])),), halves=torch.tensor([0, 1]))
        >>> moments.of("bias", 2).tolist()
        [[1.0, 4.0], [9.0, 0.0]]
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # parameter -> [2, elements]

    def add(self, name: str, elements: int, forms: Sequence[Form], halves: Tensor) -> None:
        """Add the samples of one batch.

        Args:
            name: the parameter.
            elements: number of its elements.
            forms: the coordinates.
            halves: the half of each sample, 0 or 1: [samples].
        """
        values = tensor_of(forms)
        if name not in self._sums:
            self._sums[name] = values.new_zeros(2, elements, dtype=wide_type(values.dtype))
        out, halves = self._sums[name], halves.to(values.device)
        rows = [form for form in forms if isinstance(form, Rows)]
        if len(rows) == len(forms):
            summed = sum_of_rows(rows)
            lines = halves[summed.sample] * summed.table + summed.row
            out.view(2 * summed.table, -1).index_add_(0, lines, summed.values.to(out.dtype).square())
            return
        for start, some in _in_blocks(forms, elements):
            form = whole(some)
            step, first = step_of([(0, form)], samples_of(form), TILE), 0
            mine = halves[start : start + samples_of(form)]
            member = torch.stack([mine == 0, mine == 1]).to(out.dtype)
            for tile in tiles([(0, form)], step):
                out[:, first : first + tile.shape[1]] += member @ tile.to(out.dtype).square()
                first += tile.shape[1]

    def of(self, name: str, elements: int) -> Tensor:
        """The sums of one parameter, on the CPU; zeros if nothing was added: [2, elements]."""
        return self._sums[name].cpu() if name in self._sums else torch.zeros(2, elements)


def _in_blocks(forms: Sequence[Form], elements: int) -> Iterator[tuple[int, list[Form]]]:
    """Some samples at a time, where the gradients have to be written out to be added up; with the index of the first."""
    samples = samples_of(forms[0])
    step = samples if len(forms) == 1 else max(1, BLOCK // elements)
    for start in range(0, samples, max(1, step)):
        stop = min(start + step, samples)
        yield start, [_some(form, start, stop) for form in forms]


def _some(form: Form, start: int, stop: int) -> Form:
    if isinstance(form, Rows):
        return some_rows(form, start, stop)
    if isinstance(form, Outer):
        return Outer(form.left[start:stop], form.right[start:stop])
    return replace(form, values=form.values[start:stop])


def has_gradient(moments: Tensor, whole: float = 0.0) -> Tensor:
    """Which coordinates have a second moment that is more than rounding: [elements].

    Args:
        moments: of each half: [2, elements].
        whole: their sum over the coordinates of all parameters.

    Example:
        >>> has_gradient(torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.5, 0.0]])).tolist()
        [True, True, False]
    """
    total = moments.sum(0)
    is_noise = float(total.sum(dtype=torch.float64)) < ROUNDING * whole
    return (total > 0) & (total >= ROUNDING * total.max()) & (not is_noise)


def held_out_loss(moments: Tensor, damping: float) -> float:
    """The formula above, as a mean over coordinates and both directions.

    Args:
        moments: of each half, in coordinates that have a gradient: [2, elements].
        damping: c, as a multiple of the mean second moment.

    Example:
        >>> held_out_loss(torch.tensor([[1.0, 1.0], [1.0, 1.0]]), damping=1.0)  # log 2 + 1 / 2
        1.193147...
    """
    moments = moments.double()
    damped = moments + damping * moments.mean()
    return float((damped.log() + moments.flip(0) / damped).mean())


def chosen_damping(moments: Tensor) -> float:
    """The damping of the grid with the smallest `held_out_loss`.

    Args:
        moments: second moments of each half: [2, elements].

    Example:
        >>> chosen_damping(torch.tensor([[1.0, 2.0], [1.0, 2.0]])) == DAMPINGS[0]  # the halves agree
        True
        >>> chosen_damping(torch.tensor([[0.0, 2.0], [2.0, 0.0]])) > 0.5  # they say nothing about each other
        True
    """
    known = moments[:, has_gradient(moments)]
    if not known.shape[1]:
        return DAMPINGS[-1]
    return min(DAMPINGS, key=lambda damping: held_out_loss(known, damping))


def damped_scale(moments: Tensor, damping: float, counts: Sequence[int], whole: float = 0.0) -> Tensor:
    """``1 / sqrt(lambda + c)`` of each coordinate, over all samples; 0 in coordinates without a gradient: [elements].

    Args:
        moments: sums of squared coordinates over the samples of each half: [2, elements].
        damping: c, as a multiple of the mean second moment.
        counts: number of samples of each half.
        whole: see `has_gradient`.

    Example:
        >>> damped_scale(torch.tensor([[1.0, 0.0], [7.0, 0.0]]), damping=3.0, counts=(1, 1)).tolist()  # lambda = 4, c = 12
        [0.25, 0.0]
    """
    known, values = has_gradient(moments, whole), moments.sum(0).double() / sum(counts)
    ridge = damping * values[known].mean() if bool(known.any()) else values.new_ones(())
    return torch.where(known, (values + ridge).rsqrt(), 0.0).to(moments.dtype)
