"""Attention heads: their importance for a loss, and masks that keep some of them."""

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

from lightning_tracin.attribution.batching import batches_of, name_of
from lightning_tracin.attribution.losses import SummedLoss
from lightning_tracin.attribution.samples import SampleSet
from lightning_tracin.errors import TracInError
from lightning_tracin.gradients.freezing import uncompiled

Floats = npt.NDArray[np.float64]
Kept = npt.NDArray[np.bool_]  # [layers, heads]


#: Names of the Linear layers of BERT-like models inside a module named `attention`; the output is the last.
_LINEARS = ("self.query", "self.key", "self.value", "output.dense")


@dataclass(frozen=True)
class _Layer:
    """The attention heads of one layer: rows of the inputs' weights, and columns of the output's weight."""

    inputs: list[nn.Linear]  # query, key, value
    output: nn.Linear
    heads: int


def head_importance(
    module: nn.Module, samples: SampleSet, loss: SummedLoss, prepare: Callable[[Any], Any], batch_size: int = 32
) -> Floats:
    """How much the loss depends on each attention head: array [layers, heads].

    The mean over samples of ``|sum of context * d loss / d context|``, summed over positions and the width of a head, where the
    context is the head's output. This is the absolute derivative by a gate on the head's output (Michel et al. 2019, arXiv
    1905.10650; not normalised by layer).

    Args:
        module: a module in evaluation mode, such as `isolation.isolated_copy` returns, with a BERT-like encoder from transformers
            (BERT, RoBERTa, XLM-R).
        samples: the samples to average over, such as those of one language.
        loss: the module's loss.
        prepare: moves a batch to the module's device.
        batch_size: samples per forward and backward pass.

    Raises:
        TracInError: there are no such heads, the loss does not depend on them, or their outputs cannot be split by sample.
    """
    if not len(samples):
        raise TracInError("There are no samples to average the heads' importance over.")
    layers = _layers(module)
    contexts: list[list[Tensor]] = [[] for _ in layers]

    def keep(found: list[Tensor], _: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        context = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()  # everything before it is frozen
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
                    f"instead of once with [{len(batch)}, positions, width], so it is not known which rows are a sample's."
                )
            each = _derivatives(value, [found[0] for found in contexts], layers[0].heads)
            if not torch.isfinite(each).all():
                index = batch[int((~torch.isfinite(each)).flatten(1).any(1).nonzero()[0])]
                raise TracInError(f"The gradient of {name_of(samples, index, 'sample')} is not finite; look at that sample.")
            total += each.abs().sum(0)
    importance: Floats = (total / len(samples)).numpy()
    return importance


def _derivatives(loss: Tensor, contexts: list[Tensor], heads: int) -> Tensor:
    """Each sample's derivative of the loss by a gate on each head: [samples, layers, heads], in float64."""
    if not loss.requires_grad:
        raise TracInError("The loss does not depend on the attention heads; is it computed under `torch.no_grad()`?")
    gradients = torch.autograd.grad(loss, contexts, allow_unused=True, materialize_grads=True)
    by_head = [
        (context.detach().double() * gradient.double()).view(*context.shape[:2], heads, -1).sum((1, 3))
        for context, gradient in zip(contexts, gradients, strict=True)
    ]
    return torch.stack(by_head, 1).cpu()


def strongest_heads(importance: Floats, count: int) -> Kept:
    """The most important heads; among equals the first: bool [layers, heads].

    Raises:
        TracInError: `count` is not between 1 and the number of heads.

    Example:
        >>> strongest_heads(np.array([[0.1, 0.7], [0.5, 0.2]]), 2).tolist()
        [[False, True], [True, False]]
    """
    return _chosen(importance.shape, count, np.argsort(-importance, axis=None, kind="stable"))


def random_heads(shape: tuple[int, ...], count: int, seed: int) -> Kept:
    """Heads chosen at random: bool array of this shape, [layers, heads].

    Raises:
        TracInError: `count` is not between 1 and the number of heads.

    Example:
        >>> int(random_heads((2, 3), 4, seed=0).sum())
        4
    """
    size = int(np.prod(shape))
    return _chosen(shape, count, np.random.default_rng(seed).choice(size, min(max(count, 0), size), replace=False))


def _chosen(shape: tuple[int, ...], count: int, places: npt.NDArray[np.int64]) -> Kept:
    """The first `count` of the places in a flattened array of this shape."""
    kept = np.zeros(shape, dtype=np.bool_)
    if not 1 <= count <= kept.size:
        raise TracInError(f"count should be between 1 and the number of heads ({kept.size}), but is {count}.")
    kept.flat[places[:count]] = True
    return kept


def head_mask(module: nn.Module, kept: Kept) -> dict[str, Tensor]:
    """The mask that keeps some attention heads: parameter -> bool tensor of its shape.

    A head has rows of the weights and biases of query, key and value, and columns of the output weight (the output bias belongs
    to no head). Layers without a kept head are left out.

    Args:
        module: the LightningModule of the fit, with a BERT-like encoder from transformers.
        kept: which heads to keep, [layers, heads].

    Raises:
        TracInError: there are no such heads, `kept` has another shape, or keeps none.
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
        for linear in layer.inputs:
            mask[names[id(linear.weight)]] = width[:, None].repeat(1, linear.in_features)
            if linear.bias is not None:
                mask[names[id(linear.bias)]] = width.clone()
        mask[names[id(layer.output.weight)]] = width.repeat(layer.output.out_features, 1)
    return mask


def _layers(module: nn.Module) -> list[_Layer]:
    """The layers with attention heads, in the model's order."""
    found = []
    for name, attention in module.named_modules():
        if name.rpartition(".")[2] != "attention":
            continue
        parts = dict(attention.named_modules())
        linears = [part for place in _LINEARS if isinstance(part := parts.get(place), nn.Linear)]
        heads = getattr(parts.get("self"), "num_attention_heads", None)
        if len(linears) == len(_LINEARS) and isinstance(heads, int):
            found.append(_Layer(linears[:-1], linears[-1], heads))
    counts = {layer.heads for layer in found}
    if not found:
        raise TracInError(
            "The module has no attention heads of a BERT-like transformers model (modules `attention.self.query`, `.key` and "
            "`.value`, and `attention.output.dense`, all plain Linear layers), so there are no heads to choose from."
        )
    if len(counts) > 1:
        raise TracInError(
            f"The module's layers have different numbers of attention heads ({sorted(counts)}); they should be equal."
        )
    return found
