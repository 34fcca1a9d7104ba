"""A check, on the actual model and data, that captured gradients are correct.

Rules cover layers that compute through their own `forward`. A model may still use a weight without calling its layer
(`F.linear(x, self.layer.weight)`), mix samples, or have something other than samples in a tensor's first dimension. In each case
the captured gradient differs from plain autograd's on one sample alone; this module compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_tracin.errors import TracInError
from lightning_tracin.gradients.arrivals import UnresolvedError
from lightning_tracin.gradients.capture import Capture
from lightning_tracin.gradients.coverage import Coverage
from lightning_tracin.gradients.fallbacks import try_others
from lightning_tracin.gradients.forms import Dense, Form, Outer, some_rows
from lightning_tracin.gradients.single import plain_gradient, rounding


def verify_gradients(
    model: nn.Module,
    coverage: Coverage,
    batch_loss: Callable[[], Tensor],
    losses_alone: Sequence[Callable[[], Tensor]],
    own: Callable[[], Tensor | None] = lambda: None,
) -> None:
    """Compare each sample's gradient, captured in a batch, with plain autograd's gradient of that sample alone.

    Where they differ, the next way of computing the gradient is tried and kept in `coverage.decisions`. Parameters for which no
    way is left are computed from single samples from then on, if the gradient of the batch is the sum of its samples' gradients.

    Args:
        model: the model; its parameters' `requires_grad` is restored afterwards.
        coverage: the scored parameters.
        batch_loss: the sum of the losses of a batch.
        losses_alone: the loss of each of its samples alone, in order.
        own: the losses of which `batch_loss` has returned the sum, see `Capture.run`.

    Raises:
        TracInError: the gradient of the batch is not the sum of its samples' gradients; the message names the parameters.

    Example:
        >>> from lightning_tracin.gradients import plan_coverage
        >>> model, inputs = nn.Linear(1, 1, bias=False), torch.tensor([[1.0], [3.0]])
        >>> coverage = plan_coverage(model, frozenset({"weight"}))
        >>> alone = [lambda: model(inputs[:1]).sum(), lambda: model(inputs[1:]).sum()]
        >>> verify_gradients(model, coverage, lambda: model(inputs).sum(), alone)
        >>> verify_gradients(model, coverage, lambda: model(inputs * inputs[1:]).sum(), alone)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        lightning_tracin.errors.TracInError: The gradient of a batch is not the sum of its samples' own gradients: ...
    """
    modules = dict(model.named_modules())
    while wrong := _differences(model, coverage, batch_loss, losses_alone, own):
        if not try_others(coverage, modules, frozenset(wrong)):
            coverage.decisions.one_by_one.update(wrong)
    if coverage.decisions.one_by_one:
        _require_sum(model, coverage.decisions.one_by_one, batch_loss, losses_alone)


def _require_sum(
    model: nn.Module,
    names: Collection[str],
    batch_loss: Callable[[], Tensor],
    losses_alone: Sequence[Callable[[], Tensor]],
) -> None:
    """Check that the gradient of a batch is the sum of its samples' gradients, for these parameters."""
    off = plain_gradient(model, names, batch_loss)
    sizes = dict.fromkeys(names, 0.0)
    for loss in losses_alone:
        for name, gradient in plain_gradient(model, names, loss).items():
            off[name] -= gradient
            sizes[name] += float(gradient.norm())
    largest = max(sizes.values())
    mixed = {
        name: float(gradient.norm()) / largest
        for name, gradient in off.items()
        if not float(gradient.norm()) <= rounding(gradient.dtype) * largest
    }
    if mixed:
        raise _error_of(mixed)


def _error_of(wrong: Mapping[str, float]) -> TracInError:
    worst = sorted(wrong, key=lambda name: -wrong[name])[:5]
    listed = ", ".join(f"{name} (off by {wrong[name]:.2g} of the gradient's norm)" for name in worst)
    return TracInError(
        f"The gradient of a batch is not the sum of its samples' own gradients: {listed}. A sample's loss depends on the other "
        "samples of its batch (or on padding); make it a function of its own sample."
    )


def _differences(
    model: nn.Module,
    coverage: Coverage,
    batch_loss: Callable[[], Tensor],
    losses_alone: Sequence[Callable[[], Tensor]],
    own: Callable[[], Tensor | None],
) -> dict[str, float]:
    """The parameters whose captured gradients differ, with the difference relative to the gradient's norm."""
    captured: dict[str, tuple[Form, ...]] = {}
    unresolved: frozenset[str] = frozenset()
    with Capture(model, coverage) as capture:
        try:
            capture.run(batch_loss, len(losses_alone), captured.__setitem__, own)
        except UnresolvedError as error:
            unresolved = error.names
    compared = [name for name in coverage.elements if name not in coverage.decisions.one_by_one]
    differences: dict[str, float] = {name: math.inf if name in unresolved else 0.0 for name in compared}
    largest, dtype = 0.0, capture.coarsest
    for position, loss in enumerate(losses_alone):
        truth = plain_gradient(model, coverage.elements, loss)
        norms = torch.stack([gradient.norm() for gradient in truth.values()])
        if not bool(torch.isfinite(norms).all()):
            continue  # the pass reports it with the sample's name
        largest = max(largest, float(norms.norm()))
        dtype = max(dtype, norms.dtype, key=lambda one: torch.finfo(one).eps)
        for name, gradient in truth.items():
            if name not in differences:
                continue
            for form in captured.get(name, ()):
                _subtract(gradient, form, position)
            differences[name] = max(differences[name], float(gradient.norm()))
    if largest == 0:
        raise TracInError(
            "The loss does not depend on the scored parameters: their gradient is zero on every sample of a real batch. Check "
            "`parameters=[...]`, and that the loss is not computed from detached values or by another module."
        )
    wrong = {name: value / largest for name, value in differences.items() if not value <= rounding(dtype) * largest}
    if not wrong and len(losses_alone) > 1:
        coverage.decisions.verified.update(capture.seen)
    return wrong


def _subtract(gradient: Tensor, form: Form, position: int) -> None:
    """Subtract the form of the sample at this position from that sample's dense gradient, in place."""
    if isinstance(form, Dense):
        gradient.view(-1).sub_(form.values[position].to(gradient.dtype))
    elif isinstance(form, Outer):
        gradient.view(form.left.shape[2], form.right.shape[2]).addmm_(form.left[position].T, form.right[position], alpha=-1)
    else:
        rows = some_rows(form, position, position + 1)
        gradient.index_add_(0, rows.row, rows.values, alpha=-1)
