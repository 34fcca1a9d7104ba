"""Per-sample gradients of any parameter, by running the module around it again.

The last resort for parameters that have no rule and are not simply broadcast to the samples (fused experts, recurrent cells,
attention with its own projections). A call of the module is recorded: its arguments and, when they arrive, the gradients of its
outputs. Then the module alone is run again, with parameters that require a gradient. There are three methods, tried from cheapest
to most expensive; each one's outputs must equal the recorded ones:

1. all samples at once under `vmap`, each sample with its part of the arguments;
2. sample by sample, each with its part of the arguments (for modules that branch on their data);
3. the whole batch, then one backward for each sample's part of the outputs (for arguments that cannot be split).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from lightning_tracin.gradients.layouts import Decisions, Layout, lines_of

#: Largest difference between a repeated and a recorded output that may be rounding, relative to the output's largest value.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
_COARSE = 0.1


class NotRepeatableError(Exception):
    """A module that is run again does not give the same output."""


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Args:
        name: the module's name, for messages.
        module: the module.
        arguments: positional and keyword arguments, tensors detached.
        outputs: the floating-point tensors among its outputs, in order, detached.
        layouts: how each output holds its samples.
        autocast: context in which the call was made: device type, data type, whether enabled.
    """

    name: str
    module: nn.Module
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    outputs: tuple[Tensor, ...]
    layouts: tuple[Layout, ...]
    autocast: tuple[str, torch.dtype, bool]

    @staticmethod
    def of(
        name: str,
        module: nn.Module,
        arguments: tuple[tuple[Any, ...], dict[str, Any]],
        outputs: Sequence[Tensor],
        layouts: Sequence[Layout],
    ) -> Call:
        """Record the call that has just been made, detached from its graph."""
        detached = pytree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, arguments)
        device = outputs[0].device.type
        autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        return Call(name, module, detached, tuple(output.detach() for output in outputs), tuple(layouts), autocast)


def replayed_gradients(
    call: Call, gradients: Sequence[Tensor | None], parameters: Mapping[str, Tensor], samples: int, decisions: Decisions
) -> dict[str, Tensor]:
    """Per-sample gradients of parameters that are used somewhere in a module: path in the module -> [samples, elements].

    Args:
        call: the recorded call.
        gradients: gradients of its outputs; None for an output that the loss does not depend on.
        parameters: path in the module -> value.
        samples: number of samples.
        decisions: which method has worked before; updated.

    Raises:
        NotRepeatableError: running the module again does not give the same output.
    """
    methods: list[Callable[..., dict[str, Tensor] | None]] = [_at_once, _one_by_one, _whole]
    first = 2 if samples == 1 else decisions.methods.get(call.name, 0)
    device, dtype, enabled = call.autocast
    with torch.enable_grad(), torch.autocast(device, dtype=dtype, enabled=enabled):
        for number in range(first, len(methods)):
            found = methods[number](call, gradients, parameters, samples)
            if found is not None:
                if samples > 1:
                    decisions.methods[call.name] = number
                return {path: gradient.detach().reshape(samples, -1) for path, gradient in found.items()}
    raise NotRepeatableError(
        f"running {call.name or 'the model'!r} ({type(call.module).__name__}) once more did not give the same output, because "
        "its forward is not a function of its arguments alone (it changes them in place, or has a state)"
    )


