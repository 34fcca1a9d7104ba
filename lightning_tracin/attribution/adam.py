"""Scales of gradients under Adam, from the optimizer's second moments at a snapshot.

Without learning rate and momentum, Adam's step on a gradient g is P g with P = 1 / (sqrt(v) + eps), where v is the bias-corrected
second moment. To first order, a step on a train sample changes a probe's loss in proportion to ``<grad probe, P grad train>``
(LESS, Xia et al. 2024, section 2.2; eps and bias correction as in torch's `AdamW`). Both gradients are multiplied by sqrt(P), so
that norms and cosines belong to the same inner product.

`"adam-factored"` takes P from second moments that are factored as Adafactor's are (Shazeer and Stern 2018): the outer product
of the means of v over rows and over columns. Such a P scales the factors of a gradient, which need not be written out, so it
costs about as much as plain gradients. An element that hardly had a gradient gets the scale of its row and column. Where a whole
row or column hardly had any, and for parameters of one dimension, the scale is bounded: (1 - beta2) times the mean second
moment is added, the weight with which a sample's own gradient enters its second moment.

bfloat16 is refused: a gradient that is zero but for rounding (that of an attention's key bias) has a second moment of float32's
rounding, and P would scale up bfloat16's, which is 65,536 times as large.

With a `projection_dim`, gradients are scaled before they are projected, because the scale acts on single elements; see
`gradients.sketch_maps`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, NAdam, Optimizer, RAdam

from lightning_tracin.config import SCALED, Options, Stored
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.snapshots import Snapshot

#: Optimizers whose step is a first moment divided by the root of a second moment, element by element.
_VARIANTS = (Adam, AdamW, NAdam, RAdam)


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


def stored_scales(options: Stored, snapshot: Snapshot) -> dict[str, Tensor] | None:
    """The scales that a run's options ask for, as stored with a snapshot.

    Raises:
        TracInError: they are missing or damaged.

    Example:
        >>> stored_scales(Stored(), snapshot=None) is None  # plain gradients need none
        True
    """
    if options.preconditioner not in SCALED:
        return None
    moments = snapshot.second_moments()
    return snapshot.scales() if moments is None else scales_of_moments(moments, options.preconditioner == "adam-factored")


def on_model(scales: Mapping[str, Tensor], model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """The scales on the model's device, in the type that its gradients have.

    Example:
        >>> on_model({"weight": torch.ones(2)}, torch.nn.Linear(2, 1), torch.float64)["weight"].dtype
        torch.float64
    """
    device = next(model.parameters()).device
    return {name: scale.to(device, dtype) for name, scale in scales.items()}


def chosen_preconditioner(options: Options, optimizers: Sequence[Optimizer]) -> Options:
    """The options with `preconditioner="auto"` decided: `"adam-factored"` for exact influence if all optimizers are Adam's kin.

    In bfloat16 it is None, too.

    Raises:
        TracInError: the options ask for Adam's metric in bfloat16.

    Example:
        >>> from torch.optim import SGD, AdamW
        >>> for optimizer in (AdamW([torch.zeros(1)]), SGD([torch.zeros(1)], lr=0.1)):
        ...     chosen_preconditioner(Options(), [optimizer]).preconditioner
        'adam-factored'
    """
    if options.preconditioner in SCALED and options.dtype == "bfloat16":
        raise TracInError(
            f"preconditioner={options.preconditioner!r} scales up gradients that are smaller than rounding in dtype='bfloat16'; "
            "take dtype='float32'."
        )
    if options.preconditioner != "auto":
        return options
    is_adam = bool(optimizers) and all(isinstance(one, _VARIANTS) for one in optimizers)
    chosen = "adam-factored" if is_adam and options.method_name == "exact" and options.dtype != "bfloat16" else None
    return options.model_copy(update={"preconditioner": chosen})


@torch.no_grad()
def adam_scales(optimizers: Sequence[Optimizer], parameters: Mapping[str, Tensor], factored: bool = False) -> dict[str, Tensor]:
    """The square root of P for every element of the named parameters, on the CPU.

    The scale is 0 where P is undefined: for elements without any gradient so far (a token not seen yet), and for parameters that
    no optimizer updates.

    Args:
        optimizers: the fit's, in their current state.
        parameters: name -> parameter.
        factored: whether to factor and bound the second moments, as `"adam-factored"` does.

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
    scales = {name: torch.zeros(parameter.shape) for name, parameter in parameters.items()}
    for name, corrected, settings in _corrected(optimizers, parameters, lambda second: second):
        scales[name] = _scale(corrected, settings, factored)
    return scales


