"""The registry of rules: which layer type has which rule."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeAlias, TypeVar

from torch import Tensor, nn

from lightning_tracin.gradients.forms import Form

#: (module, input [samples, ...], gradient of the output [samples, ...], wanted names) -> a form for each wanted name.
Rule: TypeAlias = Callable[[nn.Module, Tensor, Tensor, frozenset[str]], dict[str, Form]]
_SomeRule = TypeVar("_SomeRule", bound=Rule)

#: The parameter names that rules know; a layer with any other parameter has no rule.
RULED = frozenset({"weight", "bias"})

#: Name under which coverage counts parameters without a rule.
FALLBACK = "fallback"

#: From a module to the rule that applies to it, or None.
Finder: TypeAlias = Callable[[nn.Module], Rule | None]
_SomeFinder = TypeVar("_SomeFinder", bound=Finder)

#: Name and finder of every rule, in the order in which they are asked.
_FINDERS: list[tuple[str, Finder]] = []


def rule(layer: type[nn.Module] | str) -> Callable[[_SomeRule], _SomeRule]:
    """Declare the decorated function as the rule of a layer type.

    Args:
        layer: the type, or ``"package.module:Type"`` for a type from an optional package; it is looked up only if other code
            has already imported that module.
    """

    def declare(function: _SomeRule) -> _SomeRule:
        name = layer.rpartition(":")[2] if isinstance(layer, str) else layer.__name__
        _FINDERS.append((name, lambda module: function if _is(module, layer) else None))
        return function

    return declare


def rule_for(name: str) -> Callable[[_SomeFinder], _SomeFinder]:
    """Declare the decorated function as a finder: it takes a module and returns its rule, counted under this name, or None."""

    def declare(finder: _SomeFinder) -> _SomeFinder:
        _FINDERS.append((name, finder))
        return finder

    return declare


def find_rule(module: nn.Module) -> tuple[str, Rule | None]:
    """The name and the rule that apply to this module; `FALLBACK` and None if no rule does.

    Example:
        >>> find_rule(nn.Linear(2, 1))[0], find_rule(nn.GRU(2, 1))
        ('Linear', ('fallback', None))
    """
    if "forward" not in vars(module):  # not replaced for this one module
        for name, finder in _FINDERS:
            if (found := finder(module)) is not None:
                return name, found
    return FALLBACK, None


def _is(module: nn.Module, layer: type[nn.Module] | str) -> bool:
    if isinstance(layer, str):
        package, _, name = layer.partition(":")
        found = getattr(sys.modules.get(package), name, None)
        return found is not None and _is(module, found)
    if type(module) is nn.modules.linear.NonDynamicallyQuantizableLinear:
        return False  # never called: nn.MultiheadAttention uses its weights directly
    return isinstance(module, layer) and type(module).forward is layer.forward
