"""Where the samples are in the tensors that a model's modules take and return, found by running it on changed batches.

A shape alone may fit more than one reading: eight positions look like eight samples. So the model is run on one batch, on the
same batch without its last sample, and on the same batch in another order. The dimension whose size follows the number of samples
holds them; where that dimension holds positions, too, the order tells which of them are consecutive.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from enum import Enum
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


class Lines(Enum):
    """How a tensor holds its samples."""

    FIRST = "the first dimension counts samples"
    SECOND = "the second dimension counts samples"
    FLAT = "the first dimension counts the positions of the first sample, then those of the second, ..."
    FLAT_SECOND = "the first dimension counts the samples at the first position, then those at the second, ..."


def by_sample(tensor: Tensor, lines: Lines, samples: int) -> Tensor | None:
    """The tensor with one line for each sample, [samples, ...]; None if its shape does not allow it.

    Example:
        >>> by_sample(torch.tensor([1, 2, 3, 4]), Lines.FLAT_SECOND, samples=2).tolist()
        [[1, 3], [2, 4]]
        >>> by_sample(torch.tensor([1, 2, 3]), Lines.FIRST, samples=2) is None
        True
    """
    if lines is Lines.FIRST:
        return tensor if tensor.shape[:1] == (samples,) else None
    if lines is Lines.SECOND:
        return tensor.transpose(0, 1) if tensor.shape[1:2] == (samples,) else None
    if tensor.ndim == 0 or tensor.shape[0] % samples:
        return None
    if lines is Lines.FLAT:
        return tensor.reshape(samples, -1, *tensor.shape[1:])
    return tensor.reshape(-1, samples, *tensor.shape[1:]).transpose(0, 1)


class Place(NamedTuple):
    """A tensor that a module takes or returns."""

    module: str
    role: str  # "input" or "output"
    number: int  # among the tensors of that role


class _Noted(NamedTuple):
    shape: tuple[int, ...]
    print: Tensor  # [first dimension]: a number for each line, in float64


def found_lines(
    model: nn.Module, modules: Sequence[str], run: Callable[[Sequence[int]], Any], samples: int
) -> Mapping[Place, Lines]:
    """How the tensors that the modules take and return hold their samples.

    Args:
        model: in evaluation mode.
        modules: names of the modules.
        run: runs the model on a batch of these samples, given by their positions in one batch, of which the first is longest.
        samples: number of samples in that batch, at least 2.

    Returns:
        Only the tensors that were found in all calls of their module, and in which samples are found.

    Example:
        >>> model, batch = nn.Sequential(nn.Linear(3, 3)), torch.rand(4, 5, 3)
        >>> found = found_lines(model, ["0"], lambda chosen: model(batch[list(chosen)].transpose(0, 1)), samples=4)
        >>> found[Place("0", "output", 0)].name
        'SECOND'
    """
    whole, fewer = list(range(samples)), list(range(samples - 1))
    turned = [*reversed(whole)]
    seen, less, other = (_seen(model, modules, partial(run, order)) for order in (whole, fewer, turned))
    found: dict[Place, Lines] = {}
    for place, calls in seen.items():
        if len(calls) != len(less.get(place, ())) or len(calls) != len(other.get(place, ())):
            continue
        each = {_lines(*three, samples) for three in zip(calls, less[place], other[place], strict=True)}
        only = each.pop()
        if not each and only is not None:
            found[place] = only
    return found


def _lines(whole: _Noted, less: _Noted, turned: _Noted, samples: int) -> Lines | None:
    sizes = list(zip(whole.shape, less.shape, strict=False))
    if len(whole.shape) != len(less.shape) or whole.shape != turned.shape:
        return None
    if sizes[:1] == [(samples, samples - 1)]:
        return Lines.FIRST
    if sizes[1:2] == [(samples, samples - 1)] and sizes[0][0] == sizes[0][1]:
        return Lines.SECOND
    if not sizes or sizes[0][0] * (samples - 1) != sizes[0][1] * samples:
        return None
    for lines in (Lines.FLAT, Lines.FLAT_SECOND):
        one, other = (by_sample(seen.print, lines, samples) for seen in (whole, turned))
        if one is not None and other is not None and _close(one, other.flip(0)):
            return lines
    return None


def _close(one: Tensor, other: Tensor) -> bool:
    return bool(torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max())))


def tensors_of(value: Any) -> Iterator[tuple[int, Tensor]]:
    """The tensors in what a module takes or returns, with their numbers."""
    return ((number, leaf) for number, leaf in enumerate(pytree.tree_leaves(value)) if isinstance(leaf, Tensor))


def _seen(model: nn.Module, modules: Sequence[str], run: Callable[[], Any]) -> dict[Place, list[_Noted]]:
    found: dict[Place, list[_Noted]] = defaultdict(list)

    def note(name: str, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        for role, value in (("input", [*args, *kwargs.values()]), ("output", output)):
            for number, tensor in tensors_of(value):
                found[Place(name, role, number)].append(_Noted(tuple(tensor.shape), _print(tensor)))

    named = dict(model.named_modules())
    with ExitStack() as hooks:
        for name in modules:
            hooks.callback(named[name].register_forward_hook(partial(note, name), with_kwargs=True).remove)
        with torch.no_grad():
            run()
    return found


def _print(tensor: Tensor) -> Tensor:
    """A number for each line of a tensor."""
    if tensor.ndim == 0:
        return tensor.new_zeros(0, dtype=torch.float64)
    lines = tensor.detach().reshape(tensor.shape[0], -1).double()
    weights = torch.linspace(1, 2, lines.shape[1], dtype=torch.float64, device=lines.device)
    return torch.nan_to_num(lines) @ weights
