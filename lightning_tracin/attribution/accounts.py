"""Keeps account of whose samples moved the weights: each group's part of every update, added up over a window of steps.

The gradients of the fit's own backward passes are split by group (`gradients.group_split`), and the optimizer's rule
(`update_rules`) turns each group's gradients into its part of the update. What no group did is a source, too: weight decay; the
momentum that was there before the account began; gradients that cannot be split.

For an optimizer without a rule, the change that a step has made is split in proportion to the step's own gradients, with one
factor for each parameter, and the rest of it is "momentum": that is approximate.

Where only every n-th step is split, its gradients count n times: the sums are then right on average.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_tracin.attribution.gradient_factors import GradientFactors
from lightning_tracin.attribution.update_rules import LinearStep, UpdateRule, rule_of
from lightning_tracin.gradients.group_split import UNDIVIDED, GroupSplit
from lightning_tracin.gradients.group_vectors import MOMENT, PENDING, TOTAL, GroupVectors, TouchedRows

#: Numbers of the sources that are no group of samples, beside `UNDIVIDED`.
DECAY, MOMENTUM = -2, -3

#: Largest difference, relative to an update, between what a rule says and what the optimizer did.
_CLOSE = {torch.float64: 1e-6, torch.float32: 2e-3}

#: The first steps, and one of so many after them, are compared with what the optimizer did.
_COMPARED_FIRST, _COMPARED_EVERY = 5, 20

#: Elements of a parameter that are compared.
_ELEMENTS = 16


@dataclass
class _Skipped:
    """What steps that were not split do to the moments, until it is applied: a factor, and a sum of scales."""

    kept: float = 1.0
    scale: Tensor | float = 0.0
    is_compact: bool = False

    def add(self, scale: Tensor | float, factor: float, is_compact: bool) -> None:
        """Add a step's scale times a factor."""
        if not isinstance(scale, Tensor):
            self.scale = self.scale + scale * factor
        elif not isinstance(self.scale, Tensor):
            self.scale, self.is_compact = scale * factor + self.scale, is_compact
        else:
            grown = len(scale) - len(self.scale)
            self.scale = (torch.cat([self.scale, torch.zeros_like(scale[-grown:])]) if grown else self.scale).add_(
                scale, alpha=factor
            )

    def scale_for(self, touched: TouchedRows | None) -> Tensor | float:
        """The scale, with zeros for the rows of a table that have been touched since."""
        if not self.is_compact or touched is None or not isinstance(self.scale, Tensor):
            return self.scale
        return torch.cat([self.scale, self.scale.new_zeros(len(touched.rows) - len(self.scale), *self.scale.shape[1:])])


