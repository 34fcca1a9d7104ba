"""Tensors that a whole batch shares, with one copy for each sample behind them.

A table of position embeddings of shape [t, width], T5's relative attention bias or a layer's scale is one tensor for the whole
batch, so its gradient is a sum over samples. A `SharedTensor` looks like that tensor, but carries lines [samples, ...], one for
each sample (at first, views of the same memory). Operations on it alone are done line by line. When it is broadcast to a tensor
with one line for each sample, the lines replace it. Then the gradient of the lines is the per-sample gradient, at the cost of
that one operation. All other operations are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_tracin.gradients.layouts import Decisions, Layout, NotPerSampleError, fitting

#: Elementwise operations on tensors that are broadcast to one shape; their results need no comparison of values.
_ELEMENTWISE = frozenset(
    f"{order}{name}" for order in ("", "r", "i") for name in ("add", "sub", "mul", "div", "truediv", "pow")
) | {"where", "maximum", "minimum", "lerp", "addcmul"}

#: Operations that repeat a tensor.
_EXPANDING = frozenset({"expand", "expand_as", "broadcast_to", "repeat"})

#: Arguments of a convolution.
_OF_CONVOLUTIONS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")

#: Operations that use only the data type and device of their other argument.
_TAKING_TYPES = frozenset({"to", "type_as"})

#: (operation, input, output, padding_idx) -> the output that the model continues with. If the input is shared, the given output
#: has one line for each sample.
Use: TypeAlias = Callable[[str, Tensor, Tensor, "int | None"], Tensor]


class SharedTensor(Tensor):
    """One tensor for the whole batch; `lines` holds a copy for each sample."""

    lines: Tensor  # [samples, *shape]
    layer: str
    decisions: Decisions
    trail: str
    used: Use | None

    @staticmethod
    def of(lines: Tensor, layer: str, decisions: Decisions, trail: str = "", used: Use | None = None) -> SharedTensor:
        """A shared tensor with the values of the first line.

        Args:
            lines: [samples, ...], all equal.
            layer: name of the layer that it comes from.
            decisions: earlier choices of how it is broadcast to samples.
            trail: the operations that led to it.
            used: called if the tensor is used as an embedding table or as the matrix of a linear map.

        Example:
            >>> lines = torch.zeros(2, 3).requires_grad_()  # a bias of 3 numbers, for 2 samples
            >>> bias = SharedTensor.of(lines, "layer", Decisions())
            >>> (torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]) * (bias + 1)).sum().backward()
            >>> lines.grad.tolist()
            [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
        """
        shared = lines.detach()[0].as_subclass(SharedTensor)
        shared.lines, shared.layer, shared.decisions, shared.trail, shared.used = lines, layer, decisions, trail, used
        return shared

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Apply an operation to the lines."""
        name = func.__name__
        if name in ("linear", "embedding") and len(args) > 1 and isinstance(args[1], SharedTensor) and args[1].used is not None:
            return _used(name, func, args, dict(kwargs or {}), args[1].used)
        if name in ("conv1d", "conv2d") and torch.is_grad_enabled():
            given = {**dict(zip(_OF_CONVOLUTIONS, args, strict=False)), **(kwargs or {})}
            if not isinstance(given["input"], SharedTensor) and given["input"].ndim == given["weight"].ndim:
                return _convolved(func, given)
        with torch._C.DisableTorchFunctionSubclass():
            leaves, structure = pytree.tree_flatten((args, kwargs or {}))

            def call(values: list[Any]) -> Any:
                plain_args, plain_kwargs = pytree.tree_unflatten(values, structure)
                return func(*plain_args, **plain_kwargs)

            if not torch.is_grad_enabled():
                return call([_plain(leaf) for leaf in leaves])
            return _operate(name, call, leaves)


def with_lines(output: Tensor, layout: Layout, samples: int, layer: str, decisions: Decisions) -> tuple[Tensor, Tensor]:
    """Prepare a layer's output for the backward pass.

    Args:
        output: [samples, ...], or another shape that fits the layout.
        layout: how it holds its samples.
        samples: number of samples in the batch.
        layer: name of the layer.
        decisions: earlier choices of how shared tensors are broadcast to samples.

    Returns:
        The tensor whose gradient is per sample, and the output that the model continues with.
    """
    if isinstance(output, SharedTensor):
        return output.lines, output
    if layout is Layout.SHARED:
        lines = output.detach().expand(samples, *output.shape).requires_grad_()
        lines = lines.view_as(lines)
        return lines, SharedTensor.of(lines, layer, decisions)
    if not output.requires_grad:
        # The clone is not a leaf, so the model may still change it in place.
        output = output.detach().requires_grad_().clone()
    return output, output


def _used(name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], used: Use) -> Any:
    """A linear map or a look-up, whose per-sample gradients have cheaper forms than lines."""
    inputs, weight = args[0], args[1]
    bias = (args[2] if len(args) > 2 else kwargs.get("bias")) if name == "linear" else None
    seen = inputs.lines[0] if isinstance(inputs, SharedTensor) else inputs
    with torch._C.DisableTorchFunctionSubclass():
        lines = inputs.lines if isinstance(inputs, SharedTensor) and torch.is_grad_enabled() else None
        rest = {} if name == "linear" else kwargs
        output = func(seen if lines is None else lines, _plain(weight), *(() if name == "linear" else args[2:]), **rest)
    output = used(name, inputs, output, rest.get("padding_idx", args[2] if name == "embedding" and len(args) > 2 else None))
    return output if bias is None else output + bias


