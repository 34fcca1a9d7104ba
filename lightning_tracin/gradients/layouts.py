"""How tensors hold their samples, and the choices made about that so far.

A shape alone may fit more than one layout: a table of 8 positions looks like a batch of 8 samples. So a choice, once made, is
kept and must fit every later batch. `verify_gradients` compares the results with plain autograd and tries the next choice if the
first is wrong.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor


class Layout(Enum):
    """How the first dimension of a tensor relates to the samples."""

    LINES = "one line for each sample"
    FLAT = "several consecutive lines for each sample"
    SHARED = "the same for all samples"
    OWNED = "lines whose samples only their gradients tell"


class NotPerSampleError(Exception):
    """The current way of separating samples does not work; the named layers need the next one."""

    def __init__(self, layers: Sequence[str], reason: str) -> None:
        super().__init__(reason)
        self.layers = tuple(layers)


@dataclass
class Decisions:
    """What has been chosen so far, by layer; grows batch by batch."""

    layouts: dict[tuple[Hashable, ...], Layout] = field(default_factory=dict)  # see `choose`
    alternatives: dict[tuple[Hashable, ...], list[Layout]] = field(default_factory=dict)
    loose: set[str] = field(default_factory=set)  # layers with a rule whose parameters are used without calling the layer
    replayed: dict[str, str] = field(default_factory=dict)  # layer -> the enclosing module that is run again
    methods: dict[str, int] = field(default_factory=dict)  # module that is run again -> first method that may work
    owned: set[str] = field(default_factory=set)  # layers whose lines' samples are always read from their gradients
    verified: set[str] = field(default_factory=set)  # layers of which all choices have been verified on a batch
    one_by_one: set[str] = field(default_factory=set)  # parameters whose gradients are computed from single samples

    def choose(self, key: tuple[Hashable, ...], candidates: Sequence[Layout], described: str) -> Layout:
        """The layout of a tensor: the one chosen before, or the first candidate.

        Args:
            key: what the choice is for; its first part is the layer's (or module's) name.
            candidates: what the tensor's shape allows, best first; not empty.
            described: the tensor, for messages.

        Raises:
            NotPerSampleError: an earlier batch had a layout that this tensor cannot have.

        Example:
            >>> decisions = Decisions()
            >>> decisions.choose(("head", 2), [Layout.LINES, Layout.FLAT], "the input of 'head'")
            <Layout.LINES: 'one line for each sample'>
            >>> decisions.reconsider("head"), decisions.layouts[("head", 2)]
            (True, <Layout.FLAT: 'several consecutive lines for each sample'>)
        """
        known = self.layouts.get(key)
        if known is None:
            self.layouts[key], self.alternatives[key] = candidates[0], list(candidates[1:])
            self.verified.discard(str(key[0]))
            return candidates[0]
        if known not in candidates:
            raise NotPerSampleError([str(key[0])], f"in an earlier batch, {described} held {known.value}")
        return known

    def reconsider(self, layer: str) -> bool:
        """Switch a layer to its next possible layout; False if there is none left."""
        keys = [key for key in self.alternatives if key[0] == layer and self.alternatives[key]]
        if keys:
            self.verified.discard(layer)
        for key in keys:
            self.layouts[key] = self.alternatives[key].pop(0)
        return bool(keys)


def lines_of(tensor: Tensor, layout: Layout, samples: int) -> Tensor:
    """The tensor with one line for each sample: [samples, ...].

    Example:
        >>> import torch
        >>> lines_of(torch.tensor([1, 2, 3, 4]), Layout.FLAT, samples=2).tolist()
        [[1, 2], [3, 4]]
        >>> lines_of(torch.tensor([1, 2]), Layout.SHARED, samples=2).tolist()
        [[1, 2], [1, 2]]
    """
    if samples == 1 and layout is not Layout.LINES:
        return tensor[None]
    if layout is Layout.FLAT:
        return tensor.reshape(samples, tensor.shape[0] // samples, *tensor.shape[1:])
    if layout is Layout.SHARED:
        return tensor.expand(samples, *tensor.shape)
    return tensor


def fitting(tensor: Tensor, samples: int) -> list[Layout]:
    """The per-sample layouts that a tensor's shape allows, best first.

    Example:
        >>> import torch
        >>> fitting(torch.ones(6, 4), samples=2), fitting(torch.ones(7, 4), samples=2)
        ([<Layout.FLAT: 'several consecutive lines for each sample'>], [])
    """
    count = tensor.shape[0] if tensor.ndim > 0 else 0
    if count == samples:
        return [Layout.LINES, Layout.FLAT]  # these are the same here
    return [Layout.FLAT] if count > 0 and count % samples == 0 else []


def layer_layout(
    layer: str, inputs: Tensor, output: Tensor, samples: int, decisions: Decisions, positionwise: bool = False
) -> Layout:
    """How the output of a layer holds its samples, judged by its shape and its input's.

    Args:
        layer: the layer's name.
        inputs: the input, of any shape.
        output: the output, not a shared tensor.
        samples: number of samples in the batch.
        decisions: earlier choices; a new choice is added.
        positionwise: whether each line of the output is computed from one line of the input, so that lines can have owners.

    Raises:
        NotPerSampleError: no layout fits, or an earlier batch had a layout that this one cannot have.
    """
    if samples == 1:
        return Layout.LINES if output.ndim > 1 and output.shape[0] == 1 and inputs.shape[:1] == (1,) else Layout.FLAT
    if layer in decisions.owned:
        return Layout.OWNED
    if output.shape[:1] == (1,) and not inputs.requires_grad:
        return Layout.SHARED  # nothing to choose
    candidates = fitting(output, samples) if output.ndim > 1 and inputs.shape[:1] == output.shape[:1] else []
    if not inputs.is_floating_point():  # look-ups of one list of positions are common, of flattened tokens they are not
        lines = [layout for layout in candidates if layout is Layout.LINES]
        candidates = [*lines, Layout.SHARED, *[layout for layout in candidates if layout not in lines]]
    elif not inputs.requires_grad:
        candidates = [*candidates, Layout.SHARED]
    described = f"the input of {layer!r}"
    known = decisions.layouts.get((layer, output.ndim))
    if positionwise and (known not in candidates if known else not candidates):
        decisions.owned.add(layer)
        return Layout.OWNED
    if not candidates and known is None:
        raise NotPerSampleError([layer], f"{described} has the shape {list(inputs.shape)} for {samples} samples")
    return decisions.choose((layer, output.ndim), candidates, described)


def output_layout(module: str, place: int, output: Tensor, samples: int, decisions: Decisions, layers: Sequence[str]) -> Layout:
    """How one of a module's outputs holds its samples, judged by its shape alone.

    Args:
        module: name of the module.
        place: position of the output among all outputs.
        output: the output, not a shared tensor.
        samples: number of samples in the batch.
        decisions: earlier choices; a new choice is added.
        layers: names of the layers that need to know.

    Raises:
        NotPerSampleError: no layout fits, or an earlier batch had a layout that this one cannot have.
    """
    if samples == 1:
        return Layout.FLAT
    candidates = fitting(output, samples)
    key, described = (module, "output", place), f"output {place} of {module!r}"
    if decisions.layouts.get(key) not in (None, *candidates) or not candidates:
        raise NotPerSampleError(layers, f"{described} has the shape {list(output.shape)} for {samples} samples")
    if key not in decisions.layouts:
        decisions.verified.difference_update(layers)
    return decisions.choose(key, candidates, described)
