"""Learning rates and visits between snapshots, as the fit goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.optim import Optimizer


@dataclass(frozen=True)
class StepInterval:
    """What happened between two snapshots."""

    steps: int  # optimizer steps
    mean: tuple[float, ...]  # of each group, over the steps of its optimizer
    last: tuple[float, ...]  # of each group, at the last of them
    samples: int  # train samples seen, repetitions counted


@dataclass
class Recorder:
    """Counts optimizer steps and averages each group's learning rate over them.

    Groups are numbered through all optimizers. Rates are read from the optimizer at every step, since schedulers change
    them in place. A step of the fit is a step of the optimizer that has made most of them.
    """

    counts: dict[int, int] = field(default_factory=dict)  # optimizer -> steps so far
    before: dict[int, int] = field(default_factory=dict)  # optimizer -> steps at the previous snapshot
    sums: dict[tuple[int, int], float] = field(default_factory=dict)  # (optimizer, group) -> sum of rates since then
    last: dict[tuple[int, int], float] = field(default_factory=dict)  # (optimizer, group) -> latest rate
    samples: int = 0

    @property
    def step(self) -> int:
        """Optimizer steps made so far."""
        return max(self.counts.values(), default=0)

    def record(self, optimizer: int, rates: Sequence[float]) -> None:
        """Note that an optimizer is about to step with these learning rates, one a group."""
        self.counts[optimizer] = self.counts.get(optimizer, 0) + 1
        for group, rate in enumerate(rates):
            self.sums[optimizer, group] = self.sums.get((optimizer, group), 0.0) + rate
            self.last[optimizer, group] = rate

    def see(self, samples: int) -> None:
        """Note that so many train samples went by."""
        self.samples += samples

    def interval(self, optimizers: Sequence[Optimizer]) -> StepInterval:
        """What happened since the previous snapshot. A group whose optimizer made no step has rate 0."""
        mean, last = [], []
        for number, optimizer in enumerate(optimizers):
            steps = self.counts.get(number, 0) - self.before.get(number, 0)
            for group in range(len(optimizer.param_groups)):
                mean.append(self.sums.get((number, group), 0.0) / steps if steps else 0.0)
                last.append(self.last.get((number, group), 0.0))
        most = max((self.counts[number] - self.before.get(number, 0) for number in self.counts), default=0)
        return StepInterval(most, tuple(mean), tuple(last), self.samples)

    def start_interval(self) -> None:
        """Forget the interval; the step count goes on."""
        self.before = dict(self.counts)
        self.sums.clear()
        self.samples = 0

    def state(self) -> dict[str, Any]:
        """As plain types, for a checkpoint."""
        return {
            "counts": [[number, count] for number, count in self.counts.items()],
            "before": [[number, count] for number, count in self.before.items()],
            "sums": [[number, group, rate] for (number, group), rate in self.sums.items()],
            "last": [[number, group, rate] for (number, group), rate in self.last.items()],
            "samples": self.samples,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Recorder:
        """Restore from `state()`."""
        return cls(
            counts=dict(state["counts"]),
            before=dict(state["before"]),
            sums={(number, group): rate for number, group, rate in state["sums"]},
            last={(number, group): rate for number, group, rate in state["last"]},
            samples=state["samples"],
        )


class StepWatch:
    """Records the steps that optimizers make, out of those that a fit has announced: a scaler of gradients may skip one.

    Args:
        optimizers: of the fit, plain or wrapped.
        recorder: what counts.
    """

    def __init__(self, optimizers: Sequence[Any], recorder: Recorder) -> None:
        self._recorder = recorder
        self._numbers = {id(unwrapped(optimizer)): number for number, optimizer in enumerate(optimizers)}
        self._expected: dict[int, list[float]] = {}  # optimizer -> rates of the step that is about to be made
        self._hooks = [unwrapped(optimizer).register_step_post_hook(self._stepped) for optimizer in optimizers]

    def expect(self, optimizer: Optimizer) -> None:
        """Note that an optimizer is about to step, and with which rates."""
        self._expected[self._numbers[id(optimizer)]] = rates_of(optimizer)

    def _stepped(self, optimizer: Optimizer, *_: Any) -> None:
        number = self._numbers[id(optimizer)]
        if number in self._expected:
            self._recorder.record(number, self._expected.pop(number))

    def close(self) -> None:
        """Leave the optimizers alone."""
        for hook in self._hooks:
            hook.remove()


def unwrapped(optimizer: Any) -> Any:
    """The torch optimizer within a LightningOptimizer."""
    return getattr(optimizer, "optimizer", optimizer)


def rates_of(optimizer: Optimizer) -> list[float]:
    """The learning rate of each of an optimizer's groups, now."""
    return [float(group["lr"]) for group in optimizer.param_groups]


def group_of_parameters(optimizers: Sequence[Optimizer]) -> dict[int, int]:
    """Identity of each optimized parameter -> its group, numbered through all optimizers."""
    numbered = (group for optimizer in optimizers for group in optimizer.param_groups)
    return {id(parameter): number for number, group in enumerate(numbered) for parameter in group["params"]}
