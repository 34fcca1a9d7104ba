"""Convolutions, which are Linear layers over patches of the input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_tracin.gradients.forms import Dense, Form, Outer
from lightning_tracin.gradients.rules.linear import live_positions
from lightning_tracin.gradients.rules.rule import rule


@rule(nn.Conv1d)
@rule(nn.Conv2d)
def convolution(module: nn.Module, inputs: Tensor, gradient: Tensor, wanted: frozenset[str]) -> dict[str, Form]:
    """``y[o, l] = sum over c, k of W[o, c, k] x[c, l * stride + k * dilation] + b[o]``, within each group of channels.

    The weight's gradient is the sum over places l of the outer products of output gradient and patch (im2col).
    """
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    samples, groups = gradient.shape[0], module.groups
    space = len(module.kernel_size)
    heads = gradient.reshape(samples, -1, module.out_channels, gradient.shape[-space:].numel()).transpose(2, 3)
    heads = heads.reshape(samples, -1, module.out_channels)  # [samples, places, out]
    forms: dict[str, Form] = {}
    if "bias" in wanted:
        forms["bias"] = Dense(heads.sum(1))
    if "weight" not in wanted:
        return forms
    patches = _patches(module, inputs.reshape(-1, module.in_channels, *inputs.shape[-space:]))
    patches = patches.transpose(1, 2).reshape(samples, -1, patches.shape[1])  # [samples, places, in * kernel]
    patches, heads = live_positions(patches, heads)
    if groups == 1:
        forms["weight"] = Outer(heads, patches)
    else:
        left, right = (part.reshape(*part.shape[:2], groups, part.shape[2] // groups) for part in (heads, patches))
        forms["weight"] = Dense(torch.einsum("npgo,npgc->ngoc", left, right).flatten(1))
    return forms


def _patches(module: nn.Conv1d | nn.Conv2d, inputs: Tensor) -> Tensor:
    """The input patch of each output place: [images, in * kernel, places]."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    inputs = F.pad(inputs, module._reversed_padding_repeated_twice, mode=mode)
    if isinstance(module, nn.Conv2d):
        return F.unfold(inputs, module.kernel_size, dilation=module.dilation, stride=module.stride)
    (kernel,), (dilation,), (stride,) = module.kernel_size, module.dilation, module.stride
    return F.unfold(inputs[:, :, None], (1, kernel), dilation=(1, dilation), stride=(1, stride))