@torch.no_grad()
def moments_of(
    optimizers: Sequence[Optimizer], parameters: Mapping[str, Tensor], local: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """What `scales_of_moments` makes the scales of, for fits in which no process has whole second moments.

    Args:
        optimizers: the fit's, in their current state.
        parameters: name -> parameter.
        local: the part of a parameter or of a second moment that this process holds.

    Returns:
        `second/NAME`: the bias-corrected second moments of that part; `settings/NAME`: eps and beta2, in float64.

    Raises:
        TracInError: an optimizer's state has no second moments under torch's names.

    Example:
        >>> weight = torch.zeros(2, requires_grad=True)
        >>> adam = torch.optim.Adam([weight], eps=0.5)
        >>> weight.grad = torch.tensor([4.0, 0.25])
        >>> adam.step()
        >>> found = moments_of([adam], {"weight": weight}, lambda one: one)
        >>> found["second/weight"].tolist(), found["settings/weight"].tolist()
        ([16.0, 0.0625], [0.5, 0.999])
    """
    moments = {f"second/{name}": torch.zeros(local(parameter).shape) for name, parameter in parameters.items()}
    moments |= {f"settings/{name}": torch.zeros(2, dtype=torch.float64) for name in parameters}
    for name, corrected, settings in _corrected(optimizers, parameters, local):
        moments |= {f"second/{name}": corrected, f"settings/{name}": torch.tensor(settings, dtype=torch.float64)}
    return moments


def scales_of_moments(moments: Mapping[str, Tensor], factored: bool = False) -> dict[str, Tensor]:
    """The scales that `adam_scales` has, from whole second moments.

    Args:
        moments: as `moments_of` has them, of whole parameters.
        factored: see `adam_scales`.

    Example:
        >>> moments = {"second/weight": torch.tensor([16.0, 0.0]), "settings/weight": torch.tensor([0.0, 0.999])}
        >>> scales_of_moments(moments)["weight"].tolist()
        [0.5, 0.0]
    """
    names = [name.removeprefix("second/") for name in moments if name.startswith("second/")]
    settings = {name: (float(eps), float(beta)) for name in names for eps, beta in [moments[f"settings/{name}"].tolist()]}
    return {name: _scale(moments[f"second/{name}"], settings[name], factored) for name in names}


def _corrected(
    optimizers: Sequence[Optimizer], parameters: Mapping[str, Tensor], local: Callable[[Tensor], Tensor]
) -> Iterator[tuple[str, Tensor, tuple[float, float]]]:
    """Each parameter that has been updated: its bias-corrected second moments on the CPU, and its optimizer's eps and beta2."""
    names = {id(parameter): name for name, parameter in parameters.items()}
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
                corrected = local(second).detach().to("cpu", torch.float32) / (1 - group["betas"][1] ** float(state["step"]))
                yield names[id(parameter)], corrected, (group["eps"], group["betas"][1])


def _scale(corrected: Tensor, settings: tuple[float, float], factored: bool) -> Tensor:
    """The square root of P for one parameter, from its bias-corrected second moments, eps and beta2."""
    eps, beta = settings
    if factored:
        return _factored(corrected, 1 - beta)
    return torch.where(corrected > 0, (corrected.sqrt() + eps).rsqrt(), 0.0)


def _factored(second: Tensor, damping: float) -> Tensor:
    """The root of P from factored second moments, which are bounded from below.

    With row means r, column means c and mean m of the second moments, that of element (i, j) is
    ``(r[i] + damping m) (c[j] + damping m) / ((1 + damping) m)``; of a parameter with one dimension, ``v[i] + damping m``.
    Rows without any gradient keep the scale 0, as do columns.

    Example:
        >>> _factored(torch.tensor([[1.0, 4.0], [0.0, 0.0]]), damping=0.0).square().round(decimals=4).tolist()
        [[1.0, 0.5], [0.0, 0.0]]
    """
    mean = second.mean()
    if not mean > 0:
        return torch.zeros_like(second)
    if second.dim() < 2:
        return torch.where(second > 0, (second + damping * mean).pow(-0.25), 0.0)
    matrix = second.flatten(1)
    factors = []
    for part in (matrix.mean(1), matrix.mean(0)):
        relative = part / mean  # of mean 1
        factors.append(torch.where(part > 0, ((relative + damping) / (1 + damping)).pow(-0.25), 0.0))
    whole = (mean * (1 + damping)).pow(-0.25)
    return (whole * torch.outer(*factors)).view_as(second)
