"""How many steps a window has, and which steps are accounted: both follow from counts alone, so a resumed fit finds the same."""

from __future__ import annotations

import hashlib
import math

from numpy.polynomial.legendre import leggauss

#: The part of a fit's time that looking at the probes may take by default, and the most windows of an epoch.
TIME_SHARE, WINDOWS_AN_EPOCH = 0.25, 20

#: Points of the rule of Gauss and Legendre on the straight way through a window; two are enough for one or two steps.
_POINTS, _POINTS_OF_SHORT = 3, 2

#: How often the points are doubled where the loss is rough.
DOUBLED = 2

#: What may be left of a window's change of loss: a part of the change, and a part of the loss.
_CLOSE, _LEAST = 0.002, 0.0002

#: Cost of a probe's gradient and of a probe's loss, in train samples that go forward and backward.
_GRADIENT_COST, _LOSS_COST = 0.8, 0.2


def rules(steps: int) -> list[list[tuple[float, float]]]:
    """Where between the weights at a window's two ends the probes' gradients are computed, and what each counts.

    The rule of Gauss and Legendre with n points is exact where the loss along the way is a polynomial of degree 2 n. The mean of
    both ends (the trapezoidal rule) is exact up to the second degree only.

    Args:
        steps: in the window.

    Returns:
        The rule to begin with, and those for a loss that is too rough for the one before.

    Example:
        >>> [len(rule) for rule in rules(8)], [(round(place, 3), round(weight, 3)) for place, weight in rules(8)[0]]
        ([3, 6, 12], [(0.113, 0.278), (0.5, 0.444), (0.887, 0.278)])
    """
    points = _POINTS if steps > 2 else _POINTS_OF_SHORT
    return [gauss_legendre(points * 2**times) for times in range(DOUBLED + 1)]


def is_close(fall: float, found: float, loss: float) -> bool:
    """Whether a rule has found a window's change of loss closely enough.

    Args:
        fall: as measured.
        found: by the rule.
        loss: where the window begins.

    Example:
        >>> is_close(fall=0.5, found=0.499, loss=1.0), is_close(fall=0.5, found=0.49, loss=1.0)
        (True, False)
    """
    return abs(fall - found) <= _CLOSE * abs(fall) + _LEAST * abs(loss)


def gauss_legendre(points: int) -> list[tuple[float, float]]:
    """The rule of Gauss and Legendre between 0 and 1: places, and what each counts.

    Example:
        >>> gauss_legendre(1)
        [(0.5, 1.0)]
    """
    places, weights = leggauss(points)
    return [(0.5 + float(place) / 2, float(weight) / 2) for place, weight in zip(places, weights, strict=True)]


def window_length(queries: int, samples_a_step: int, batches: float, accumulated: int, every: int) -> int:
    """The default number of steps in a window.

    Args:
        queries: probes that are looked at where two windows meet.
        samples_a_step: train samples in an optimizer step.
        batches: of an epoch; infinite for a stream of unknown length.
        accumulated: batches of a step.
        every: one of this many steps is accounted; the probes may cost as many times less.

    Example:
        >>> window_length(queries=40, samples_a_step=32, batches=50, accumulated=1, every=1)
        14
        >>> window_length(queries=1, samples_a_step=32, batches=1000, accumulated=2, every=1)
        25
    """
    cost = queries * (_POINTS * _GRADIENT_COST + _LOSS_COST)
    paid = math.ceil(cost / (TIME_SHARE / every * samples_a_step))
    fewest = math.ceil(batches / accumulated / WINDOWS_AN_EPOCH) if math.isfinite(batches) else 1
    return max(1, paid, fewest)


def is_accounted(step: int, every: int) -> bool:
    """Whether a step is accounted: one of every `every` consecutive steps, drawn from its number.

    Args:
        step: the optimizer step, from 1.
        every: the number of steps.

    Example:
        >>> [sum(is_accounted(step, 4) for step in range(at, at + 4)) for at in (1, 5, 9)]
        [1, 1, 1]
    """
    block, place = divmod(step - 1, every)
    drawn = int.from_bytes(hashlib.blake2b(f"{every}/{block}".encode(), digest_size=8).digest(), "big")
    return drawn % every == place