@dataclass
class _Before:
    """What is known of a parameter just before a step."""

    rule: Any = None
    weights: Tensor | None = None  # where they are needed
    elements: Tensor | None = None  # a few of them, to compare the step with
    decayed: float = 0.0  # what decoupled decay takes from each of them, which has been counted already


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
    is_split_now: Callable[[], bool] = lambda: True

    def __post_init__(self) -> None:
        self._names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        self._rules: dict[int, UpdateRule | None] = {}
        self._skipped: dict[str, _Skipped] = {}
        self._before: dict[str, _Before] = {}
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
            found = getattr(optimizer, "found_inf", None)
            if found is None or not bool(found):
                self._made(number, optimizer)
            else:
                self._skip()
            self._before.clear()

        return after_step

    @torch.no_grad()
    def _note(self, number: int, optimizer: Optimizer) -> None:
        """Look at the gradients of a step that is about to be made, and at what it starts from."""
        self._before.clear()
        rule = self._rules[number]
        mine = [
            (self._names[id(parameter)], group, parameter)
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and id(parameter) in self._names
        ]
        names = [name for name, _, _ in mine]
        if self.join is not None and self.is_split_now():
            self.join({(name, s): v for name in names for s, v in self.split.vectors[name].items() if PENDING in v})
        scale = getattr(optimizer, "grad_scale", None)
        factors = GradientFactors(
            {name: parameter for name, _, parameter in mine}, self.split, 1.0 if scale is None else 1 / float(scale)
        )
        for name in factors.apply():
            self.remainders[name] += 1
        is_compared = self._is_compared(number)
        for name, group, parameter in mine:
            state = optimizer.state.get(parameter, {})
            decay = float(group.get("weight_decay", 0) or 0)
            decayed = decay * float(group["lr"]) if group.get("decoupled_weight_decay", False) else 0.0
            needs_weights = rule is None or (decay != 0 and not decayed)
            if decayed:
                self._decay(name, -decayed)
            self._before[name] = _Before(
                None if rule is None else rule.before(state, parameter),
                parameter.detach().clone() if needs_weights else None,
                _some(parameter) if is_compared else None,
                decayed,
            )
            if name not in self._known:
                self._known.add(name)
                moment = None if rule is None or rule.moment is None else state.get(rule.moment)
                if isinstance(moment, Tensor) and bool(moment.any()):
                    self.split.of(name, MOMENTUM).add(MOMENT, moment.to_dense() if moment.is_sparse else moment.clone())

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
        return self.every == 1 and self._rules[number] is not None and (made < _COMPARED_FIRST or made % _COMPARED_EVERY == 0)

    @torch.no_grad()
    def _made(self, number: int, optimizer: Optimizer) -> None:
        self.steps[number] = self.steps.get(number, 0) + 1
        rule, gap, moved = self._rules[number], 0.0, 0.0
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = self._names.get(id(parameter))
                before = None if name is None else self._before.get(name)
                if name is None or before is None:
                    continue
                if rule is None:
                    self._split_change(name, parameter, before)
                    continue
                was = None if before.elements is None else self._some_of_totals(name)
                state, rows = optimizer.state[parameter], self._rows(name, optimizer.state[parameter], before)
                if rows is not None:  # what no group has touched is not looked at
                    state = {key: one[rows] if _has_rows(one, parameter) else one for key, one in state.items()}
                self._update(name, rule.after(group, state, parameter, before.rule), before, rows is not None)
                if was is not None and before.elements is not None:
                    change = _some(parameter) - before.elements * (1 - before.decayed)
                    gap += float((self._some_of_totals(name) - was - change).square().sum())
                    moved += (
                        float(change.square().sum())
                        + float(before.elements.square().sum()) * torch.finfo(parameter.dtype).eps ** 2
                    )
        dtype = next(iter(self.model.parameters())).dtype
        if gap > _CLOSE.get(dtype, 0.1) ** 2 * moved:
            self._rules[number] = None
            self._say_approximate(optimizer, "does not step as its rule says")

    def _rows(self, name: str, state: Mapping[str, Any], before: _Before) -> Tensor | None:
        """The rows of a table to which a step can be confined; None if all are needed."""
        touched, parameter = self.split.touched.get(name), self.split.parameters[name]
        if touched is None or before.rule is not None or MOMENTUM in self.split.vectors[name]:
            return None
        shapes = [one for one in state.values() if isinstance(one, Tensor) and one.numel() > 1]
        if not all(_has_rows(one, parameter) for one in shapes) or before.weights is not None:
            return None
        is_sparse = all(vectors.rows is not None for source, vectors in self.split.vectors[name].items() if source != DECAY)
        return touched.rows if is_sparse else None

    def _update(self, name: str, step: LinearStep, before: _Before, is_compact: bool) -> None:
        """Add a step to the totals of all sources."""
        count = self.every * step.sign
        skipped = self._skipped.setdefault(name, _Skipped())
        mine = self.split.vectors[name]
        if any(PENDING in vectors for vectors in mine.values()):
            self._catch_up(name)
            for source, vectors in mine.items():
                if source != DECAY and (PENDING in vectors or MOMENT in vectors):
                    _step(vectors, step, count if source >= UNDIVIDED else step.sign, is_compact)
        elif any(MOMENT in vectors for vectors in mine.values()):
            skipped.kept *= step.keep
            skipped.add(step.scale, skipped.kept * step.of_moment, is_compact)
        if before.weights is None:
            return
        decay = self.split.of(name, DECAY)
        if step.coupled:
            decay.add(PENDING, before.weights * step.coupled)
            _step(decay, step, 1, is_compact=False)
        elif step.decoupled:
            decay.add(TOTAL, before.weights * -step.decoupled)

    def _catch_up(self, name: str) -> None:
        """Apply what steps that were not split have done to the moments."""
        skipped = self._skipped.pop(name, None)
        if skipped is None or skipped.kept == 1.0:
            return
        for source, vectors in self.split.vectors[name].items():
            if source != DECAY and MOMENT in vectors:
                _add_scaled(
                    vectors, TOTAL, skipped.scale_for(self.split.touched.get(name)), vectors[MOMENT], -1.0, skipped.is_compact
                )
                vectors[MOMENT].mul_(skipped.kept)

    def _split_change(self, name: str, parameter: Tensor, before: _Before) -> None:
        """Split the change of a parameter in proportion to the step's own gradients."""
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

    def _some_of_totals(self, name: str) -> Tensor:
        found = [_some(vectors.dense(TOTAL)) for vectors in self.split.vectors[name].values() if TOTAL in vectors]
        parameter = self.split.parameters[name]
        return sum(found, torch.zeros(1, dtype=torch.float64, device=parameter.device).expand(len(_some(parameter))))

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


def _step(vectors: GroupVectors, step: LinearStep, count: float, is_compact: bool) -> None:
    """Add one source's part of a step to its total; the gradient since the last step is used up."""
    gradient = vectors.get(PENDING)
    if step.of_moment:
        if MOMENT in vectors:
            vectors[MOMENT].mul_(step.keep)
        if gradient is not None:
            _add_scaled(vectors, MOMENT, step.gain, gradient, count, is_compact)
        if MOMENT in vectors:
            _add_scaled(vectors, TOTAL, step.scale, vectors[MOMENT], -step.of_moment, is_compact)
    if step.of_gradient and gradient is not None:
        _add_scaled(vectors, TOTAL, step.scale, gradient, -step.of_gradient * count, is_compact)
    vectors.drop(PENDING)


def _add_scaled(vectors: GroupVectors, name: str, scale: Tensor | float, values: Tensor, factor: float, is_compact: bool) -> None:
    """Add values times a scale, which is a number or a tensor (see `GroupVectors.pick`), to a vector."""
    if isinstance(scale, Tensor):
        vectors[name].addcmul_(vectors.pick(scale, is_compact).to(values.device, values.dtype), values, value=factor)
    else:
        vectors[name].add_(values, alpha=scale * factor)


def _has_rows(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _some(tensor: Tensor) -> Tensor:
    """A few elements of a tensor, evenly spaced, in float64."""
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // _ELEMENTS)].to(torch.float64, copy=True)
