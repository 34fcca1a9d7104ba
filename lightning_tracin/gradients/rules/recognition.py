"""Recognises RMSNorm layers by testing modules on random inputs.

Each model library has its own class for this layer, with its own name for epsilon and its own order of casts. So a module is
judged by what it computes over the last dimension:

    y = x / sqrt(mean(x^2) + epsilon) * s,    s = weight or 1 + weight

A false positive would give wrong scores; a false negative only costs time. So a module is tested only if its output cannot depend
on anything but one input, one weight and constants. Then it must follow the formula, and the formula's derivative with respect to
the weight, for random weights, for inputs as small as epsilon and for large ones, separately and mixed, with one to three
dimensions before the last, in training and evaluation mode, in float32 and in the module's own data type.
"""

from __future__ import annotations

import copy
import inspect
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

#: Attributes that every module has.
_OF_ALL_MODULES = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

#: Size of inputs compared with which any epsilon is large; their squares are still normal numbers in float32.
_TINY = 1e-15


def root_mean_square_epsilon(module: nn.Module) -> float | None:
    """The epsilon of an RMSNorm; None if the module is not shown to be one.

    It tests a copy of the module, without its hooks, and restores the random states.

    Example:
        >>> root_mean_square_epsilon(nn.RMSNorm(8, eps=1e-6)), root_mean_square_epsilon(nn.LayerNorm(8, bias=False))
        (1e-06, None)
    """
    try:
        if not _depends_on_one_input_alone(module):
            return None
        device = next(module.parameters()).device
        with _undisturbed(device):
            states = _random_states(device)
            for offset in (0.0, 1.0):
                generator = torch.Generator("cpu").manual_seed(0)
                epsilon = _found_epsilon(copy.deepcopy(module).float(), offset, generator)
                if _follows(module, offset, epsilon, generator):
                    return epsilon if _random_states(device) == states else None  # it is random
    except Exception:  # a forward that was not written for such inputs may raise anything
        return None
    return None


def _depends_on_one_input_alone(module: nn.Module) -> bool:
    """Whether the output can depend on nothing but one weight, constants and one input."""
    parameters = dict(module.named_parameters())
    if parameters.keys() != {"weight"} or any(True for _ in module.children()) or any(True for _ in module.buffers()):
        return False
    weight = parameters["weight"]
    if weight.ndim != 1 or weight.numel() == 1 or not weight.is_floating_point():  # a single number could scale any width
        return False
    if any(getattr(module, hooks) for hooks in _HOOKS) or type(module).__call__ is not nn.Module.__call__:
        return False
    if not all(_is_constant(value) for value in _attributes(module).values()):
        return False
    # A call may also use an optional second argument (a gate, a residual).
    arguments = list(inspect.signature(type(module).forward, follow_wrapped=False).parameters.values())[1:]
    return [argument.kind for argument in arguments] in (
        [inspect.Parameter.POSITIONAL_ONLY],
        [inspect.Parameter.POSITIONAL_OR_KEYWORD],
    )


def _attributes(module: nn.Module) -> dict[str, Any]:
    """The module's own attributes, without those that every module has."""
    return {name: value for name, value in vars(module).items() if name not in _OF_ALL_MODULES}


