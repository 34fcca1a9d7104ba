"""How an optimizer turns gradients into updates, as far as that is linear in them: one rule for each optimizer.

Given the optimizer's second moments, an update is linear in the gradients of this step and of the steps before it:

    moment <- keep * moment + gain * gradient
    update = - scale * (of_moment * moment + of_gradient * gradient)

so each group of samples has its own moment and its own part of the update (Kingma and Ba 2015 for Adam, Loshchilov and Hutter
2019 for AdamW, Shazeer and Stern 2018 for Adafactor; the others as torch's documentation states them). Weight decay is a source
of its own: *coupled* decay adds to the gradient, *decoupled* decay to the update.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import unwrap
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer


@dataclass(frozen=True)
class LinearStep:
    """One step of a parameter: the numbers in the formulas of this module.

    Attributes:
        scale: a number, or a tensor of the parameter's shape.
        of_moment: see the formulas.
        of_gradient: see the formulas.
        keep: see the formulas.
        gain: a number, or a tensor of the parameter's shape.
        coupled: the weight decay that is added to the gradient, as a factor of the weights before the step.
        decoupled: the part of the weights before the step that is taken from them.
        sign: -1 if the optimizer maximizes.
    """

    scale: Tensor | float
    of_moment: float = 1.0
    of_gradient: float = 0.0
    keep: float = 0.0
    gain: Tensor | float = 1.0
    coupled: float = 0.0
    decoupled: float = 0.0
    sign: int = 1

    @property
    def has_moment(self) -> bool:
        """Whether there is a moment; with a learning rate of zero it moves, and the weights do not.

        Example:
            >>> LinearStep(0.1, of_moment=0.0, keep=0.9).has_moment, LinearStep(0.1, of_moment=0.0, of_gradient=1.0).has_moment
            (True, False)
        """
        return self.keep != 0 or self.of_moment != 0


class UpdateRule(Protocol):
    """The rule of one optimizer."""

    moment: str | None
    """The entry of a parameter's state that is the moment of all groups together, after the last step."""

    def before(self, state: Mapping[str, Any], parameter: Tensor) -> Any:
        """What has to be known from before the step."""

    def after(self, group: Mapping[str, Any], state: Mapping[str, Any], parameter: Tensor, before: Any) -> LinearStep:
        """The step that was made.

        Args:
            group: the parameter group.
            state: of the parameter, after the step.
            parameter: after the step.
            before: what `before` returned.
        """


_Rule = TypeVar("_Rule", bound=type)

#: Optimizer's type (or `package.module:Type`) -> its rule.
_RULES: list[tuple[type[Optimizer] | str, UpdateRule]] = []


def update_rule(*optimizers: type[Optimizer] | str) -> Callable[[_Rule], _Rule]:
    """Declare the decorated class as the rule of these optimizers.

    Args:
        optimizers: their types, or `package.module:Type` for those of a package that may not be installed.
    """

    def declare(rule: _Rule) -> _Rule:
        _RULES.extend((optimizer, rule()) for optimizer in optimizers)
        return rule

    return declare


def rule_of(optimizer: Optimizer) -> UpdateRule | None:
    """The rule of an optimizer, or of a subclass that steps in the same way; None if there is none.

    Example:
        >>> weight = torch.zeros(1, requires_grad=True)
        >>> type(rule_of(torch.optim.AdamW([weight]))).__name__, rule_of(torch.optim.Rprop([weight]))
        ('AdamRule', None)
    """
    for known, rule in _RULES:
        kinds: list[Any] = [
            kind for kind in type(optimizer).__mro__ if kind is known or f"{kind.__module__}:{kind.__name__}" == known
        ]
        if any(unwrap(type(optimizer).step) is unwrap(kind.step) for kind in kinds):
            return rule
    return None


def _decay(group: Mapping[str, Any], decoupled: bool) -> dict[str, Any]:
    """Weight decay as `LinearStep` has it."""
    decay = float(group["weight_decay"])
    return {"decoupled": float(group["lr"]) * decay} if decoupled else {"coupled": decay}


def _sign(group: Mapping[str, Any]) -> int:
    return -1 if group.get("maximize", False) else 1


class _Stateless:
    """A rule that needs nothing from before the step."""

    moment: str | None = None

    def before(self, state: Mapping[str, Any], parameter: Tensor) -> Any:
        """Nothing."""


@update_rule(torch.optim.SGD)
class SGDRule:
    """SGD, with momentum and Nesterov's momentum (Sutskever et al. 2013)."""

    moment: str | None = "momentum_buffer"

    def before(self, state: Mapping[str, Any], parameter: Tensor) -> bool:
        """Whether there is a moment already: the first gradient becomes the moment as it is."""
        return state.get("momentum_buffer") is not None

    def after(self, group: Mapping[str, Any], state: Mapping[str, Any], parameter: Tensor, before: bool) -> LinearStep:
        """See `UpdateRule.after`."""
        shared: dict[str, Any] = {"sign": _sign(group), **_decay(group, decoupled=False)}
        momentum = float(group["momentum"])
        rate = float(group["lr"])
        if momentum == 0:
            return LinearStep(rate, of_moment=0.0, of_gradient=1.0, **shared)
        keep, gain = (momentum, 1 - float(group["dampening"])) if before else (0.0, 1.0)
        if group["nesterov"]:
            return LinearStep(rate, of_moment=momentum, of_gradient=1.0, keep=keep, gain=gain, **shared)
        return LinearStep(rate, keep=keep, gain=gain, **shared)


