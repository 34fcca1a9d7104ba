"""Learning rates, steps and visits between snapshots, recorded during the fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import SGD, Optimizer


@dataclass(frozen=True)
class StepInterval:
    """What happened between two snapshots."""

    steps: int  # optimizer steps
    mean: tuple[float, ...]  # of each group, over the steps of its optimizer
    last: tuple[float, ...]  # of each group, at the last of them
    samples: int  # train samples seen, counting repetitions


@dataclass
class Recorder:
    """Counts optimizer steps and averages each group's learning rate over them.

    Groups are numbered across all optimizers. Rates are read from the optimizer at every step, because schedulers change them in
    place. With several optimizers, the one with the most steps counts the steps of the fit.

    Example:
        >>> import torch
        >>> recorder, optimizer = Recorder(), torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        >>> recorder.record(0, [0.1])
        >>> recorder.record(0, [0.3])
        >>> recorder.interval([optimizer])
        StepInterval(steps=2, mean=(0.2,), last=(0.3,), samples=0)
    """

    counts: dict[int, int] = field(default_factory=dict)  # optimizer -> steps so far
    before: dict[int, int] = field(default_factory=dict)  # optimizer -> steps at the previous snapshot
    sums: dict[tuple[int, int], float] = field(default_factory=dict)  # (optimizer, group) -> sum of rates since then
    last: dict[tuple[int, int], float] = field(default_factory=dict)  # (optimizer, group) -> latest rate
    samples: int = 0  # train samples seen since then

    @property
    def step(self) -> int:
        """Number of optimizer steps so far."""
        return max(self.counts.values(), default=0)

    @property
    def before_step(self) -> int:
        """Number of optimizer steps at the previous snapshot."""
        return max(self.before.values(), default=0)

    def record(self, optimizer: int, rates: Sequence[float]) -> None:
        """Count a step of an optimizer with these learning rates, one per group."""
        self.counts[optimizer] = self.counts.get(optimizer, 0) + 1
        for group, rate in enumerate(rates):
            self.sums[optimizer, group] = self.sums.get((optimizer, group), 0.0) + rate
            self.last[optimizer, group] = rate

    def interval(self, optimizers: Sequence[Optimizer]) -> StepInterval:
        """What happened since the previous snapshot. A group whose optimizer made no step has a mean rate of 0."""
        mean, last = [], []
        for number, optimizer in enumerate(optimizers):
            steps = self.counts.get(number, 0) - self.before.get(number, 0)
            for group in range(len(optimizer.param_groups)):
                mean.append(self.sums.get((number, group), 0.0) / steps if steps else 0.0)
                last.append(self.last.get((number, group), 0.0))
        most = max((self.counts[number] - self.before.get(number, 0) for number in self.counts), default=0)
        return StepInterval(most, tuple(mean), tuple(last), self.samples)

    def start_interval(self) -> None:
        """Start a new interval; the step count continues."""
        self.before = dict(self.counts)
        self.sums.clear()
        self.samples = 0

    def state(self) -> dict[str, Any]:
        """The state as plain types, for a checkpoint."""
        return {
            **{name: list(map(list, getattr(self, name).items())) for name in ("counts", "before")},
            **{name: [[*key, rate] for key, rate in getattr(self, name).items()] for name in ("sums", "last")},
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
    """Records only the steps that optimizers really make: a gradient scaler may skip a step that the fit has announced.

    Args:
        optimizers: the fit's, plain or wrapped.
        recorder: counts the steps.
    """

    def __init__(self, optimizers: Sequence[Any], recorder: Recorder) -> None:
        self._recorder = recorder
        self._numbers = {id(unwrapped(optimizer)): number for number, optimizer in enumerate(optimizers)}
        self._expected: dict[int, list[float]] = {}  # optimizer -> rates of the announced step
        self._hooks = [unwrapped(optimizer).register_step_post_hook(self._stepped) for optimizer in optimizers]

    def expect(self, optimizer: Optimizer) -> None:
        """Announce a step of an optimizer with its current rates."""
        self._expected[self._numbers[id(optimizer)]] = [float(group["lr"]) for group in optimizer.param_groups]

    def _stepped(self, optimizer: Optimizer, *_: Any) -> None:
        number = self._numbers[id(optimizer)]
        if number in self._expected:
            self._recorder.record(number, self._expected.pop(number))

    def close(self) -> None:
        """Remove the hooks from the optimizers."""
        for hook in self._hooks:
            hook.remove()


def unwrapped(optimizer: Any) -> Any:
    """The torch optimizer inside a LightningOptimizer."""
    return getattr(optimizer, "optimizer", optimizer)


def makes_plain_steps(optimizers: Sequence[Optimizer]) -> bool:
    """Whether each step is the learning rate times the gradient: plain SGD, without momentum.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> [makes_plain_steps([SGD(layer.parameters(), lr=0.1, momentum=momentum)]) for momentum in (0.0, 0.9)]
        [True, False]
    """
    return all(
        type(optimizer) is SGD and not any(group["momentum"] or group["maximize"] for group in optimizer.param_groups)
        for optimizer in optimizers
    )


def groups_of(module: nn.Module, names: frozenset[str], optimizers: Sequence[Optimizer]) -> dict[str, int]:
    """The optimizer group of each named parameter, in the model's order. Groups are numbered across all optimizers.

    Parameters that no optimizer updates are in an extra group, after the others.

    Example:
        >>> from torch.optim import SGD
        >>> module = nn.Linear(2, 1)
        >>> groups_of(module, frozenset({"weight", "bias"}), [SGD([module.bias], lr=0.1)])
        {'weight': 1, 'bias': 0}
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    numbered = {id(parameter): number for number, group in enumerate(groups) for parameter in group["params"]}
    return {name: numbered.get(id(one), len(groups)) for name, one in module.named_parameters() if name in names}


def rates_by_group(rates: Sequence[float], groups: Mapping[str, int]) -> tuple[float, ...]:
    """The learning rate of each group in `groups_of`: 0 for the extra group, if there is one.

    Example:
        >>> rates_by_group([0.1], {"weight": 1, "bias": 0})
        (0.1, 0.0)
    """
    return (*rates, 0.0) if len(rates) in groups.values() else tuple(rates)
