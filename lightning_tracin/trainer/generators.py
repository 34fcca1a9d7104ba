"""The random generators that a user's objects draw from, so that they can be put back."""

from __future__ import annotations

import copy
import functools
import random
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

#: How deep objects are looked into, and the longest container that is looked through.
_DEPTH, _LONGEST = 6, 1000

_LEAVES = (str, bytes, int, float, complex, bool, type(None), torch.Tensor, np.ndarray, types.ModuleType, type)


def generators_in(*objects: Any) -> list[Any]:
    """The generators of Python, NumPy and torch that objects hold, or that their functions refer to.

    Args:
        objects: modules, loaders, datasets, functions.

    Example:
        >>> generator = np.random.default_rng(0)
        >>> def collate(samples):
        ...     return generator.permutation(samples)
        >>> generators_in({"collate": collate}) == [generator]
        True
    """
    found: dict[int, Any] = {}
    seen: set[int] = set()
    waiting = [(one, 0) for one in objects]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, random.Random | np.random.Generator | np.random.RandomState | torch.Generator):
            found[id(value)] = value
        elif id(value) not in seen and depth < _DEPTH and not isinstance(value, _LEAVES):
            seen.add(id(value))
            waiting += [(one, depth + 1) for one in _inside(value) if not isinstance(one, _LEAVES)]
    return list(found.values())


def _inside(value: Any) -> Iterator[Any]:
    """What an object refers to."""
    if isinstance(value, types.MethodType):
        yield value.__self__
        value = value.__func__
    if isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, types.FunctionType):
        yield from (cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType())
        yield from (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
        yield from (value.__globals__[name] for name in _names(value.__code__) if name in value.__globals__)
    elif isinstance(value, dict):
        yield from value.values() if len(value) <= _LONGEST else ()
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value if len(value) <= _LONGEST else ()
    else:
        yield from vars(value).values() if hasattr(value, "__dict__") else ()
        for name in ("__call__", "__getitem__", "__getitems__"):
            method = getattr(type(value), name, None)
            if isinstance(method, types.FunctionType):
                yield method


def _names(code: types.CodeType) -> Iterator[str]:
    """The global names in a function and in the functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def state_of(generator: Any) -> Any:
    """A generator's state, for `restore`."""
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.Generator):
        return copy.deepcopy(generator.bit_generator.state)
    return generator.get_state()


def restore(generator: Any, state: Any) -> None:
    """Give a generator a state that it had.

    Example:
        >>> generator = random.Random(1)
        >>> state, first = state_of(generator), generator.random()
        >>> restore(generator, state)
        >>> generator.random() == first
        True
    """
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)
