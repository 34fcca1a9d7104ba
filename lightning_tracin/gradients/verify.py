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
from lightning_tracin.gradients.forms import Dense, Form, Outer, Rows, some_rows
from lightning_tracin.gradients.in_double import can_double, in_double
from lightning_tracin.gradients.single import plain_gradient, rounding
from lightning_tracin.gradients.sparse import elements, plus

#: Largest difference, relative to a gradient's norm, between a sample's gradient in a batch and alone. A larger one in float32
#: is looked at in float64: there, rounding vanishes.
CLOSE = {torch.float64: 1e-6, torch.float32: 2e-5}

#: Largest difference that rounding may cause where float64 shows that it is rounding.
_ROUGH = {torch.float64: 2e-5, torch.float32: 1e-3}


def verify_gradients(
    model: nn.Module,
    coverage: Coverage,
    batch_loss: Callable[[], Tensor],
    losses_alone: Sequence[Callable[[], Tensor]],
    own: Callable[[], Tensor | None] = lambda: None,
) -> float:
    """Compare each sample's gradient, captured in a batch, with plain autograd's gradient of that sample alone.

    Where they differ, the next way of computing the gradient is tried and kept in `coverage.decisions`. Parameters for which no
    way is left are computed from single samples from then on, if the gradient of the batch is the sum of its samples' gradients.

    Args:
        model: the model; its parameters' `requires_grad` is restored afterwards.
        coverage: the scored parameters.
        batch_loss: the sum of the losses of a batch.
        losses_alone: the loss of each of its samples alone, in order.
        own: the losses of which `batch_loss` has returned the sum, see `Capture.run`.

    Returns:
        The largest difference, relative to the gradients' norms; rounding caused it.

    Raises:
        TracInError: the gradient of the batch is not the sum of its samples' gradients; the message names the parameters.

    Example:
        >>> from lightning_tracin.gradients import plan_coverage
        >>> model, inputs = nn.Linear(1, 1, bias=False), torch.tensor([[1.0], [3.0]])
        >>> coverage = plan_coverage(model, frozenset({"weight"}))
        >>> alone = [lambda: model(inputs[:1]).sum(), lambda: model(inputs[1:]).sum()]
        >>> verify_gradients(model, coverage, lambda: model(inputs).sum(), alone)
        0.0
        >>> verify_gradients(model, coverage, lambda: model(inputs * inputs[1:]).sum(), alone)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        lightning_tracin.errors.TracInError: The gradient of a batch is not the sum of its samples' own gradients: ...
    """
    modules = dict(model.named_modules())
    while True:
        largest, wrong = _checked(model, coverage, batch_loss, losses_alone, own)
        if not wrong:
            break
        if not try_others(coverage, modules, frozenset(wrong)):
            coverage.decisions.one_by_one.update(wrong)
    if coverage.decisions.one_by_one:
        apart, wrong = _looked_at(model, lambda: _apart_from_sum(model, coverage.decisions.one_by_one, batch_loss, losses_alone))
        if wrong:
            raise _error_of(wrong)
        largest = max(largest, apart)
    return largest


def _apart_from_sum(
    model: nn.Module,
    names: Collection[str],
    batch_loss: Callable[[], Tensor],
    losses_alone: Sequence[Callable[[], Tensor]],
) -> tuple[dict[str, float], torch.dtype]:
    off = plain_gradient(model, names, batch_loss)
    sizes = dict.fromkeys(names, 0.0)
    for loss in losses_alone:
        for name, gradient in plain_gradient(model, names, loss).items():
            off[name] = plus(off[name], -gradient)
            sizes[name] += float(elements(gradient).norm())
    largest = max(sizes.values())
    apart = {name: float(elements(gradient).norm()) for name, gradient in off.items()}
    dtype = max((gradient.dtype for gradient in off.values()), key=lambda one: torch.finfo(one).eps)
    return {name: value and value / largest for name, value in apart.items()}, dtype