@update_rule(torch.optim.Adam)
class AdamRule(_Stateless):
    """Adam and AdamW, with AMSGrad (Reddi et al. 2018)."""

    moment = "exp_avg"
    _decoupled = False

    def after(self, group: Mapping[str, Any], state: Mapping[str, Any], parameter: Tensor, before: Any) -> LinearStep:
        """See `UpdateRule.after`."""
        (beta1, beta2), step = map(float, group["betas"]), float(state["step"])
        second = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
        correction = (1 - beta2**step) ** 0.5
        scale = second.sqrt().add_(group["eps"] * correction).reciprocal_()
        scale.mul_(float(group["lr"]) * correction / (1 - beta1**step))
        decay = _decay(group, group.get("decoupled_weight_decay", self._decoupled))
        return LinearStep(scale, keep=beta1, gain=1 - beta1, sign=_sign(group), **decay)


@update_rule(torch.optim.AdamW)
class AdamWRule(AdamRule):
    """AdamW, for versions of torch whose groups do not say that their decay is decoupled."""

    _decoupled = True


@update_rule(torch.optim.NAdam)
class NAdamRule(_Stateless):
    """NAdam (Dozat 2016)."""

    moment = "exp_avg"

    def after(self, group: Mapping[str, Any], state: Mapping[str, Any], parameter: Tensor, before: Any) -> LinearStep:
        """See `UpdateRule.after`."""
        (beta1, beta2), step, rate = map(float, group["betas"]), float(state["step"]), float(group["lr"])
        now, following = (beta1 * (1 - 0.5 * 0.96 ** (at * float(group["momentum_decay"]))) for at in (step, step + 1))
        product = float(state["mu_product"])
        return LinearStep(
            state["exp_avg_sq"].div(1 - beta2**step).sqrt_().add_(group["eps"]).reciprocal_(),
            of_moment=rate * following / (1 - product * following),
            of_gradient=rate * (1 - now) / (1 - product),
            keep=beta1,
            gain=1 - beta1,
            sign=_sign(group),
            **_decay(group, group["decoupled_weight_decay"]),
        )


@update_rule(torch.optim.RAdam)
class RAdamRule(_Stateless):
    """RAdam (Liu et al. 2020)."""

    moment = "exp_avg"

    def after(self, group: Mapping[str, Any], state: Mapping[str, Any], parameter: Tensor, before: Any) -> LinearStep:
        """See `UpdateRule.after`."""
        (beta1, beta2), step = map(float, group["betas"]), float(state["step"])
        correction, longest = 1 - beta2**step, 2 / (1 - beta2) - 1
        length = longest - 2 * step * beta2**step / correction
        scale: Tensor | float = float(group["lr"]) / (1 - beta1**step)
        if length > 5:
            rectified = ((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)) ** 0.5
            scale = state["exp_avg_sq"].sqrt().add_(group["eps"]).reciprocal_().mul_(scale * rectified * correction**0.5)
        decay = _decay(group, group["decoupled_weight_decay"])
        return LinearStep(scale, keep=beta1, gain=1 - beta1, sign=_sign(group), **decay)


@update_rule(torch.optim.Adamax)
class AdamaxRule(_Stateless):
    """Adamax (Kingma and Ba 2015)."""

    moment = "exp_avg"

    def after(self, group: Mapping[str, Any], state: Mapping[str, Any], parameter: Tensor, before: Any) -> LinearStep:
        """See `UpdateRule.after`."""
        beta1, step = float(group["betas"][0]), float(state["step"])
        scale = state["exp_inf"].reciprocal().mul_(float(group["lr"]) / (1 - beta1**step))
        return LinearStep(scale, keep=beta1, gain=1 - beta1, sign=_sign(group), **_decay(group, decoupled=False))


@update_rule(torch.optim.RMSprop)
class RMSpropRule(_Stateless):
    """RMSprop, centered and with momentum (Graves 2013)."""

    moment = "momentum_buffer"

    def after(self, group: Mapping[str, Any], state: Mapping[str, Any], parameter: Tensor, before: Any) -> LinearStep:
        """See `UpdateRule.after`."""
        second, rate, momentum = state["square_avg"], float(group["lr"]), float(group["momentum"])
        if group["centered"]:
            second = second.addcmul(state["grad_avg"], state["grad_avg"], value=-1)
        scale = second.sqrt().add_(group["eps"]).reciprocal_()
        shared: dict[str, Any] = {"sign": _sign(group), **_decay(group, decoupled=False)}
        if momentum > 0:
            return LinearStep(rate, keep=momentum, gain=scale, **shared)
        return LinearStep(scale.mul_(rate), of_moment=0.0, of_gradient=1.0, **shared)


