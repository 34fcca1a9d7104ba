"""Which parameters are scored, and which rule computes the gradients of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import nn

from lightning_tracin.errors import TracInError
from lightning_tracin.gradients.layouts import Decisions
from lightning_tracin.gradients.rules import FALLBACK, RULED, Rule, find_rule


@dataclass(frozen=True)
class Layer:
    """A module with scored parameters of its own."""

    name: str  # name of the module in the whole model
    module: nn.Module
    rule: Rule | None  # None: no rule, so one of the general ways
    rule_name: str
    names: Mapping[str, str]  # a parameter's name in the module -> its name in the whole model

    @property
    def is_positionwise(self) -> bool:
        """Whether a rule computes each line of the output from one line of the input, where a line is the last dimension."""
        is_wide = isinstance(self.module, nn.LayerNorm | nn.RMSNorm) and len(self.module.normalized_shape) > 1
        return self.rule is not None and not is_wide and not isinstance(self.module, nn.Conv1d | nn.Conv2d)


class Counted(NamedTuple):
    """Number of parameters and elements that one rule covers."""

    parameters: int
    elements: int


@dataclass(frozen=True)
class Coverage:
    """The scored parameters and the layers that own them. Built by `plan_coverage`, which leaves out none."""

    layers: tuple[Layer, ...]
    elements: Mapping[str, int]  # parameter -> number of elements
    decisions: Decisions = field(default_factory=Decisions, compare=False)

    @property
    def total(self) -> int:
        """Number of scored elements."""
        return sum(self.elements.values())

    @property
    def by_rule(self) -> dict[str, Counted]:
        """Rule -> what it covers, largest first; a tied parameter counts under all its rules joined (`Embedding+Linear`)."""
        rules: dict[str, set[str]] = {}
        for layer in self.layers:
            for name in layer.names.values():
                alone = name in self.decisions.one_by_one
                rules.setdefault(name, set()).add("one sample at a time" if alone else layer.rule_name)
        sizes: dict[str, list[int]] = {}
        for name, elements in self.elements.items():
            sizes.setdefault("+".join(sorted(rules[name])), []).append(elements)
        counted = {key: Counted(len(some), sum(some)) for key, some in sizes.items()}
        return dict(sorted(counted.items(), key=lambda item: -item[1].elements))

    def uses_rule(self, layer: Layer) -> bool:
        """Whether the layer's gradients come from its rule, and not from one of the general ways."""
        return layer.rule is not None and layer.name not in self.decisions.replayed and layer.name not in self.decisions.loose

    @property
    def batched(self) -> tuple[Layer, ...]:
        """The layers, with the parameters whose gradients come from whole batches; without layers that have none."""
        alone = self.decisions.one_by_one
        if not alone:
            return self.layers
        kept = [
            replace(layer, names={own: name for own, name in layer.names.items() if name not in alone}) for layer in self.layers
        ]
        return tuple(layer for layer in kept if layer.names)


def plan_coverage(model: nn.Module, names: frozenset[str], decisions: Decisions | None = None) -> Coverage:
    """Find the rule of every layer that owns one of the named parameters.

    Args:
        model: the model.
        names: names as in `model.named_parameters()`; a tied parameter has one name and is covered in all its layers.
        decisions: `decisions` of an earlier coverage of the same model, to go on with.

    Raises:
        TracInError: the model has no such parameter, or its module hides how it is used.

    Example:
        >>> model = nn.Sequential(nn.Embedding(5, 2), nn.Linear(2, 3))
        >>> plan_coverage(model, frozenset({"0.weight", "1.weight", "1.bias"})).by_rule
        {'Embedding': Counted(parameters=1, elements=10), 'Linear': Counted(parameters=2, elements=9)}
    """
    by_identity = {id(parameter): name for name, parameter in model.named_parameters() if name in names}
    missing = names - set(by_identity.values())
    if missing:
        raise TracInError(f"The model has no parameter {min(missing)!r} (and {len(missing) - 1} more that were asked for).")
    layers = []
    for module_name, module in model.named_modules():
        own = {
            own_name: by_identity[id(parameter)]
            for own_name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
            if id(parameter) in by_identity
        }
        if not own:
            continue
        _refuse_what_cannot_be_scored(module_name, module)
        rule_name, rule = find_rule(module) if own.keys() <= RULED else (FALLBACK, None)
        layers.append(Layer(module_name, module, rule, rule_name, own))
    elements = {name: p.numel() for name, p in model.named_parameters() if name in names}
    return Coverage(tuple(layers), elements, Decisions() if decisions is None else decisions)


def _refuse_what_cannot_be_scored(name: str, module: nn.Module) -> None:
    if type(module).__module__.startswith("torch.jit"):
        raise TracInError(
            f"The module {name!r} is compiled by TorchScript, which hides its computation; pass the model as it was before "
            "`torch.jit`, or leave its parameters out with `parameters=[...]`."
        )
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        for option in ("max_norm", "scale_grad_by_freq"):
            if getattr(module, option):
                raise TracInError(
                    f"The embedding {name!r} has {option}={getattr(module, option)!r}, which makes a sample's gradient "
                    "depend on its batch; build it without, or leave it out with `parameters=[...]`."
                )
