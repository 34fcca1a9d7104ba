"""Which layer type has which rule."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from torch import Tensor, nn

from lightning_tracin.gradients.forms import Form

#: (module, input [samples, ...], gradient of the output [samples, ...], names wanted) -> a form for each name wanted.
Rule: TypeAlias = Callable[[nn.Module, Tensor, Tensor, frozenset[str]], dict[str, Form]]
_SomeRule = TypeVar("_SomeRule", bound=Rule)

#: The names of the parameters that rules know; a layer with another one has no rule.
RULED = frozenset({"weight", "bias"})


@dataclass(frozen=True)
class Declared:
    """A rule under the name by which coverage counts it."""

    name: str
    apply: Rule


#: From a module to the rule that is right for it, or None.
Finder: TypeAlias = Callable[[nn.Module], Rule | None]
_SomeFinder = TypeVar("_SomeFinder", bound=Finder)

#: Name and finder of every rule, in the order in which they are asked.
_FINDERS: list[tuple[str, Finder]] = []


def rule(layer: type[nn.Module] | str) -> Callable[[_SomeRule], _SomeRule]:
    """Declare the decorated function as the rule of a layer type.

    Args:
        layer: the type, or ``"package.module:Type"`` for one of a package that need not be installed: it is looked up only
            once that module has been imported by somebody else.
    """

    def declare(function: _SomeRule) -> _SomeRule:
        name = layer.rpartition(":")[2] if isinstance(layer, str) else layer.__name__
        _FINDERS.append((name, lambda module: function if _is(module, layer) else None))
        return function

    return declare


def rule_for(name: str) -> Callable[[_SomeFinder], _SomeFinder]:
    """Declare the decorated function, which looks at a module and returns its rule or None, as the finder of rules of a name."""

    def declare(finder: _SomeFinder) -> _SomeFinder:
        _FINDERS.append((name, finder))
        return finder

    return declare


def find_rule(module: nn.Module) -> Declared | None:
    """The rule that is right for this module, or None."""
    if "forward" in vars(module):  # replaced for this one module
        return None
    for name, finder in _FINDERS:
        found = finder(module)
        if found is not None:
            return Declared(name, found)
    return None


def _is(module: nn.Module, layer: type[nn.Module] | str) -> bool:
    if isinstance(layer, str):
        package, _, name = layer.partition(":")
        found = getattr(sys.modules.get(package), name, None)
        return found is not None and _is(module, found)
    if type(module) is nn.modules.linear.NonDynamicallyQuantizableLinear:
        return False  # never called: nn.MultiheadAttention takes its weights for a computation of its own
    return isinstance(module, layer) and type(module).forward is layer.forward
