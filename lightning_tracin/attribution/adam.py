"""Scales of gradients under Adam, from the optimizer's second moments at a snapshot.

Without learning rate and momentum, Adam's step on a gradient g is P g with P = 1 / (sqrt(v) + eps), where v is the bias-corrected
second moment. To first order, a step on a train sample changes a probe's loss in proportion to ``<grad probe, P grad train>``
(LESS, Xia et al. 2024, section 2.2; eps and bias correction as in torch's `AdamW`). Both gradients are multiplied by sqrt(P), so
that norms and cosines belong to the same inner product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_tracin.errors import TracInError


def require_second_moments(optimizers: Sequence[Optimizer]) -> None:
    """Check that all optimizers keep second moments.

    Raises:
        TracInError: one is not an Adam variant.

    Example:
        >>> require_second_moments([torch.optim.AdamW([torch.zeros(1)])])
        >>> try:
        ...     require_second_moments([torch.optim.SGD([torch.zeros(1)], lr=0.1)])
        ... except TracInError as error:
        ...     print(str(error).partition(";")[0])
        preconditioner='adam' takes an optimizer's second moments, but SGD keeps none
    """
    for optimizer in optimizers:
        if "betas" not in optimizer.defaults or "eps" not in optimizer.defaults:
            raise TracInError(
                f"preconditioner='adam' takes an optimizer's second moments, but {type(optimizer).__name__} keeps none; use Adam "
                "or AdamW, or leave `preconditioner` out."
            )


@torch.no_grad()
def adam_scales(optimizers: Sequence[Optimizer], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The square root of P for every element of the named parameters, on the CPU.

    The scale is 0 where P is undefined: for elements without any gradient so far (a token not seen yet), and for parameters that
    no optimizer updates.

    Args:
        optimizers: the fit's, in their current state.
        parameters: name -> parameter.

    Raises:
        TracInError: an optimizer's state has no second moments under torch's names.

    Example:
        After one step the second moment is the squared gradient, so P is 1 / |gradient|.

        >>> weight = torch.zeros(3, requires_grad=True)
        >>> adam = torch.optim.Adam([weight], eps=0.0)
        >>> weight.grad = torch.tensor([4.0, 0.25, 0.0])
        >>> adam.step()
        >>> adam_scales([adam], {"weight": weight})["weight"].round(decimals=4).tolist()
        [0.5, 2.0, 0.0]
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    scales = {name: torch.zeros(parameter.shape) for name, parameter in parameters.items()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                state = optimizer.state.get(parameter)
                if id(parameter) not in names or not state:
                    continue
                second = state.get("max_exp_avg_sq", state.get("exp_avg_sq"))
                if second is None:
                    raise TracInError(
                        f"The state of {type(optimizer).__name__} holds no 'exp_avg_sq' (it has {sorted(map(str, state))}), so "
                        "preconditioner='adam' cannot read its second moments; leave `preconditioner` out."
                    )
                second = second.detach().to("cpu", torch.float32)
                corrected = second / (1 - group["betas"][1] ** float(state["step"]))
                scale = (corrected.sqrt() + group["eps"]).rsqrt()
                scales[names[id(parameter)]] = torch.where(second > 0, scale, 0.0)
    return scales
