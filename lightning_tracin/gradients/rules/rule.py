"""Which layer type has which rule."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType
from typing import Any, TypeAlias, TypeVar

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
    applies: Callable[[nn.Module], bool]


_DECLARED: list[Declared] = []


def rule(layer: type[nn.Module] | str) -> Callable[[_SomeRule], _SomeRule]:
    """Declare the decorated function as the rule of a layer type.

    Args:
        layer: the type, or ``"package.module:Type"`` for one of a package that need not be installed: it is looked up only
            once that module has been imported by somebody else.
    """

    def declare(function: _SomeRule) -> _SomeRule:
        name = layer.rpartition(":")[2] if isinstance(layer, str) else layer.__name__
        _DECLARED.append(Declared(name, function, lambda module: _is(module, layer)))
        return function

    return declare


def rule_by_formula(
    name: str, *formulas: Callable[..., Any], when: Callable[[nn.Module], bool]
) -> Callable[[_SomeRule], _SomeRule]:
    """Declare the decorated function as the rule of every type whose methods compute these very formulas.

    Model libraries copy a layer under a new name into every model. Such a copy is recognised by its code: its methods
    compile to the same instructions over the same names and constants as the `formulas`, methods of the same names.
    """

    def declare(function: _SomeRule) -> _SomeRule:
        _DECLARED.append(Declared(name, function, lambda module: all(_computes(module, f) for f in formulas) and when(module)))
        return function

    return declare


def find_rule(module: nn.Module) -> Declared | None:
    """The rule that is right for this module, or None."""
    if "forward" in vars(module):  # replaced for this one module
        return None
    return next((declared for declared in _DECLARED if declared.applies(module)), None)


def _is(module: nn.Module, layer: type[nn.Module] | str) -> bool:
    if isinstance(layer, str):
        package, _, name = layer.partition(":")
        found = getattr(sys.modules.get(package), name, None)
        return found is not None and _is(module, found)
    if type(module) is nn.modules.linear.NonDynamicallyQuantizableLinear:
        return False  # never called: nn.MultiheadAttention takes its weights for a computation of its own
    return isinstance(module, layer) and type(module).forward is layer.forward


def _computes(module: nn.Module, formula: Callable[..., Any]) -> bool:
    method = getattr(type(module), formula.__name__, None)
    code, known = getattr(method, "__code__", None), formula.__code__
    return isinstance(code, CodeType) and _meaning(code) == _meaning(known)


def _meaning(code: CodeType) -> tuple[Any, ...]:
    return (code.co_code, code.co_names, code.co_consts, code.co_argcount, code.co_freevars)
