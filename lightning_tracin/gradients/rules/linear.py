"""Linear layers."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_tracin.gradients.forms import Dense, Form, Outer
from lightning_tracin.gradients.rules.rule import rule


def live_positions(inputs: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Flatten both to [samples, positions, width] and drop positions whose gradient is zero in the whole batch.

    In the top layer of a classifier that reads only one position, for example, all other positions are dropped. On an accelerator
    all are kept: to see which are zero, the processor would wait for the device at every layer.

    Example:
        >>> import torch
        >>> inputs, gradient = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[5.0], [0.0]]])
        >>> live_positions(inputs, gradient)
        (tensor([[[1.]]]), tensor([[[5.]]]))
    """
    samples = gradient.shape[0]
    inputs = inputs.reshape(samples, -1, inputs.shape[-1])
    gradient = gradient.reshape(samples, -1, gradient.shape[-1])
    if gradient.shape[1] == 1 or gradient.device.type != "cpu":
        return inputs, gradient
    if bool(gradient[-1, :, 0].all()):  # a quick look at one sample, often the longest in the batch
        return inputs, gradient
    live = gradient[:, :, 0].ne(0).any(dim=0)  # check one column first, which is rarely zero by chance
    doubtful = (~live).nonzero()[:, 0]
    live[doubtful] = gradient[:, doubtful].ne(0).any(dim=2).any(dim=0)
    if bool(live.all()):
        return inputs, gradient
    return inputs[:, live], gradient[:, live]


@rule(nn.Linear)
def linear(_module: nn.Module, inputs: Tensor, gradient: Tensor, wanted: frozenset[str]) -> dict[str, Form]:
    """``y = x W' + b``: the weight's gradient is a sum of outer products, the bias's the sum of output gradients."""
    inputs, gradient = live_positions(inputs, gradient)
    forms: dict[str, Form] = {}
    if "weight" in wanted:
        forms["weight"] = Outer(gradient, inputs)
    if "bias" in wanted:
        forms["bias"] = Dense(gradient.sum(1))
    return forms


@rule("transformers.pytorch_utils:Conv1D")
def transposed_linear(module: nn.Module, inputs: Tensor, gradient: Tensor, wanted: frozenset[str]) -> dict[str, Form]:
    """GPT-2's ``y = x W + b``, which its authors call a convolution: a Linear whose weight is stored transposed."""
    forms = linear(module, inputs, gradient, wanted)
    return {name: Outer(form.right, form.left) if isinstance(form, Outer) else form for name, form in forms.items()}