def _is_constant(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_constant(part) for part in value)
    return value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device)


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Compute gradients in full precision inside, whatever the surrounding context, and restore random states afterwards."""
    python = random.getstate()
    try:
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            yield
    finally:
        random.setstate(python)


def _random_states(device: torch.device) -> tuple[Any, ...]:
    on_device = torch.cuda.get_rng_state(device).tolist() if device.type == "cuda" else None
    return random.getstate(), torch.get_rng_state().tolist(), on_device


def _found_epsilon(twin: nn.Module, offset: float, generator: torch.Generator) -> float:
    """The epsilon for which a module follows the formula on tiny inputs, where the output depends on little else."""
    weight = _replaced_weight(twin, generator)
    inputs = (_random((4, weight.numel()), generator) * _TINY).float().double()
    outputs = twin.forward(inputs.to(weight)).detach().cpu().double()
    squares = (inputs * (offset + weight.detach().cpu().double()) / outputs).square()  # mean(x^2) + epsilon
    epsilon = float((squares - inputs.square().mean(-1, keepdim=True)).median())
    if not epsilon > 1e-3 * _TINY**2:  # this small is rounding
        return 0.0
    constants = [value for value in _attributes(twin).values() if isinstance(value, float)]
    return next((value for value in constants if math.isclose(value, epsilon, rel_tol=1e-5)), epsilon)


def _follows(module: nn.Module, offset: float, epsilon: float, generator: torch.Generator) -> bool:
    """Whether a module follows the formula, with scale offset + weight, in all cases that are tried."""
    own = next(module.parameters()).dtype
    for dtype in sorted({torch.float32, own}, key=str):
        twin = copy.deepcopy(module).to(dtype)
        for training in (True, False):
            twin.train(training)
            cases = _inputs(next(twin.parameters()), epsilon, generator)
            if not all(_agrees(twin, offset, epsilon, inputs, generator) for inputs in cases):
                return False
    return True


def _inputs(weight: Tensor, epsilon: float, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield inputs [..., width] of many shapes and sizes, in float64."""
    width, largest = weight.numel(), min(1e9, torch.finfo(weight.dtype).max / 64)
    for shape in ((4,), (1,), (2, 3), (2, 1, 3)):
        yield _random((*shape, width), generator)
    smallest = math.sqrt(epsilon) or 100 * _TINY
    for size in (smallest, largest):
        yield size * _random((3, width), generator)
    sizes = torch.tensor([smallest * 10.0**power for power in range(-2, 3)] + [1e-3, 1.0, 1e3, largest], dtype=torch.float64)
    side_by_side = _random((len(sizes), 1, width), generator)
    side_by_side[::2, :, 0] *= 8  # one element far from the others
    side_by_side *= sizes[torch.randperm(len(sizes), generator=generator, device="cpu"), None, None]
    if epsilon:
        side_by_side[0] = 0
    yield side_by_side


def _random(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Numbers from -0.4 to 1.1 in float64; their mean is far from zero, so that variance and mean square differ."""
    return torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu").double() * 1.5 - 0.4


def _replaced_weight(twin: nn.Module, generator: torch.Generator) -> Tensor:
    """Replace a module's weight by small and large, positive and negative random numbers; 1 + weight is never near 0."""
    own = next(twin.parameters())
    powers = torch.rand(own.shape, generator=generator, dtype=torch.float64, device="cpu")
    sizes = 10.0 ** (powers * (4 if own.dtype is torch.float16 else 8) - 2)
    signed = torch.where(torch.rand(own.shape, generator=generator, device="cpu") < 0.5, -sizes, sizes)
    weight = nn.Parameter(torch.where((signed + 1).abs() < 0.5, 3.0, signed).to(own))
    twin.register_parameter("weight", weight)
    return weight


def _agrees(twin: nn.Module, offset: float, epsilon: float, inputs: Tensor, generator: torch.Generator) -> bool:
    """Whether the output for these inputs, and its derivative with respect to a random weight, follow the formula."""
    weight, constants = _replaced_weight(twin, generator), _attributes(twin)
    given = inputs.to(weight)
    versions = given._version, weight._version
    output = twin.forward(given)
    if not isinstance(output, Tensor) or output.shape != inputs.shape:
        return False
    if (given._version, weight._version) != versions or _attributes(twin) != constants:  # it keeps state
        return False
    heads = _random(tuple(output.shape), generator).to(output)
    (gradient,) = torch.autograd.grad(output, weight, heads)
    exact = given.detach().cpu().double()
    normalised = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + epsilon)
    scaled = normalised * (offset + weight.detach().cpu().double())
    parts = (heads.cpu().double() * normalised).flatten(0, -2)
    return _close(output, scaled, scaled.abs()) and _close(gradient, parts.sum(0), parts.abs().sum(0))


def _close(found: Tensor, wanted: Tensor, sizes: Tensor) -> bool:
    """Whether a difference is only rounding, compared with the sizes of the terms that were added up.

    In half precision a module may round after each of its few steps; float64 may have been computed in float32.
    """
    kind = torch.finfo(found.dtype)
    tolerance = 4 * kind.eps if kind.bits < 32 else 64 * torch.finfo(torch.float32).eps
    return bool(((found.detach().cpu().double() - wanted).abs() <= tolerance * sizes + kind.tiny).all())