def _convolved(func: Callable[..., Tensor], given: dict[str, Any]) -> Tensor:
    """A convolution of samples, [samples, channels, ...]: one with a group of channels for each sample."""
    shared = next(one for one in given.values() if isinstance(one, SharedTensor))
    inputs, samples = given["input"], shared.lines.shape[0]
    if inputs.shape[0] != samples:
        raise NotPerSampleError(
            [shared.layer], f"the input of a convolution has the shape {list(inputs.shape)} for {samples} samples"
        )
    with torch._C.DisableTorchFunctionSubclass():
        for name in ("weight", "bias"):
            one = given.get(name)
            lines = one.lines if isinstance(one, SharedTensor) else None if one is None else one.expand(samples, *one.shape)
            given[name] = None if lines is None else lines.flatten(0, 1)
        groups = samples * given.get("groups", 1)
        output = func(**{**given, "input": inputs.reshape(1, -1, *inputs.shape[2:]), "groups": groups})
        return output.reshape(samples, -1, *output.shape[2:])


def _operate(name: str, call: Callable[[list[Any]], Any], leaves: list[Any]) -> Any:
    shared = [leaf for leaf in leaves if isinstance(leaf, SharedTensor)]
    others = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, SharedTensor)]
    source, samples = shared[0], shared[0].lines.shape[0]
    in_place = _changes_its_first_argument(name)
    if in_place:
        if isinstance(leaves[0], SharedTensor) and name.strip("_") in _ELEMENTWISE and not any(one.ndim for one in others):
            return _changed(name, call, leaves, leaves[0])
        if isinstance(leaves[0], SharedTensor) or name.strip("_") not in _ELEMENTWISE:
            raise NotPerSampleError([source.layer], f"{name} changes a tensor in place")
        logical = leaves[0].detach()
    else:
        with torch.no_grad():
            logical = call([_plain(leaf) for leaf in leaves])
        if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(logical)):
            return logical  # a shape, a data type, a number
    met = None
    if _meets_samples(name, source, shared, others, logical, samples):
        met = _met(name, call, leaves, logical, samples, in_place)
    if met is not None:
        return met
    may_hold_samples = any(other.requires_grad or (other.ndim > 1 and other.shape[0] == samples) for other in others)
    if in_place or (name not in _TAKING_TYPES and may_hold_samples):
        raise NotPerSampleError([source.layer], f"{name} joins what the whole batch shares with samples in a way of its own")
    return _kept(name, call, leaves, source)


def _changed(name: str, call: Callable[[list[Any]], Any], leaves: list[Any], target: SharedTensor) -> SharedTensor:
    """Change the lines of the first argument, whose first line is the shared tensor's own memory."""
    if target.lines.stride(0) == 0:  # all lines are one memory
        raise NotPerSampleError([target.layer], f"{name} changes a parameter in place")
    for line in range(len(target.lines)):
        call([leaf.lines[line] if isinstance(leaf, SharedTensor) else leaf for leaf in leaves])
    return target


def _changes_its_first_argument(name: str) -> bool:
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name.strip("_") in _ELEMENTWISE)
    return name.endswith("_")


