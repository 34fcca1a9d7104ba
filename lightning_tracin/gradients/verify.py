"""A check, on the actual model and data, that captured gradients are correct.

Rules cover layers that compute through their own `forward`. A model may still use a weight without calling its layer
(`F.linear(x, self.layer.weight)`), mix samples, or have something other than samples in a tensor's first dimension. In each case
the captured gradient differs from plain autograd's on one sample alone; this module compares the two.
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
from lightning_tracin.gradients.in_double import can_double, in_double
from lightning_tracin.gradients.single import plain_gradient, rounding

#: Largest difference, relative to a gradient's norm, between a sample's gradient in a batch and alone. A larger one in float32
#: is looked at in float64: there, rounding vanishes.
CLOSE = {torch.float64: 1e-6, torch.float32: 2e-5}

#: Largest difference that rounding may cause where float64 shows that it is rounding.
_ROUGH = {torch.float64: 2e-5, torch.float32: 1e-3}


def verify_gradients(
    model: nn.Module, coverage: Coverage, batch_loss: Callable[[], Tensor], losses_alone: Sequence[Callable[[], Tensor]]
) -> float:
    """Compare each sample's gradient, captured in a batch, with plain autograd's gradient of that sample alone.

    Where they differ, the next way of computing the gradient is tried and kept in `coverage.decisions`.

    Args:
        model: the model; its parameters' `requires_grad` is restored afterwards.
        coverage: the scored parameters.
        batch_loss: the sum of the losses of a batch.
        losses_alone: the loss of each of its samples alone, in order.

    Returns:
        The largest difference, relative to the gradients' norms; rounding caused it.

    Raises:
        TracInError: the two differ by more than rounding; the message names the parameters.

    Example:
        >>> from lightning_tracin.gradients import plan_coverage
        >>> model, inputs = nn.Linear(1, 1, bias=False), torch.tensor([[1.0], [3.0]])
        >>> coverage = plan_coverage(model, frozenset({"weight"}))
        >>> alone = [lambda: model(inputs[:1]).sum(), lambda: model(inputs[1:]).sum()]
        >>> verify_gradients(model, coverage, lambda: model(inputs).sum(), alone)
        0.0
        >>> verify_gradients(model, coverage, lambda: model(inputs.flip(0)).sum(), alone)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        lightning_tracin.errors.TracInError: The gradients captured in a batch differ from those of the sample alone: ...
    """
    modules = dict(model.named_modules())
    first: dict[str, float] = {}
    while True:
        try:
            largest, wrong = _checked(model, coverage, batch_loss, losses_alone)
        except TracInError as error:
            if first:  # there is no other way left, and the first differences describe the problem best
                raise _error_of(first) from error
            raise
        if not wrong:
            return largest
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


def _checked(
    model: nn.Module, coverage: Coverage, batch_loss: Callable[[], Tensor], losses_alone: Sequence[Callable[[], Tensor]]
) -> tuple[float, dict[str, float]]:
    """The largest difference, and the parameters whose captured gradients differ by more than rounding.

    Raises:
        TracInError: the difference is rounding, and too large for it.
    """
    found, dtype = _differences(model, coverage, batch_loss, losses_alone)
    largest = max(found.values())
    if dtype not in CLOSE or not can_double(model):
        return largest, _above(found, rounding(dtype))
    if not _above(found, CLOSE[dtype]):
        return largest, {}
    try:
        with in_double(model):
            confirmed, _ = _differences(model, coverage, batch_loss, losses_alone)
    except TracInError:
        raise
    except Exception:  # a kernel without float64: what float32 shows counts
        return largest, _above(found, CLOSE[dtype])
    wrong = _above(confirmed, CLOSE[dtype])
    if not wrong and _above(found, _ROUGH[dtype]):
        worst = max(found, key=lambda name: found[name])
        raise TracInError(
            f"The gradient of {worst} differs by {found[worst]:.2g} of its norm between a batch and a sample alone, which is "
            f"rounding in {str(dtype).removeprefix('torch.')} (in float64 they agree); use `dtype='float64'`."
        )
    return largest, wrong


def _above(differences: Mapping[str, float], most: float) -> dict[str, float]:
    return {name: value for name, value in differences.items() if not value <= most}


def _differences(
    model: nn.Module, coverage: Coverage, batch_loss: Callable[[], Tensor], losses_alone: Sequence[Callable[[], Tensor]]
) -> tuple[dict[str, float], torch.dtype]:
    """How much each parameter's captured gradient differs, relative to the gradient's norm, and the least precise type used."""
    captured: dict[str, tuple[Form, ...]] = {}
    with Capture(model, coverage) as capture:
        capture.run(batch_loss, len(losses_alone), captured.__setitem__)
    differences: dict[str, float] = dict.fromkeys(coverage.elements, 0.0)
    largest, dtype = 0.0, capture.coarsest
    for position, loss in enumerate(losses_alone):
        truth = plain_gradient(model, coverage.elements, loss)
        norms = torch.stack([gradient.norm() for gradient in truth.values()])
        if not bool(torch.isfinite(norms).all()):
            continue  # the pass reports it with the sample's name
        largest = max(largest, float(norms.norm()))
        dtype = max(dtype, norms.dtype, key=lambda one: torch.finfo(one).eps)
        for name, gradient in truth.items():
            for form in captured.get(name, ()):
                _subtract(gradient, form, position)
            differences[name] = max(differences[name], float(gradient.norm()))
    if largest == 0:
        raise TracInError(
            "The loss does not depend on the scored parameters: their gradient is zero on every sample of a real batch. Check "
            "`parameters=[...]`, and that the loss is not computed from detached values or by another module."
        )
    return {name: value / largest for name, value in differences.items()}, dtype


def _subtract(gradient: Tensor, form: Form, position: int) -> None:
    """Subtract the form of the sample at this position from that sample's dense gradient, in place."""
    if isinstance(form, Dense):
        gradient.view(-1).sub_(form.values[position].to(gradient.dtype))
    elif isinstance(form, Outer):
        gradient.view(form.left.shape[2], form.right.shape[2]).addmm_(form.left[position].T, form.right[position], alpha=-1)
    else:
        rows = some_rows(form, position, position + 1)
        gradient.index_add_(0, rows.row, rows.values, alpha=-1)
