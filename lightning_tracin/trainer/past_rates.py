"""The learning rates between checkpoints: a checkpoint holds the rate of the step after it, not of the steps before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_tracin.trainer.checkpoints import Checkpoint

Rates = tuple[float, ...]

#: State of torch's schedulers that begin with the base rates.
_FROM_BASE = ({"step_size", "gamma"}, {"milestones", "gamma"}, {"T_max", "eta_min"}, {"gamma"})


@dataclass(frozen=True)
class PastRates:
    """The rates of each optimizer group in the steps since the previous checkpoint."""

    mean: Rates
    last: Rates
    known: bool  # whether these are the fit's own rates; else they are an estimate from the rates at both checkpoints


def past_rates(checkpoints: Sequence[Checkpoint], made: Any = None) -> list[PastRates]:
    """The rates before each checkpoint, in order.

    They come from a log of every step, from the fit's schedulers, where these give what every checkpoint holds, or from the rates
    of whole epochs in the checkpoints. Otherwise they are an estimate.

    Args:
        checkpoints: of one fit, ordered by step.
        made: what `configure_optimizers` of a module with new weights returns; None: not available. Its schedulers are advanced.

    Example:
        >>> from pathlib import Path
        >>> first, second = (Checkpoint(Path("a"), n, 10 * n, n, {}, (2,), (0.3,), {}) for n in (1, 2))
        >>> past_rates([first, second])[1]
        PastRates(mean=(0.3,), last=(0.3,), known=True)
    """
    steps = _replayed(checkpoints, made)
    epochs = {} if steps is not None else _of_epochs(checkpoints)
    found = []
    for position, checkpoint in enumerate(checkpoints):
        before = checkpoints[position - 1] if position else None
        start = 0 if before is None else before.step
        every = None
        if steps is not None:
            every = steps[start : checkpoint.step]
        elif checkpoint.logged:
            every = _logged(checkpoint, start)
        elif not checkpoint.schedulers and (before is None or before.rates == checkpoint.rates):
            every = [checkpoint.rates]
        elif epochs:
            every = _by_epoch(checkpoints, epochs, start, checkpoint.step)
        if every:
            mean = tuple(math.fsum(group) / len(group) for group in zip(*every, strict=True))
            found.append(PastRates(every[0] if len(set(every)) == 1 else mean, every[-1], known=True))
        else:
            found.append(PastRates(checkpoint.mean_rates(before), checkpoint.rates, known=False))
    return found


def unknown_rates(checkpoints: Sequence[Checkpoint], rates: Sequence[PastRates]) -> str | None:
    """Which rates are estimates, for the run's record; None: none is.

    Example:
        >>> from pathlib import Path
        >>> unknown_rates([Checkpoint(Path("a"), 1, 10, 1.0, {}, (2,), (0.3,), {})], [PastRates((0.3,), (0.3,), known=False)])
        'The learning rates before step 10 are estimates: the checkpoints do not tell the rate of every step.'
    """
    steps = [str(checkpoint.step) for checkpoint, one in zip(checkpoints, rates, strict=True) if not one.known]
    if not steps:
        return None
    return f"The learning rates before step {', '.join(steps)} are estimates: the checkpoints do not tell the rate of every step."


def _logged(checkpoint: Checkpoint, start: int) -> list[Rates] | None:
    every: list[Rates] = [
        (checkpoint.logged[step],) for step in range(start + 1, checkpoint.step + 1) if step in checkpoint.logged
    ]
    return every if len(every) == checkpoint.step - start else None


def _replayed(checkpoints: Sequence[Checkpoint], made: Any) -> list[Rates] | None:
    """The rates of every step by the fit's own schedulers; None if they do not give what each checkpoint holds."""
    parts = _parts(made)
    if parts is None or any(len(one.schedulers) != len(parts[1]) for one in checkpoints):
        return None
    optimizer, schedulers = parts
    length = _steps_per_epoch(checkpoints)
    if not schedulers or (length is None and any(each["interval"] == "epoch" for each in schedulers)):
        return None
    expected = {one.step: one for one in checkpoints}
    rates: list[Rates] = []
    for step in range(1, checkpoints[-1].step + 1):
        rates.append(tuple(float(group["lr"]) for group in optimizer.param_groups))
        optimizer._opt_called = True  # schedulers warn about an optimizer that made no step
        for each in schedulers:
            if each["interval"] == "step":
                due = step if length is None else (step - 1) % length + 1
            else:
                due = step // length if length is not None and step % length == 0 else 0
            if due and due % each["frequency"] == 0:
                each["scheduler"].step()
        now = tuple(float(group["lr"]) for group in optimizer.param_groups)
        if step in expected and not _alike(now, expected[step].rates):
            return None
    return rates