def _plain(leaf: Any) -> Any:
    return leaf.lines.detach()[0] if isinstance(leaf, SharedTensor) else leaf


def _meets_samples(
    name: str, source: SharedTensor, shared: list[SharedTensor], others: list[Tensor], logical: Any, samples: int
) -> bool:
    """Whether the other operands hold samples, and the shared ones can be broadcast to them."""
    if not isinstance(logical, Tensor) or logical.ndim == 0:
        return False
    candidates = fitting(logical, samples) if name in _EXPANDING and _gains_samples(name, source, logical, samples) else []
    for other in others:
        broadcast = all(one.ndim < other.ndim or (one.ndim == other.ndim and one.shape[0] == 1) for one in shared)
        if broadcast and other.ndim > 0 and logical.shape[0] == other.shape[0] and Layout.LINES not in candidates:
            candidates = fitting(other, samples) or candidates
    key = (source.layer, f"{source.trail}/{name}", len(others))
    described = f"a tensor that meets {source.layer!r} in {name}"
    return source.decisions.choose(key, [*candidates, Layout.SHARED], described) is not Layout.SHARED


def _met(
    name: str, call: Callable[[list[Any]], Any], leaves: list[Any], logical: Tensor, samples: int, in_place: bool
) -> Tensor | None:
    """Apply the operation with the lines in place of the shared tensors; None if the result has other values."""
    if name == "repeat":
        return _repeated(leaves[0], logical)
    if name in _EXPANDING:
        return _widened(leaves[0], logical, samples).expand_as(logical)
    values = [_widened(leaf, logical, samples) if isinstance(leaf, SharedTensor) else leaf for leaf in leaves]
    if in_place:
        out = call(values)
        return out if isinstance(out, Tensor) else None
    try:
        out = call(values)
    except RuntimeError:
        return None
    if not isinstance(out, Tensor) or out.shape != logical.shape:
        return None
    same = name.strip("_") in _ELEMENTWISE or torch.allclose(out.detach(), logical, rtol=1e-3, atol=1e-5, equal_nan=True)
    return out if same else None


def _widened(shared: SharedTensor, logical: Tensor, samples: int) -> Tensor:
    """The lines, reshaped to broadcast to a tensor with one or several consecutive lines for each sample."""
    missing = logical.ndim - shared.ndim
    shape = (samples, *[1] * (missing - 1), *shared.shape) if missing else (samples, *shared.shape[1:])
    lines = shared.lines.reshape(shape)
    per_sample = logical.shape[0] // samples
    return lines.repeat_interleave(per_sample, 0) if per_sample > 1 else lines


def _gains_samples(name: str, shared: SharedTensor, logical: Tensor, samples: int) -> bool:
    before = shared.shape[0] if shared.ndim == logical.ndim else 1
    return before * samples == logical.shape[0] if name == "repeat" else logical.shape[0] == samples and before == 1


def _repeated(shared: SharedTensor, logical: Tensor) -> Tensor | None:
    """The lines in place of one tensor that is repeated for every sample, as a class token is."""
    if shared.ndim != logical.ndim:
        return None
    times = [n // m for n, m in zip(logical.shape[1:], shared.shape[1:], strict=True)]
    return shared.lines.repeat(1, 1, *times).flatten(0, 1)


def _kept(name: str, call: Callable[[list[Any]], Any], leaves: list[Any], source: SharedTensor) -> Any:
    """Apply the operation line by line; the result is still shared by the whole batch."""
    all_lines = {i: leaf.lines for i, leaf in enumerate(leaves) if isinstance(leaf, SharedTensor)}

    def on_one_line(*lines: Tensor) -> Any:
        chosen = dict(zip(all_lines, lines, strict=True))
        return call([chosen.get(i, leaf) for i, leaf in enumerate(leaves)])

    try:
        out = torch.vmap(on_one_line, randomness="different")(*all_lines.values())
    except (RuntimeError, ValueError) as error:
        raise NotPerSampleError([source.layer], f"{name} cannot be done line by line") from error
    trail = f"{source.trail}/{name}"
    return pytree.tree_map(
        lambda leaf: SharedTensor.of(leaf, source.layer, source.decisions, trail) if isinstance(leaf, Tensor) else leaf, out
    )
