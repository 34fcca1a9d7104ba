"""Which parameters are scored, and by what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from lightning_tracin.errors import TracInError
from lightning_tracin.gradients.layouts import Decisions
from lightning_tracin.gradients.rules import RULED, Rule, find_rule

#: Under which name coverage counts parameters without a rule.
FALLBACK = "fallback"


@dataclass(frozen=True)
class Layer:
    """A module whose own parameters are (partly) scored."""

    name: str  # of the module in the whole model
    module: nn.Module
    rule: Rule | None  # None: by the general ways
    rule_name: str
    names: Mapping[str, str]  # the module's own name of a parameter -> its name in the whole model


class Counted(NamedTuple):
    """How much one rule covers."""

    parameters: int
    elements: int


@dataclass(frozen=True)
class Coverage:
    """Which parameters are scored, and by which layers. Built by `plan_coverage`, which leaves none out."""

    layers: tuple[Layer, ...]
    elements: Mapping[str, int]  # parameter -> number of elements
    decisions: Decisions = field(default_factory=Decisions, compare=False)

    @property
    def total(self) -> int:
        """Number of scored elements."""
        return sum(self.elements.values())

    @property
    def by_rule(self) -> dict[str, Counted]:
        """Rule -> what it covers, largest first; a tied parameter stands under all its rules together (`Embedding+Linear`)."""
        rules: dict[str, set[str]] = {}
        for layer in self.layers:
            for name in layer.names.values():
                rules.setdefault(name, set()).add(layer.rule_name)
        counted: dict[str, Counted] = {}
        for name, elements in self.elements.items():
            key = "+".join(sorted(rules[name]))
            before = counted.get(key, Counted(0, 0))
            counted[key] = Counted(before.parameters + 1, before.elements + elements)
        return dict(sorted(counted.items(), key=lambda item: -item[1].elements))


def plan_coverage(model: nn.Module, names: frozenset[str], decisions: Decisions | None = None) -> Coverage:
    """Find the rule of every layer that owns one of the named parameters.

    Args:
        model: the model.
        names: names as in `model.named_parameters()`; a tied parameter has one name and is covered in all its layers.
        decisions: what an earlier coverage of the same model has found out (its `decisions`), to be kept.

    Raises:
        TracInError: a parameter is not there, or its module cannot be looked into.
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
        found = find_rule(module)
        if found is None or not own.keys() <= RULED:
            layers.append(Layer(module_name, module, None, FALLBACK, own))
        else:
            layers.append(Layer(module_name, module, found.apply, found.name, own))
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
