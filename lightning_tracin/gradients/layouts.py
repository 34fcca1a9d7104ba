"""Where a tensor keeps its samples, and what has been found out about that so far.

A shape alone may fit more than one layout: a table of 8 positions looks like a batch of 8 samples. So a choice that was
made once is kept, must fit every later batch, and is compared with plain autograd by `verify_gradients`, which tries the
next choice where the first is wrong.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor

from lightning_tracin.errors import TracInError


class Layout(Enum):
    """How the first dimension of a tensor relates to the samples."""

    LINES = "one line for each sample"
    FLAT = "several consecutive lines for each sample"
    SHARED = "the same for all samples"


class NotPerSampleError(Exception):
    """A way to tell samples apart does not fit; the next one must be taken for the layers named."""

    def __init__(self, layers: Sequence[str], reason: str) -> None:
        super().__init__(reason)
        self.layers = tuple(layers)


@dataclass
class Decisions:
    """What has been chosen, by layer; grows while batches pass by."""

    layouts: dict[Hashable, Layout] = field(default_factory=dict)
    alternatives: dict[Hashable, list[Layout]] = field(default_factory=dict)
    loose: set[str] = field(default_factory=set)  # layers with a rule whose parameters are used without calling them
    replayed: dict[str, str] = field(default_factory=dict)  # layer -> the module around it that is computed again
    methods: dict[str, int] = field(default_factory=dict)  # module that is computed again -> first method that may work

    def choose(self, key: Hashable, candidates: Sequence[Layout], described: str) -> Layout:
        """The layout of a tensor: the one chosen before, or the first candidate.

        Args:
            key: what the choice is for; its first part is the layer's name.
            candidates: what the tensor's shape allows, best first; not empty.
            described: the tensor, for messages.

        Raises:
            TracInError: an earlier batch had a layout that this tensor cannot have.
        """
        known = self.layouts.get(key)
        if known is None:
            self.layouts[key], self.alternatives[key] = candidates[0], list(candidates[1:])
            return candidates[0]
        if known not in candidates:
            raise TracInError(
                f"In an earlier batch, {described} held {known.value}, which its shape now rules out, so its samples cannot be "
                "told apart; leave the layer's parameters out with `parameters=[...]`, or use another `batch_size`."
            )
        return known

    def reconsider(self, layer: str) -> bool:
        """Take the next layout of a layer; False if there is none left."""
        keys = [key for key in self.alternatives if isinstance(key, tuple) and key[0] == layer and self.alternatives[key]]
        for key in keys:
            self.layouts[key] = self.alternatives[key].pop(0)
        return bool(keys)


def lines_of(tensor: Tensor, layout: Layout, samples: int) -> Tensor:
    """The tensor with one line for each sample: [samples, ...]."""
    if samples == 1 and layout is not Layout.LINES:
        return tensor[None]
    if layout is Layout.FLAT:
        return tensor.reshape(samples, tensor.shape[0] // samples, *tensor.shape[1:])
    if layout is Layout.SHARED:
        return tensor.expand(samples, *tensor.shape)
    return tensor


def fitting(tensor: Tensor, samples: int) -> list[Layout]:
    """The layouts with samples in them that a tensor's shape allows, best first."""
    if tensor.ndim == 0:
        return []
    if tensor.shape[0] == samples:
        return [Layout.LINES, Layout.FLAT]  # which are the same here
    if tensor.shape[0] > 0 and tensor.shape[0] % samples == 0:
        return [Layout.FLAT]
    return []


def layer_layout(layer: str, inputs: Tensor, output: Tensor, samples: int, decisions: Decisions) -> Layout:
    """Where the output of a layer keeps its samples, by its shape and its input's.

    Args:
        layer: its name.
        inputs: its input, of any shape.
        output: its output, no shared tensor.
        samples: number of samples in the batch.
        decisions: what has been chosen so far; a new choice is kept there.

    Raises:
        NotPerSampleError: no layout fits.
        TracInError: an earlier batch had a layout that this one cannot have.
    """
    if samples == 1:
        return Layout.LINES if output.ndim > 1 and output.shape[0] == 1 and inputs.shape[:1] == (1,) else Layout.FLAT
    if output.shape[:1] == (1,) and not inputs.requires_grad:
        return Layout.SHARED  # which needs no choice
    candidates = fitting(output, samples) if output.ndim > 1 and inputs.shape[:1] == output.shape[:1] else []
    if not inputs.is_floating_point():  # look-ups by one list of positions are frequent, by flattened tokens are not
        lines = [layout for layout in candidates if layout is Layout.LINES]
        candidates = [*lines, Layout.SHARED, *[layout for layout in candidates if layout not in lines]]
    elif not inputs.requires_grad:
        candidates = [*candidates, Layout.SHARED]
    described = f"the input of {layer!r}"
    if not candidates and (layer, output.ndim) not in decisions.layouts:
        raise NotPerSampleError([layer], f"{described} has the shape {list(inputs.shape)} for {samples} samples")
    return decisions.choose((layer, output.ndim), candidates, described)


def output_layout(module: str, place: int, output: Tensor, samples: int, decisions: Decisions, layers: Sequence[str]) -> Layout:
    """Where one of a module's outputs keeps its samples, by its shape alone.

    Args:
        module: name of the module.
        place: of the output among all of them.
        output: no shared tensor.
        samples: number of samples in the batch.
        decisions: what has been chosen so far; a new choice is kept there.
        layers: names of the layers that need to know.

    Raises:
        NotPerSampleError: no layout fits.
        TracInError: an earlier batch had a layout that this one cannot have.
    """
    if samples == 1:
        return Layout.FLAT
    candidates = fitting(output, samples)
    key, described = (module, "output", place), f"output {place} of {module!r}"
    if not candidates and key not in decisions.layouts:
        raise NotPerSampleError(layers, f"{described} has the shape {list(output.shape)} for {samples} samples")
    return decisions.choose(key, candidates, described)