@update_rule(torch.optim.Adagrad)
class AdagradRule(_Stateless):
    """Adagrad (Duchi et al. 2011)."""

    def after(self, group: Mapping[str, Any], state: Mapping[str, Any], parameter: Tensor, before: Any) -> LinearStep:
        """See `UpdateRule.after`."""
        rate = float(group["lr"]) / (1 + (float(state["step"]) - 1) * float(group["lr_decay"]))
        scale = state["sum"].sqrt().add_(group["eps"]).reciprocal_().mul_(rate)
        return LinearStep(scale, of_moment=0.0, of_gradient=1.0, sign=_sign(group), **_decay(group, decoupled=False))


@update_rule(torch.optim.Adadelta)
class AdadeltaRule:
    """Adadelta (Zeiler 2012)."""

    moment: str | None = None

    def before(self, state: Mapping[str, Any], parameter: Tensor) -> Tensor:
        """The second moments of the updates."""
        known = state.get("acc_delta")
        return torch.zeros_like(parameter) if known is None else known.clone()

    def after(self, group: Mapping[str, Any], state: Mapping[str, Any], parameter: Tensor, before: Tensor) -> LinearStep:
        """See `UpdateRule.after`."""
        scale = before.add(group["eps"]).sqrt_().div_(state["square_avg"].add(group["eps"]).sqrt_()).mul_(float(group["lr"]))
        return LinearStep(scale, of_moment=0.0, of_gradient=1.0, sign=_sign(group), **_decay(group, decoupled=False))


@update_rule("torch.optim:Adafactor", "torch.optim._adafactor:Adafactor")
class AdafactorRule:
    """Adafactor (Shazeer and Stern 2018) as torch has it, without a first moment.

    Its step is relative to the weights before it, and is cut where its root mean square is above `d`, both by one factor for
    the whole parameter, which the weights before and after the step tell.
    """

    moment: str | None = None

    def before(self, state: Mapping[str, Any], parameter: Tensor) -> Tensor:
        """The weights."""
        return parameter.detach().clone()

    def after(self, group: Mapping[str, Any], state: Mapping[str, Any], parameter: Tensor, before: Tensor) -> LinearStep:
        """See `UpdateRule.after`."""
        small, least = group["eps"]
        small = torch.finfo(parameter.dtype).eps if small is None else small
        rate, step = float(group["lr"]), float(state["step"])
        alpha = max(least, float(before.norm()) / before.numel() ** 0.5) * min(rate, 1 / step**0.5)
        if parameter.ndim > 1:
            rows, columns = state["row_var"], state["col_var"]
            second = (rows @ columns).div_(rows.mean(dim=-2, keepdim=True).clamp_(min=small))
        else:
            second = state["variance"].clone()
        scale = second.clamp_(min=small * small).rsqrt_()
        gradient = _gradient_of(parameter)
        cut = max(1.0, float((scale * gradient).norm()) / (gradient.numel() ** 0.5 * float(group["d"])))
        return LinearStep(
            scale.mul_(alpha / cut), of_moment=0.0, of_gradient=1.0, sign=_sign(group), **_decay(group, decoupled=True)
        )


@update_rule("transformers.optimization:Adafactor")
class FairseqAdafactorRule(_Stateless):
    """Adafactor (Shazeer and Stern 2018) as transformers has it, with a first moment of its updates if `beta1` is given."""

    moment = "exp_avg"

    def after(self, group: Mapping[str, Any], state: Mapping[str, Any], parameter: Tensor, before: Any) -> LinearStep:
        """See `UpdateRule.after`."""
        gradient, beta1 = _gradient_of(parameter), group["beta1"]
        rate = group["lr"]
        if group["relative_step"]:
            rate = min(1e-6 * state["step"] if group["warmup_init"] else 1e-2, state["step"] ** -0.5)
        rate = float(rate) * (max(group["eps"][1], float(state["RMS"])) if group["scale_parameter"] else 1.0)
        if parameter.ndim > 1:
            rows, columns = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
            scale = (rows / rows.mean(dim=-1, keepdim=True)).rsqrt_()[..., None] * columns[..., None, :].rsqrt()
        else:
            scale = state["exp_avg_sq"].rsqrt()
        cut = max(1.0, float((scale * gradient).norm()) / gradient.numel() ** 0.5 / float(group["clip_threshold"]))
        scale.mul_(rate / cut)
        decoupled = rate * float(group["weight_decay"])
        if beta1 is None:
            return LinearStep(scale, of_moment=0.0, of_gradient=1.0, decoupled=decoupled)
        return LinearStep(1.0, keep=beta1, gain=scale.mul_(1 - beta1), decoupled=decoupled)


def _gradient_of(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