def _parts(made: Any) -> tuple[Any, list[dict[str, Any]]] | None:
    """One optimizer and its schedulers, if `configure_optimizers` returned such, without one that follows a metric."""
    schedulers: Any = []
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], list | tuple):
        made, schedulers = made
    if isinstance(made, list | tuple):
        if len(made) != 1:
            return None
        made = made[0]
    if isinstance(made, dict):
        schedulers = [made["lr_scheduler"]] if "lr_scheduler" in made else schedulers
        made = made.get("optimizer")
    if not hasattr(made, "param_groups"):
        return None
    several = schedulers if isinstance(schedulers, list | tuple) else [schedulers]
    whole = [{"interval": "epoch", "frequency": 1, **(one if isinstance(one, dict) else {"scheduler": one})} for one in several]
    if any(isinstance(one["scheduler"], ReduceLROnPlateau) for one in whole):
        return None
    return made, whole


def _alike(ours: Rates, theirs: Rates) -> bool:
    return len(ours) == len(theirs) and all(
        math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-15) for a, b in zip(ours, theirs, strict=True)
    )


def _steps_per_epoch(checkpoints: Sequence[Checkpoint]) -> int | None:
    """The same whole number of steps in each epoch, if the checkpoints agree on it."""
    ended = [one for one in checkpoints if one.passed == one.epoch] or checkpoints
    lengths = {one.step / one.passed for one in ended if one.passed}
    length = round(min(lengths, default=0))
    if not length or any(abs(one - length) > 1e-6 for one in lengths):
        return None
    return length if all(math.ceil(one.step / length) == one.epoch for one in checkpoints) else None


def _of_epochs(checkpoints: Sequence[Checkpoint]) -> dict[int, Rates]:
    """Epoch, from 1 -> its rates, as far as the states of one scheduler of epochs tell them.

    After n steps of such a scheduler the optimizer has the rate of epoch n + 1. The count of steps is in the scheduler's state.
    """
    if _steps_per_epoch(checkpoints) is None or any(len(one.schedulers) != 1 for one in checkpoints):
        return {}
    found: dict[int, Rates] = {}
    for one in checkpoints:
        state = one.schedulers[0]
        count, follows = state.get("last_epoch"), "num_bad_epochs" in state
        done = one.epoch if one.passed == one.epoch else one.epoch - 1
        if not isinstance(count, int) or not (count == done or (follows and count == one.epoch - 1)):
            return {}
        found[count + 1] = one.rates
        if _starts_with_base(state):
            found[1] = tuple(float(rate) for rate in state["base_lrs"])
    if "num_bad_epochs" in checkpoints[0].schedulers[0]:  # rates only fall, so what is equal at two epochs is equal between
        known = sorted(found)
        for low, high in pairwise(known):
            if found[low] == found[high]:
                found |= dict.fromkeys(range(low, high), found[low])
    return found


def _starts_with_base(state: Mapping[str, Any]) -> bool:
    usual = {"base_lrs", "last_epoch", "verbose", "_step_count", "_is_initial", "_get_lr_called_within_step", "_last_lr"}
    return "base_lrs" in state and {name for name in state if name not in usual} in _FROM_BASE


def _by_epoch(checkpoints: Sequence[Checkpoint], epochs: Mapping[int, Rates], start: int, end: int) -> list[Rates] | None:
    length = _steps_per_epoch(checkpoints)
    assert length is not None, "rates of epochs are found only with it"
    needed = [math.ceil(step / length) for step in range(start + 1, end + 1)]
    return [epochs[epoch] for epoch in needed] if set(needed) <= set(epochs) else None
