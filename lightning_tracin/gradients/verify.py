"""A check on the model and data at hand that captured gradients are the true ones.

Rules cover layers that compute through their own `forward`. A model may still use a weight behind its layer's back
(`F.linear(x, self.layer.weight)`), mix samples, or put something other than samples first in a tensor. Each of these makes
a captured gradient differ from plain autograd's on one sample alone, which is what is compared here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_tracin.errors import TracInError
from lightning_tracin.gradients.capture import Capture
from lightning_tracin.gradients.coverage import Coverage
from lightning_tracin.gradients.fallbacks import try_others
from lightning_tracin.gradients.forms import Dense, Form, Outer, some_rows
from lightning_tracin.gradients.single import plain_gradient, rounding


def verify_gradients(
    model: nn.Module, coverage: Coverage, batch_loss: Callable[[], Tensor], losses_alone: Sequence[Callable[[], Tensor]]
) -> None:
    """Compare every sample's gradient as captured in a batch with plain autograd's on that sample alone.

    Args:
        model: the model; its parameters' `requires_grad` is as before afterwards.
        coverage: what is scored.
        batch_loss: the sum of the losses of a batch.
        losses_alone: the loss of each of its samples alone, in order.

    Raises:
        TracInError: the two differ by more than rounding; the message names the parameters.
    """
    modules = dict(model.named_modules())
    first: dict[str, float] = {}
    while True:
        try:
            wrong = _differences(model, coverage, batch_loss, losses_alone)
        except TracInError as error:
            if first:  # no other way is open, and what is wrong is what was seen first
                raise _error_of(first) from error
            raise
        if not wrong:
            return
        first = first or wrong
        if not try_others(coverage, modules, frozenset(wrong)):
            raise _error_of(wrong)


def _error_of(wrong: Mapping[str, float]) -> TracInError:
    worst = sorted(wrong, key=lambda name: -wrong[name])[:5]
    listed = ", ".join(f"{name} (off by {wrong[name]:.2g} of the gradient's norm)" for name in worst)
    return TracInError(
        f"The gradients captured in a batch differ from those of the sample alone: {listed}. Either the model changes the order "
        "of the samples or uses these weights in a way that cannot be followed, or a sample's loss depends on the other samples "
        "of its batch (or on padding); leave such parameters out with `parameters=[...]`, or make the loss a function of its own "
        "sample."
    )


def _differences(
    model: nn.Module, coverage: Coverage, batch_loss: Callable[[], Tensor], losses_alone: Sequence[Callable[[], Tensor]]
) -> dict[str, float]:
    """The parameters whose captured gradients differ, with the difference relative to the gradients' norm."""
    captured: dict[str, tuple[Form, ...]] = {}
    with Capture(model, coverage) as capture:
        capture.run(batch_loss, len(losses_alone), captured.__setitem__)
    differences: dict[str, float] = dict.fromkeys(coverage.elements, 0.0)
    largest, dtype = 0.0, capture.coarsest
    for position, loss in enumerate(losses_alone):
        truth = plain_gradient(model, coverage.elements, loss)
        norms = torch.stack([gradient.norm() for gradient in truth.values()])
        if not bool(torch.isfinite(norms).all()):
            continue  # reported with the sample's name where the pass meets it
        largest = max(largest, float(norms.norm()))
        dtype = max(dtype, norms.dtype, key=lambda one: torch.finfo(one).eps)
        for name, gradient in truth.items():
            for form in _only(captured.get(name, ()), position):
                _subtract(gradient, form)
            differences[name] = max(differences[name], float(gradient.norm()))
    if largest == 0:
        raise TracInError(
            "The loss does not depend on the scored parameters: their gradient is zero on every sample of a real batch. Check "
            "`parameters=[...]`, and that the loss is not computed from detached values or by another module."
        )
    return {name: value / largest for name, value in differences.items() if not value <= rounding(dtype) * largest}


def _only(forms: tuple[Form, ...], position: int) -> tuple[Form, ...]:
    """The forms of one sample, holding on to no more than that sample's part."""
    out: list[Form] = []
    for form in forms:
        if isinstance(form, Dense):
            out.append(Dense(form.values[position : position + 1].clone()))
        elif isinstance(form, Outer):
            out.append(Outer(form.left[position : position + 1].clone(), form.right[position : position + 1].clone()))
        else:
            out.append(some_rows(form, position, position + 1))
    return tuple(out)


def _subtract(gradient: Tensor, form: Form) -> None:
    """Take one sample's form away from its written-out gradient, in place."""
    if isinstance(form, Dense):
        gradient.view(-1).sub_(form.values[0].to(gradient.dtype))
    elif isinstance(form, Outer):
        gradient.view(form.left.shape[2], form.right.shape[2]).addmm_(form.left[0].T, form.right[0], alpha=-1)
    else:
        gradient.index_add_(0, form.row, form.values, alpha=-1)
