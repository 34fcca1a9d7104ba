"""Checks on real batches before anything expensive: losses are per sample, and gradients are exact."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn

from lightning_tracin.attribution.batching import TRAIN_SAMPLE, name_of
from lightning_tracin.attribution.diagnosis import diagnosed
from lightning_tracin.attribution.losses import LastSum, Probed, SummedLoss, evaluated, find_loss
from lightning_tracin.attribution.no_collectives import no_collectives
from lightning_tracin.attribution.samples import SampleSet
from lightning_tracin.config import LossUnit
from lightning_tracin.errors import TracInError
from lightning_tracin.gradients import Coverage, verify_gradients

#: Sizes of the batches to check. They differ, so that a mean and a sum cannot be confused.
_SIZES = (5, 2, 8)


def checked_loss(
    module: nn.Module,
    train: SampleSet | None,
    probes: SampleSet,
    prepare: Callable[[Any], Any],
    known: str | None = None,
    unit: LossUnit = "sample",
    train_kind: str = TRAIN_SAMPLE,
) -> SummedLoss:
    """The module's per-sample loss, verified on train samples and on probes.

    Args:
        module: in evaluation mode.
        train: the train samples; None looks at the probes alone.
        probes: the probes.
        prepare: moves a batch to the module's device.
        known: name of the loss that was found before; then one batch of each is enough.
        unit: what the loss of one sample is; see `Stored.loss_unit`.
        train_kind: what messages call a train sample.

    Raises:
        TracInError: `find_loss` raises it.
    """

    def checks() -> list[Probed]:
        return [
            _probed(samples, batch, prepare, kind)
            for samples, kind in ((train, f"{train_kind}s"), (probes, "probes"))
            if samples is not None
            for source in range(len(samples.datasets))
            for batch in islice(_picked(samples, source), None if known is None else 1)
        ]

    return find_loss(module, checks, known, unit)


@no_collectives()
def check_gradients(
    model: nn.Module,
    coverage: Coverage,
    loss: SummedLoss,
    samples: SampleSet,
    prepare: Callable[[Any], Any],
    kind: str,
    moment: str,
) -> float:
    """Compare captured gradients with plain autograd, for every sample of one real batch of each source.

    Returns:
        The largest difference, relative to the gradients' norms; rounding caused it.

    Raises:
        TracInError: they differ, or the loss is not finite.
    """
    largest = 0.0
    for source in range(len(samples.datasets)):
        batch = next(_picked(samples, source), [])
        alone = [prepare(samples.batch([index])) for index in batch]
        with torch.no_grad():
            values = [float(loss(one, 1)) for one in alone]
        for index, value in zip(batch, values, strict=True):
            if not math.isfinite(value):
                raise TracInError(f"The loss of {name_of(samples, index, kind)} is {value} {moment}; look at that sample.")
        for some in [[index] for index in batch] if loss.is_of_one else [batch] if batch else []:
            check = _probed(samples, some, prepare, f"{kind}s")
            losses = [partial(loss, one, 1) for one in check.alone]
            summed = LastSum(partial(loss.summed, check.batch, len(some)))
            try:
                found = verify_gradients(model, coverage, summed.total, losses, summed.own)
            except TracInError as error:
                reason = diagnosed(model, evaluated(model), [check])
                if reason is None:
                    raise
                raise TracInError(f"{error} The reason: {reason}") from error
            largest = max(largest, found)
    return largest


def _probed(samples: SampleSet, batch: Sequence[int], prepare: Callable[[Any], Any], kind: str) -> Probed:
    def collate(positions: Sequence[int]) -> Any:
        return prepare(samples.batch([batch[position] for position in positions]))

    return Probed(collate(range(len(batch))), [collate([position]) for position in range(len(batch))], kind, collate)


def _picked(samples: SampleSet, source: int) -> Iterator[list[int]]:
    """Batches of different sizes from one source; the first contains the shortest and the longest sample."""
    first = [index for index in range(len(samples)) if samples.source(index) == source]
    if not first:
        return
    sizes = samples.sizes
    generator = random.Random(0)  # noqa: S311 - a choice of samples, not a secret
    ends = {min(first, key=lambda i: sizes[i]), max(first, key=lambda i: sizes[i])}
    for size in _SIZES:
        others = [index for index in first if index not in ends]
        chosen = sorted(ends | set(generator.sample(others, min(max(0, size - len(ends)), len(others)))))
        ends = set()
        yield chosen