def _error_of(wrong: Mapping[str, float]) -> TracInError:
    worst = sorted(wrong, key=lambda name: -wrong[name])[:5]
    listed = ", ".join(f"{name} (off by {wrong[name]:.2g} of the gradient's norm)" for name in worst)
    return TracInError(
        f"The gradient of a batch is not the sum of its samples' own gradients: {listed}. A sample's loss depends on the other "
        "samples of its batch (or on padding); make it a function of its own sample."
    )


def _checked(
    model: nn.Module,
    coverage: Coverage,
    batch_loss: Callable[[], Tensor],
    losses_alone: Sequence[Callable[[], Tensor]],
    own: Callable[[], Tensor | None],
) -> tuple[float, dict[str, float]]:
    """The largest difference, and the parameters whose captured gradients differ by more than rounding."""
    return _looked_at(model, lambda: _differences(model, coverage, batch_loss, losses_alone, own))


def _looked_at(
    model: nn.Module, differences: Callable[[], tuple[dict[str, float], torch.dtype]]
) -> tuple[float, dict[str, float]]:
    """The largest difference, and those that are more than rounding: float64 shows it.

    Raises:
        TracInError: the difference is rounding, and too large for it.
    """
    found, dtype = differences()
    largest = max(found.values(), default=0.0)
    if dtype not in CLOSE or not can_double(model):
        return largest, _above(found, rounding(dtype))
    if largest <= CLOSE[dtype] or math.inf in found.values():
        return largest, _above(found, CLOSE[dtype])
    try:
        with in_double(model):
            confirmed, _ = differences()
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
    model: nn.Module,
    coverage: Coverage,
    batch_loss: Callable[[], Tensor],
    losses_alone: Sequence[Callable[[], Tensor]],
    own: Callable[[], Tensor | None],
) -> tuple[dict[str, float], torch.dtype]:
    """How much each captured gradient differs, relative to the gradient's norm, and the least precise data type in use."""
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
        norms = torch.stack([elements(gradient).norm() for gradient in truth.values()])
        if not bool(torch.isfinite(norms).all()):
            continue  # the pass reports it with the sample's name
        largest = max(largest, float(norms.norm()))
        dtype = max(dtype, norms.dtype, key=lambda one: torch.finfo(one).eps)
        for name, gradient in truth.items():
            if name not in differences:
                continue
            for form in captured.get(name, ()):
                gradient = _without(gradient, form, position)
            differences[name] = max(differences[name], float(elements(gradient).norm()))
        truth.clear()  # before the next sample's are computed
    if largest == 0:
        raise TracInError(
            "The loss does not depend on the scored parameters: their gradient is zero on every sample of a real batch. Check "
            "`parameters=[...]`, and that the loss is not computed from detached values or by another module."
        )
    found = {name: value / largest for name, value in differences.items()}
    if len(losses_alone) > 1 and not _above(found, max(CLOSE[torch.float32], rounding(dtype) if dtype not in CLOSE else 0.0)):
        coverage.decisions.verified.update(capture.seen)
    return found, dtype


def _without(gradient: Tensor, form: Form, position: int) -> Tensor:
    """A sample's gradient without the form of the sample at this position; the gradient may be changed in place."""
    if isinstance(form, Rows) and gradient.is_sparse:
        rows = some_rows(form, position, position + 1)
        return plus(
            gradient, -torch.sparse_coo_tensor(rows.row[None], rows.values, gradient.shape, check_invariants=False).coalesce()
        )
    gradient = gradient.to_dense()
    if isinstance(form, Dense):
        gradient.view(-1).sub_(form.values[position].to(gradient.dtype))
    elif isinstance(form, Outer):
        gradient.view(form.left.shape[2], form.right.shape[2]).addmm_(form.left[position].T, form.right[position], alpha=-1)
    else:
        rows = some_rows(form, position, position + 1)
        gradient.index_add_(0, rows.row, rows.values, alpha=-1)
    return gradient
