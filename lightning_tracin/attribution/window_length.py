"""How many steps a window has, and which steps are accounted: both follow from counts alone, so a resumed fit finds the same."""

from __future__ import annotations

import hashlib
import math

#: The part of a fit's time that looking at the probes may take by default, and the most windows of an epoch.
TIME_SHARE, WINDOWS_AN_EPOCH = 0.25, 20

#: Cost of a probe's gradient and of a probe's loss, in train samples that go forward and backward (`python -m benchmarks --only
#: probe_look_vs_step`).
GRADIENT_COST, LOSS_COST = 1.5, 0.4


def look_cost(queries: int, measured: int) -> float:
    """The cost of looking at the probes once, in train samples that go forward and backward.

    Args:
        queries: probes whose gradients are computed.
        measured: all probes, whose losses are computed.

    Example:
        >>> look_cost(queries=10, measured=20)
        23.0
    """
    return GRADIENT_COST * queries + LOSS_COST * measured


def window_length(cost: float, samples_a_step: int, batches: float, accumulated: int) -> int:
    """The default number of steps in a window.

    Args:
        cost: of looking at the probes once; see `look_cost`.
        samples_a_step: train samples in an optimizer step.
        batches: of an epoch; infinite for a stream of unknown length.
        accumulated: batches of a step.

    Example:
        >>> window_length(cost=100, samples_a_step=32, batches=50, accumulated=1)
        13
        >>> window_length(cost=1, samples_a_step=32, batches=1000, accumulated=2)
        25
    """
    paid = math.ceil(cost / (TIME_SHARE * samples_a_step))
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
