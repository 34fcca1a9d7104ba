"""Keeps account of whose samples moved the weights: each group's part of every update, added up over a window of steps.

The gradients of the fit's own backward passes are split by group (`gradients.group_split`), and the optimizer's rule
(`update_rules`) turns each group's gradients into its part of the update. What no group did is a source, too: weight decay; the
momentum that was there before the account began; gradients that cannot be split.

For an optimizer without a rule, the change that a step has made is split in proportion to the step's own gradients, with one
factor for each parameter, and the rest of it is "momentum": that is approximate.

Where only every n-th step is split, its gradients count n times: the sums are then right on average.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_tracin.attribution.gradient_factors import GradientFactors
from lightning_tracin.attribution.sample_credits import SampleCredits, Scale
from lightning_tracin.attribution.source_steps import SkippedSteps, SomeElements, add_scaled, has_rows, make_step, some_of
from lightning_tracin.attribution.update_rules import LinearStep, UpdateRule, rule_of
from lightning_tracin.gradients.group_split import UNDIVIDED, GroupSplit
from lightning_tracin.gradients.group_vectors import MOMENT, PENDING, TOTAL, GroupVectors

#: Numbers of the sources that are no group of samples, beside `UNDIVIDED`.
DECAY, MOMENTUM = -2, -3

#: Largest difference, relative to an update, between what a rule says and what the optimizer did.
_CLOSE = {torch.float64: 1e-6, torch.float32: 2e-3}

#: The first steps, and one of so many after them, are compared with what the optimizer did.
_COMPARED_FIRST, _COMPARED_EVERY = 5, 20


@dataclass
class _Before:
    """What is known of a parameter just before a step."""

    rule: Any = None
    weights: Tensor | None = None  # where they are needed
    elements: SomeElements | None = None  # to compare the step with
    decayed: float = 0.0  # what decoupled decay takes from each of them, which has been counted already
    factor: Tensor | float = 1.0  # of the gradient's parts


@dataclass
class Account:
    """The sources' parts of the updates of one fit.

    Args:
        model: the model that is fitted.
        split: splits its gradients.
        optimizers: the fit's.
        join: adds up the split gradients of all processes, as the fit does with its own; None for a single process.
        every: one of this many steps is split.

    Attributes:
        approximate: why the parts are approximate; None if they are exact.
        remainders: parameter -> steps in which its parts did not add up to the gradient; the rest was `UNDIVIDED`.
        steps: steps that the optimizers have made, of each.
        credits: of single samples, which the split has to give its gradients to; None leaves them out.
        most_bytes: the most memory that all vectors have taken at once.
        most_of_rows: the part of it that was rows of tables of embeddings.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> from lightning_tracin.gradients.group_split import Ways
        >>> account = Account(model, GroupSplit(model, Ways()), [optimizer])
        >>> account.split.begin(torch.tensor([0, 1]))
        >>> model(torch.tensor([[1.0], [2.0]])).sum().backward()
        >>> optimizer.step()
        >>> {source: round(vectors.dense("total").item(), 6) for source, vectors in account.totals()["weight"].items()}
        {0: -0.1, 1: -0.2}
        >>> account.close()
    """

    model: nn.Module
    split: GroupSplit
    optimizers: Sequence[Optimizer]
    join: Callable[[dict[tuple[str, int], GroupVectors]], None] | None = None
    every: int = 1
    approximate: str | None = None
    remainders: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    steps: dict[int, int] = field(default_factory=dict)
    most_bytes: int = 0
    most_of_rows: int = 0
    is_split_now: Callable[[], bool] = lambda: True
    credits: SampleCredits | None = None

    def __post_init__(self) -> None:
        self._names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        self._rules: dict[int, UpdateRule | None] = {}
        self._skipped: dict[str, SkippedSteps] = {}
        self._before: dict[str, _Before] = {}
        self._depth: Counter[int] = Counter()  # of calls of each optimizer's `step` that have not returned
        self._known: set[str] = set()  # parameters whose earlier momentum has been looked for
        self._hooks = ExitStack()
        for number, optimizer in enumerate(self.optimizers):
            rule = rule_of(optimizer)
            self._rules[number] = rule
            if rule is None:
                self._say_approximate(optimizer, "has no rule of its own")
            pre, post = self._pre_hook(number), self._post_hook(number)
            self._hooks.callback(optimizer.register_step_pre_hook(pre).remove)
            self._hooks.callback(optimizer.register_step_post_hook(post).remove)

    def _say_approximate(self, optimizer: Optimizer, why: str) -> None:
        self.approximate = (
            f"The updates of {type(optimizer).__name__}, which {why}, are split in proportion to each step's own gradients; what "
            "remains of them is momentum."
        )

    def close(self) -> None:
        """Remove all hooks."""
        self._hooks.close()
        self.split.close()

    # -- a step

    def _pre_hook(self, number: int) -> Callable[..., Any]:
        def before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            self._depth[number] += 1
            if self._depth[number] > 1:  # a subclass calls the step of its base, which has hooks, too
                return None
            self._before.clear()
            closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # the first is the optimizer
            if closure is None:
                self._note(number, optimizer)
                return None

            def noted(*given: Any, **named: Any) -> Any:
                value = closure(*given, **named)
                self._note(number, optimizer)  # the gradients as the optimizer sees them: clipped
                return value

            if "closure" in kwargs:
                return args, {**kwargs, "closure": noted}
            return (args[0], noted, *args[2:]), kwargs

        return before_step

    def _post_hook(self, number: int) -> Callable[..., None]:
        def after_step(optimizer: Optimizer, *_: Any) -> None:
            self._depth[number] -= 1
            if self._depth[number]:
                return
            if not _is_skipped(optimizer):
                self._made(number, optimizer)
            else:
                self._skip()
            self._before.clear()

        return after_step

    @torch.no_grad()
    def _note(self, number: int, optimizer: Optimizer) -> None:
        """Look at the gradients of a step that is about to be made, and at what it starts from."""
        if _is_skipped(optimizer):
            return
        rule = self._rules[number]
        mine = [
            (self._names[id(parameter)], group, parameter)
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and id(parameter) in self._names
        ]
        names = [name for name, _, _ in mine]
        is_split = self.is_split_now()
        if self.join is not None and is_split:
            self.join({(name, s): v for name in names for s, v in self.split.vectors[name].items() if PENDING in v})
        scale = getattr(optimizer, "grad_scale", None)
        factors = GradientFactors(
            {name: parameter for name, _, parameter in mine}, self.split, 1.0 if scale is None else 1 / float(scale)
        )
        for name in factors.apply() if is_split else ():
            self.remainders[name] += 1
        self._measure()
        is_compared = self._is_compared(number)
        for name, group, parameter in mine:
            if name in self._before:  # the step has called its closure before, and may have moved the weights since
                continue
            state = optimizer.state.get(parameter, {})
            decay = float(group.get("weight_decay", 0) or 0)
            decayed = decay * float(group["lr"]) if rule and group.get("decoupled_weight_decay", False) else 0.0
            needs_weights = rule is None or (decay != 0 and not decayed)
            if decayed:
                self._decay(name, -decayed)
            self._before[name] = _Before(
                None if rule is None else rule.before(state, parameter),
                parameter.detach().clone() if needs_weights else None,
                self._elements(number, parameter, state, factors.scale) if is_compared else None,
                decayed,
                factors.applied.get(name, 1.0),
            )
            if rule is not None and rule.moment is not None and state.get(rule.moment) is None:  # new, or reset by the user
                self._catch_up(name)
                for vectors in self.split.vectors[name].values():
                    vectors.drop(MOMENT)
            if name not in self._known:
                self._known.add(name)
                moment = None if rule is None or rule.moment is None else state.get(rule.moment)
                if isinstance(moment, Tensor) and bool(moment.any()):
                    self.split.of(name, MOMENTUM).add(MOMENT, moment.to_dense() if moment.is_sparse else moment.clone())

    def _measure(self) -> None:
        """Note the memory of all vectors; just before a step there are most of them."""
        taken = self.nbytes
        if taken > self.most_bytes:
            kept = (vectors for mine in self.split.vectors.values() for vectors in mine.values())
            self.most_bytes = taken
            self.most_of_rows = sum(vectors.nbytes for vectors in kept if vectors.rows is not None)

    @torch.no_grad()
    def _skip(self) -> None:
        """Take back what was counted for a step that the optimizer has not made, because a gradient was not finite."""
        for name, before in self._before.items():
            if before.decayed:
                self._decay(name, before.decayed)

    def _decay(self, name: str, factor: float) -> None:
        """Add a multiple of a parameter to the total of weight decay."""
        vectors, parameter = self.split.of(name, DECAY), self.split.parameters[name].detach()
        if TOTAL not in vectors:
            vectors.add(TOTAL, parameter * factor)
        else:
            vectors[TOTAL].add_(parameter.to(vectors[TOTAL]), alpha=factor)

    def _is_compared(self, number: int) -> bool:
        made = self.steps.get(number, 0)
        return self._rules[number] is not None and (made < _COMPARED_FIRST or made % _COMPARED_EVERY == 0)

    def _elements(self, number: int, parameter: nn.Parameter, state: Mapping[str, Any], scale: float) -> SomeElements:
        rule = self._rules[number]
        moment = None if rule is None or rule.moment is None else state.get(rule.moment)
        weights = some_of(parameter)
        assert parameter.grad is not None
        return SomeElements(
            weights, some_of(parameter.grad) * scale, torch.zeros_like(weights) if moment is None else some_of(moment)
        )

    @torch.no_grad()
    def _made(self, number: int, optimizer: Optimizer) -> None:
        self.steps[number] = self.steps.get(number, 0) + 1
        rule = self._rules[number]
        gap = moved = rounded = close = 0.0
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = self._names.get(id(parameter))
                before = None if name is None else self._before.get(name)
                if name is None or before is None:
                    continue
                if rule is None:
                    along = self._split_change(name, parameter, before)
                    self._credit(number, name, LinearStep(-along, of_moment=0.0, of_gradient=1.0), before, is_compact=False)
                    continue
                state, rows = optimizer.state[parameter], self._rows(name, optimizer.state[parameter], before)
                if rows is not None:  # what no group has touched is not looked at
                    state = {key: one[rows] if has_rows(one, parameter) else one for key, one in state.items()}
                step = rule.after(group, state, parameter, before.rule)
                self._credit(number, name, step, before, rows is not None)
                self._update(name, step, before, rows is not None)
                if before.elements is not None:
                    change = some_of(parameter) - before.elements.weights
                    gap += float((before.elements.stepped(step) - change).square().sum())
                    rounding = torch.finfo(parameter.dtype).eps ** 2 * float(before.elements.weights.square().sum())
                    close = max(close, _CLOSE.get(parameter.dtype, 0.1))
                    moved, rounded = moved + float(change.square().sum()), rounded + rounding
        if self.credits is not None:
            self.credits.step_ended(number, self.is_split_now())
        if gap > close**2 * moved + rounded:
            self._rules[number] = None
            self._say_approximate(optimizer, "does not step as its rule says")

    def _credit(self, number: int, name: str, step: LinearStep, before: _Before, is_compact: bool) -> None:
        if self.credits is not None:
            self.credits.stepped(number, name, Scale(step, before.factor, self.split.touched[name] if is_compact else None))

    def _rows(self, name: str, state: Mapping[str, Any], before: _Before) -> Tensor | None:
        """The rows of a table to which a step can be confined; None if all are needed."""
        touched, parameter = self.split.touched.get(name), self.split.parameters[name]
        if touched is None or before.rule is not None or before.elements is not None or MOMENTUM in self.split.vectors[name]:
            return None
        shapes = [one for one in state.values() if isinstance(one, Tensor) and one.numel() > 1]
        if not all(has_rows(one, parameter) for one in shapes) or before.weights is not None:
            return None
        is_sparse = all(vectors.rows is not None for source, vectors in self.split.vectors[name].items() if source != DECAY)
        return touched.rows if is_sparse else None

    def _update(self, name: str, step: LinearStep, before: _Before, is_compact: bool) -> None:
        """Add a step to the totals of all sources."""
        count = self.every * step.sign
        skipped = self._skipped.setdefault(name, SkippedSteps())
        mine = self.split.vectors[name]
        if any(PENDING in vectors for vectors in mine.values()):
            self._catch_up(name)
            for source, vectors in mine.items():
                if source != DECAY and (PENDING in vectors or MOMENT in vectors):
                    make_step(vectors, step, count if source >= UNDIVIDED else step.sign, is_compact)
        elif any(MOMENT in vectors for vectors in mine.values()):
            skipped.kept *= step.keep
            skipped.add(step.scale, skipped.kept * step.of_moment, is_compact, self.split.touched.get(name))
        if before.weights is None:
            return
        decay = self.split.of(name, DECAY)
        if step.coupled:
            decay.add(PENDING, before.weights * step.coupled)
            make_step(decay, step, 1, is_compact=False)
        elif step.decoupled:
            decay.add(TOTAL, before.weights * -step.decoupled)

    def _catch_up(self, name: str) -> None:
        """Apply what steps that were not split have done to the moments."""
        skipped = self._skipped.pop(name, None)
        if skipped is None or skipped.kept == 1.0:
            return
        for source, vectors in self.split.vectors[name].items():
            if source != DECAY and MOMENT in vectors:
                add_scaled(
                    vectors, TOTAL, skipped.scale_for(self.split.touched.get(name)), vectors[MOMENT], -1.0, skipped.is_compact
                )
                vectors[MOMENT].mul_(skipped.kept)

    def _split_change(self, name: str, parameter: Tensor, before: _Before) -> float:
        """Split the change of a parameter in proportion to the step's own gradients; the factor between them."""
        assert before.weights is not None
        assert parameter.grad is not None
        gradient = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
        change = parameter.detach() - before.weights
        along = float((change * gradient).sum()) / max(float(gradient.square().sum()), 1e-300)
        for vectors in self.split.vectors[name].values():
            if PENDING in vectors:
                vectors.add(TOTAL, vectors[PENDING] * (along * self.every), vectors.rows)
                vectors.drop(PENDING)
        self.split.of(name, MOMENTUM).add(TOTAL, change.sub_(gradient, alpha=along))
        return along

    # -- totals

    def totals(self) -> Mapping[str, Mapping[int, GroupVectors]]:
        """Parameter -> source -> its vectors, whose `TOTAL` is the sum of the source's parts of the updates so far."""
        with torch.no_grad():
            for name in list(self._skipped):
                self._catch_up(name)
        return self.split.vectors

    def start_window(self) -> None:
        """Make all totals zero."""
        for mine in self.totals().values():
            for vectors in mine.values():
                vectors.drop(TOTAL)

    @property
    def nbytes(self) -> int:
        """Memory of all vectors."""
        return sum(vectors.nbytes for mine in self.split.vectors.values() for vectors in mine.values())

    def state(self) -> dict[str, Any]:
        """What a fit needs to go on with the account, as plain types and tensors."""
        self.totals()
        vectors = {
            name: {source: one.state() for source, one in mine.items()} for name, mine in self.split.vectors.items() if mine
        }
        return {
            "vectors": vectors,
            "known": sorted(self._known),
            "steps": dict(self.steps),
            "remainders": dict(self.remainders),
            "approximate": self.approximate,
            "without_rule": [number for number, rule in self._rules.items() if rule is None],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        for name, mine in state["vectors"].items():
            for source, one in mine.items():
                self.split.of(name, source).load(one)
        self._known = set(state["known"])
        self.steps = dict(state["steps"])
        self.remainders.update(state["remainders"])
        self.approximate = state["approximate"]
        self._rules |= dict.fromkeys(state["without_rule"])


def _is_skipped(optimizer: Optimizer) -> bool:
    """Whether a gradient scaler has found an infinite gradient and makes a fused optimizer skip its step."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)