def _run(call: Call, parameters: Mapping[str, Tensor], arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> list[Tensor]:
    outputs = functional_call(call.module, dict(parameters), *arguments, tie_weights=False)
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _agrees(outputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    if len(outputs) != len(wanted):
        return False
    for one, other in zip(outputs, wanted, strict=True):
        if one.shape != other.shape:
            return False
        bound = _TOLERANCE.get(other.dtype, _COARSE) * float(other.abs().amax()) if other.numel() else 0.0
        if other.numel() and not float((one.detach() - other).abs().amax()) <= bound:
            return False
    return True


def _split_arguments(call: Call, samples: int) -> tuple[list[Tensor], Callable[..., Any]]:
    """The arguments that hold samples, with one line for each, and a function that puts such parts back among all arguments."""
    leaves, structure = pytree.tree_flatten(call.arguments)
    flat = {output.shape[0] for output, layout in zip(call.outputs, call.layouts, strict=True) if layout is Layout.FLAT}
    lines = {
        place: lines_of(leaf, Layout.FLAT, samples)
        for place, leaf in enumerate(leaves)
        if isinstance(leaf, Tensor) and leaf.ndim > 0 and (leaf.shape[0] == samples or leaf.shape[0] in flat)
    }

    def joined(*parts: Tensor) -> Any:
        chosen = dict(zip(lines, parts, strict=True))
        return pytree.tree_unflatten([chosen.get(place, leaf) for place, leaf in enumerate(leaves)], structure)

    return list(lines.values()), joined


def _by_line(tensors: Sequence[Tensor | None], samples: int) -> list[Tensor | None]:
    """Reshape outputs or their gradients to one line for each sample: [samples, k, ...], with k lines of the module's output."""
    return [None if one is None else lines_of(one, Layout.FLAT, samples) for one in tensors]


def _at_once(
    call: Call, gradients: Sequence[Tensor | None], parameters: Mapping[str, Tensor], samples: int
) -> dict[str, Tensor] | None:
    split, joined = _split_arguments(call, samples)
    if not split:
        return None
    lines = {path: value.detach().expand(samples, *value.shape).requires_grad_() for path, value in parameters.items()}

    def one(own: dict[str, Tensor], *parts: Tensor) -> tuple[Tensor, ...]:
        return tuple(_run(call, own, joined(*parts)))

    try:
        outputs = torch.vmap(one)(lines, *split)
    except Exception:  # it branches on data, vmap does not support an operation, or other arguments hold the samples
        return None
    wanted = [line for line in _by_line(call.outputs, samples) if line is not None]
    if not _agrees(outputs, wanted):
        return None
    return _gradients(outputs, _by_line(gradients, samples), lines)


def _one_by_one(
    call: Call, gradients: Sequence[Tensor | None], parameters: Mapping[str, Tensor], samples: int
) -> dict[str, Tensor] | None:
    split, joined = _split_arguments(call, samples)
    if not split:
        return None
    wanted, heads = _by_line(call.outputs, samples), _by_line(gradients, samples)
    own = {path: value.detach().requires_grad_() for path, value in parameters.items()}
    each = []
    for sample in range(samples):
        try:
            outputs = _run(call, own, joined(*(part[sample] for part in split)))
        except Exception:  # the shapes do not fit: other arguments hold the samples
            return None
        if not _agrees(outputs, [line[sample] for line in wanted if line is not None]):
            return None
        each.append(_gradients(outputs, [None if head is None else head[sample] for head in heads], own))
    return {path: torch.stack([one[path] for one in each]) for path in own}


def _whole(
    call: Call, gradients: Sequence[Tensor | None], parameters: Mapping[str, Tensor], samples: int
) -> dict[str, Tensor] | None:
    own = {path: value.detach().requires_grad_() for path, value in parameters.items()}
    outputs = _run(call, own, call.arguments)
    if not _agrees(outputs, call.outputs):
        return None
    if samples == 1:
        return _gradients(outputs, gradients, own)
    outputs = [lines_of(output, Layout.FLAT, samples) for output in outputs]
    heads = _by_line(gradients, samples)
    each = [
        _gradients([output[sample] for output in outputs], [None if head is None else head[sample] for head in heads], own)
        for sample in range(samples)
    ]
    return {path: torch.stack([one[path] for one in each]) for path in own}


def _gradients(
    outputs: Sequence[Tensor], gradients: Sequence[Tensor | None], parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The gradients of parameters, given those of the outputs; the graph is kept for the next sample."""
    reached = [
        (output, head) for output, head in zip(outputs, gradients, strict=True) if head is not None and output.requires_grad
    ]
    if not reached:
        return {path: torch.zeros_like(value) for path, value in parameters.items()}
    found = torch.autograd.grad(
        [output for output, _ in reached],
        list(parameters.values()),
        [head for _, head in reached],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(parameters, found, strict=True))
