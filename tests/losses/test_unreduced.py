"""Each sample's loss is what torch gives a batch of this sample alone."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_tracin import TracInError
from lightning_tracin.losses import per_sample

CLASSES = 4
WEIGHT = torch.tensor([1.0, 0.5, 7.0, 2.0], dtype=torch.float64)


def drawn(tokens: int | None, seed: int = 0) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(seed)
    shape = (5,) if tokens is None else (5, tokens)
    labels = torch.randint(CLASSES, shape, generator=made)
    if tokens is not None:
        labels[torch.rand(shape, generator=made) < 0.4] = -100
        labels[:, 0], labels[:, -1] = -100, 1
    return torch.randn(*shape, CLASSES, generator=made, dtype=torch.float64), labels


@pytest.mark.parametrize(
    "settings", [{}, {"weight": WEIGHT}, {"label_smoothing": 0.1}, {"weight": WEIGHT, "label_smoothing": 0.2}]
)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("tokens", [None, 6])
def test_classes(tokens: int | None, reduction: Literal["mean", "sum"], settings: dict[str, Any]) -> None:
    logits, labels = drawn(tokens)
    got = per_sample(logits, labels, reduction, **settings)
    for index, own in enumerate(got):
        want = F.cross_entropy(logits[index].view(-1, CLASSES), labels[index].view(-1), reduction=reduction, **settings)
        torch.testing.assert_close(own, want)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_causal_models(reduction: Literal["mean", "sum"]) -> None:
    logits, labels = drawn(6)
    got = per_sample(logits, labels, reduction, shift=True)
    want = [F.cross_entropy(one[:-1], label[1:], reduction=reduction) for one, label in zip(logits, labels, strict=True)]
    torch.testing.assert_close(got, torch.stack(want))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("pos_weight", [None, WEIGHT])
def test_independent_labels(reduction: Literal["mean", "sum"], pos_weight: Tensor | None) -> None:
    logits, _ = drawn(None)
    labels = torch.rand(5, CLASSES, dtype=torch.float64).round()
    got = per_sample(logits, labels, reduction, pos_weight=pos_weight)
    want = [
        F.binary_cross_entropy_with_logits(one, label, pos_weight=pos_weight, reduction=reduction)
        for one, label in zip(logits, labels, strict=True)
    ]
    torch.testing.assert_close(got, torch.stack(want))
    labels[0, :2] = -100
    want[0] = F.binary_cross_entropy_with_logits(
        logits[0, 2:], labels[0, 2:], pos_weight=None if pos_weight is None else pos_weight[2:], reduction=reduction
    )
    torch.testing.assert_close(per_sample(logits, labels, reduction, pos_weight=pos_weight), torch.stack(want))


@pytest.mark.parametrize("tokens", [None, 3])
def test_probabilities_of_classes(tokens: int | None) -> None:
    logits, _ = drawn(tokens)
    labels = torch.rand_like(logits).softmax(-1)
    want = [F.cross_entropy(one.view(-1, CLASSES), label.view(-1, CLASSES)) for one, label in zip(logits, labels, strict=True)]
    torch.testing.assert_close(per_sample(logits, labels, soft=True), torch.stack(want))


def test_a_sample_without_labels_has_no_loss_and_no_gradient() -> None:
    logits, labels = drawn(6)
    logits, labels[2] = logits.requires_grad_(), -100
    losses = per_sample(logits, labels)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert losses[2] == 0
    assert bool((gradient[2] == 0).all())
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize(
    ("logits", "labels", "settings", "message"),
    [
        ((5, 4, 6), (5, 6), {}, r"labels should have the shape \[5, 4\] \(classes come last in logits\), but have \[5, 6\]"),
        ((5, 4), (5, 1), {}, r"should have the shape \[5\]"),
        ((5,), (), {}, "should have the shape"),
        ((5, 4), (5,), {"shift": True}, "shift=True needs labels"),
        ((5, 4), (5,), {"reduction": "none"}, "reduction should be 'mean' or 'sum', but is 'none'"),
        ((5, 4), (5,), {"pos_weight": WEIGHT}, "`pos_weight` and `soft` are for floating-point labels"),
        ((5, 4), (5,), {"soft": True}, "`pos_weight` and `soft` are for floating-point labels"),
    ],
)
def test_what_does_not_fit_is_refused(
    logits: tuple[int, ...], labels: tuple[int, ...], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(TracInError, match=message):
        per_sample(torch.zeros(logits), torch.zeros(labels, dtype=torch.long), **settings)


def test_floats_that_do_not_fit_are_refused() -> None:
    with pytest.raises(
        TracInError, match=r"floating-point labels \(use `.long\(\)` for classes\) should have the shape \[5, 4\]"
    ):
        per_sample(torch.zeros(5, 4), torch.zeros(5))
    with pytest.raises(TracInError, match="Independent labels take `pos_weight`"):
        per_sample(torch.zeros(5, 4), torch.zeros(5, 4), label_smoothing=0.1)


def test_it_is_there_after_importing_the_package_and_needs_torch_alone() -> None:
    code = "import sys, lightning_tracin; assert 'torch' not in sys.modules; print(lightning_tracin.losses.per_sample.__name__)"
    code += "; assert not {'pandas', 'pydantic', 'transformers', 'pytorch_lightning'} & {*sys.modules}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip()) == (0, "per_sample"), done.stderr
