"""Attention heads: how much a loss depends on each, and masks of some of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lightning_tracin.attribution.batching import batches_of, described
from lightning_tracin.attribution.losses import SummedLoss
from lightning_tracin.attribution.samples import SampleSet
from lightning_tracin.errors import TracInError
from lightning_tracin.gradients.freezing import uncompiled

Floats = npt.NDArray[np.float64]
Kept = npt.NDArray[np.bool_]  # [layers, heads]


#: Where the heads of BERT's family stand within a module named `attention`.
_QUERY, _KEY, _VALUE, _OUTPUT = "self.query", "self.key", "self.value", "output.dense"


@dataclass(frozen=True)
class _Layer:
    """The attention heads of one layer: rows of three weights, and columns of the fourth."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    heads: int


def head_importance(
    module: nn.Module, samples: SampleSet, loss: SummedLoss, prepare: Callable[[Any], Any], batch_size: int = 32
) -> Floats:
    """How much the loss depends on each attention head: array [layers, heads].

    The mean over samples of ``|sum of context * d loss / d context|`` over a sample's positions and the head's width, where
    the context is what the head hands on: the absolute derivative by a gate that stands before the head (Michel et al. 2019,
    arXiv 1905.10650; not normalised by layer).

    Args:
        module: in evaluation mode, as `isolation.isolated_copy` gives it; with an encoder of BERT's family of transformers
            (BERT, RoBERTa, XLM-R).
        samples: over which the mean is taken, such as those of one language.
        loss: of the module.
        prepare: moves a batch to the module's device.
        batch_size: samples of one forward and backward pass.

    Raises:
        TracInError: there are no such heads, the loss does not depend on them, or the samples cannot be told apart in them.
    """
    if not len(samples):
        raise TracInError("There are no samples to take the heads' importance over.")
    layers = _layers(module)
    contexts: list[list[Tensor]] = [[] for _ in layers]

    def keep(found: list[Tensor], _: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        context = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()  # nothing below it is trainable
        found.append(context)
        return (context, *args[1:])

    total = torch.zeros(len(layers), layers[0].heads, dtype=torch.float64)
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(uncompiled(module))
        for layer, found in zip(layers, contexts, strict=True):
            stack.callback(layer.output.register_forward_pre_hook(partial(keep, found)).remove)
        for batch in batches_of(samples, batch_size):
            for found in contexts:
                found.clear()
            value = loss(prepare(samples.batch(batch)), len(batch))
            if any(len(found) != 1 or found[0].ndim != 3 or len(found[0]) != len(batch) for found in contexts):
                raise TracInError(
                    f"The loss of {len(batch)} samples calls a layer's attention with {[list(one.shape) for one in contexts[0]]} "
                    f"instead of once with [{len(batch)}, positions, width], so it is not known which lines are a sample's."
                )
            each = _derivatives(value, [found[0] for found in contexts], layers[0].heads)
            if not torch.isfinite(each).all():
                index = batch[int((~torch.isfinite(each)).flatten(1).any(1).nonzero()[0])]
                raise TracInError(f"The gradient of {described(samples, index, 'sample')} is not finite; look at that sample.")
            total += each.abs().sum(0)
    importance: Floats = (total / len(samples)).numpy()
    return importance


def _derivatives(loss: Tensor, contexts: list[Tensor], heads: int) -> Tensor:
    """Each sample's derivative of the loss by a gate before each head: [samples, layers, heads], in float64."""
    if not loss.requires_grad:
        raise TracInError("The loss does not depend on the attention heads; is it computed under `torch.no_grad()`?")
    gradients = torch.autograd.grad(loss, contexts, allow_unused=True, materialize_grads=True)
    by_head = [
        (context.detach().double() * gradient.double()).view(*context.shape[:2], heads, -1).sum((1, 3))
        for context, gradient in zip(contexts, gradients, strict=True)
    ]
    return torch.stack(by_head, 1).cpu()


def strongest_heads(importance: Floats, count: int) -> Kept:
    """The heads of the greatest importance, the first of equals: bool [layers, heads].

    Raises:
        TracInError: there are not so many heads.
    """
    _require_count(count, importance.size)
    return _chosen(importance.shape, np.argsort(-importance, axis=None, kind="stable")[:count])


def random_heads(shape: tuple[int, ...], count: int, seed: int) -> Kept:
    """As many heads at random: bool of this shape, [layers, heads].

    Raises:
        TracInError: there are not so many heads.
    """
    size = int(np.prod(shape))
    _require_count(count, size)
    return _chosen(shape, np.random.default_rng(seed).choice(size, count, replace=False))


def _require_count(count: int, heads: int) -> None:
    if not 1 <= count <= heads:
        raise TracInError(f"count should be between 1 and the number of heads ({heads}), but is {count}.")


def _chosen(shape: tuple[int, ...], places: npt.NDArray[np.int64]) -> Kept:
    kept = np.zeros(shape, dtype=np.bool_)
    kept.flat[places] = True
    return kept


def head_mask(module: nn.Module, kept: Kept) -> dict[str, Tensor]:
    """The mask of some attention heads: parameter -> bool tensor of its shape.

    A head's parameters are its rows of the query's, key's and value's weight and bias, and its columns of the weight that takes
    its context (whose bias belongs to no head). Layers without a head that is kept are not named.

    Args:
        module: the LightningModule of the fit (names are its own), with an encoder of BERT's family of transformers.
        kept: which heads, [layers, heads].

    Raises:
        TracInError: there are no such heads, or not in these numbers, or none is kept.
    """
    layers = _layers(module)
    if kept.shape != (len(layers), layers[0].heads):
        raise TracInError(
            f"kept should have shape [{len(layers)}, {layers[0].heads}] (layers, heads), but has {list(kept.shape)}."
        )
    if not kept.any():
        raise TracInError("No head is kept, so the mask would be empty; keep at least one.")
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    mask: dict[str, Tensor] = {}
    for layer, heads in zip(layers, kept, strict=True):
        if not heads.any():
            continue
        width = torch.from_numpy(heads).repeat_interleave(layer.output.in_features // layer.heads)
        for linear in (layer.query, layer.key, layer.value):
            mask[names[id(linear.weight)]] = width[:, None].repeat(1, linear.in_features)
            if linear.bias is not None:
                mask[names[id(linear.bias)]] = width.clone()
        mask[names[id(layer.output.weight)]] = width.repeat(layer.output.out_features, 1)
    return mask


def _layers(module: nn.Module) -> list[_Layer]:
    """The layers with attention heads, in the model's order."""
    found = []
    for name, part in module.named_modules():
        if name.rpartition(".")[2] != "attention":
            continue
        parts = dict(part.named_modules())
        query, key, value, output = (parts.get(place) for place in (_QUERY, _KEY, _VALUE, _OUTPUT))
        heads = getattr(parts.get("self"), "num_attention_heads", None)
        if (
            isinstance(query, nn.Linear)
            and isinstance(key, nn.Linear)
            and isinstance(value, nn.Linear)
            and isinstance(output, nn.Linear)
            and isinstance(heads, int)
        ):
            found.append(_Layer(query, key, value, output, heads))
    counts = {layer.heads for layer in found}
    if not found:
        raise TracInError(
            "The module has no attention heads of BERT's family of transformers (modules `attention.self.query`, `.key` and "
            "`.value`, and `attention.output.dense`, all plain Linear layers), so there are no heads to choose from."
        )
    if len(counts) > 1:
        raise TracInError(
            f"The module's layers have different numbers of attention heads ({sorted(counts)}); they should be equal."
        )
    return found
