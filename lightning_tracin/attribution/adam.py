"""How far an Adam optimizer moves each element for a gradient of 1: from its second moments at a snapshot.

Adam's step on a gradient g is, beside the learning rate and the first moment's decay, P g with P = 1 / (sqrt(v) + eps), where
v is the bias-corrected second moment. The change of a probe's loss by a step on a train sample is thus, to first order, in
proportion to ``<grad probe, P grad train>`` (LESS, Xia et al. 2024, section 2.2; torch's `AdamW` for eps and bias correction).
Both sides are scaled with the square root of P, so that norms and cosines are those of the same inner product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_tracin.errors import TracInError


def require_second_moments(optimizers: Sequence[Optimizer]) -> None:
    """Refuse optimizers that keep no second moments.

    Raises:
        TracInError: one is not of Adam's kind.
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

    An element that no gradient has reached (a token that was not seen yet) has no second moment; it counts as 0, and so does a
    parameter that no optimizer moves.

    Args:
        optimizers: of the fit, now.
        parameters: by name.

    Raises:
        TracInError: an optimizer's state has no second moments under torch's names.
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
