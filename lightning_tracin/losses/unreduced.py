"""One loss for each sample of a batch, exactly what a batch of this sample alone would have."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_tracin.errors import TracInError


def per_sample(
    logits: Tensor,
    labels: Tensor,
    reduction: Literal["mean", "sum"] = "mean",
    *,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    shift: bool = False,
    soft: bool = False,
) -> Tensor:
    """One loss for each sample: cross-entropy of classes, or binary cross-entropy of labels that may all be true.

    Args:
        logits: classes last: [samples, classes] or [samples, tokens, classes].
        labels: classes as integers, [samples] or [samples, tokens]; or floating-point numbers in the shape of the logits, which
            are independent labels from 0 to 1 (multi-label), or the classes' probabilities with `soft=True`.
        reduction: `"mean"` divides a sample's sum over its tokens by what they weigh, as a mean over a batch of this sample alone
            does; `"sum"` does not, so that tokens count as `weight` says. The mean of independent labels is over classes, too.
        weight: of each class, [classes].
        pos_weight: of a label that is true, [classes]; multi-label only.
        ignore_index: label of tokens (or of independent labels) that do not count. A sample without any other has the loss 0.
        label_smoothing: from 0 to 1, as in `F.cross_entropy`.
        shift: the logits of a token predict the next token's label (causal language models).
        soft: floating-point labels are the probabilities of classes.

    Returns:
        The losses, [samples], part of the graph.

    Raises:
        TracInError: shapes do not fit, or an option does not fit the kind of labels.

    Example:
        >>> logits = torch.tensor([[[2.0, 0.0], [0.0, 0.0], [5.0, 5.0]], [[0.0, 0.0], [1.0, 1.0], [0.0, 9.0]]])
        >>> labels = torch.tensor([[0, 1, -100], [1, -100, -100]])
        >>> [round(loss, 4) for loss in per_sample(logits, labels).tolist()]
        [0.41, 0.6931]
        >>> [round(loss, 4) for loss in per_sample(logits, labels, "sum", weight=torch.tensor([1.0, 3.0])).tolist()]
        [2.2064, 2.0794]
        >>> per_sample(torch.zeros(2, 3), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])).shape  # multi-label
        torch.Size([2])
    """
    if reduction not in ("mean", "sum"):
        raise TracInError(f"reduction should be 'mean' or 'sum', but is {reduction!r}.")
    if shift:
        if labels.dim() < 2:
            raise TracInError(
                f"shift=True needs labels of shape [samples, tokens], but they have the shape {list(labels.shape)}."
            )
        logits, labels = logits[:, :-1], labels[:, 1:]
    if labels.is_floating_point():
        _require_shape(logits, labels, logits.shape, "floating-point labels (use `.long()` for classes)")
        if not soft:
            if weight is not None or label_smoothing:
                raise TracInError("Independent labels take `pos_weight`, not `weight` or `label_smoothing`.")
            losses = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none", pos_weight=pos_weight)
            counted = (labels != ignore_index).to(losses.dtype)
            return _reduced(losses.where(counted > 0, 0), counted, reduction)
    else:
        _require_shape(logits, labels, logits.shape[:-1], "labels")
    if pos_weight is not None or (soft and not labels.is_floating_point()):
        raise TracInError(
            "`pos_weight` and `soft` are for floating-point labels in the shape of the logits, but these are classes."
        )
    classes = logits.shape[-1]
    target = labels.reshape(-1, classes) if soft else labels.reshape(-1)
    losses = F.cross_entropy(
        logits.reshape(-1, classes), target, weight, reduction="none", ignore_index=ignore_index, label_smoothing=label_smoothing
    )
    if soft:
        return _reduced(losses.view(logits.shape[:-1]), torch.ones_like(losses).view(logits.shape[:-1]), reduction)
    live = labels != ignore_index
    heavy = live.to(losses.dtype) if weight is None else weight.to(losses.dtype)[labels.where(live, 0)] * live
    return _reduced(losses.view(labels.shape), heavy, reduction)


def _reduced(losses: Tensor, weights: Tensor, reduction: str) -> Tensor:
    """The sum of each sample's losses, or their mean; 0 where nothing counts: [samples]."""
    total, heavy = (one.reshape(len(one), -1).sum(1) for one in (losses, weights))
    return total if reduction == "sum" else torch.where(heavy > 0, total / heavy.where(heavy > 0, 1), 0)


def _require_shape(logits: Tensor, labels: Tensor, wanted: torch.Size, what: str) -> None:
    if labels.shape != wanted or logits.dim() < 2:
        raise TracInError(
            f"The logits have the shape {list(logits.shape)}, so {what} should have the shape {list(wanted)} (classes come "
            f"last in logits), but have {list(labels.shape)}."
        )
