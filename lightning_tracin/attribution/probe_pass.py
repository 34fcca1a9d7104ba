"""Looks at the probes at some weights: their losses, and how fast each would change along the updates of a window."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_tracin.attribution.batching import Job, Target, batches_of, name_of, run_batch
from lightning_tracin.attribution.no_collectives import no_collectives
from lightning_tracin.attribution.sample_credits import QUERY
from lightning_tracin.errors import TracInError
from lightning_tracin.gradients import Capture
from lightning_tracin.gradients.forms import Form, tensor_of
from lightning_tracin.gradients.freezing import uncompiled
from lightning_tracin.gradients.group_vectors import TOTAL, GroupVectors, summed_by_group
from lightning_tracin.gradients.vector_products import vector_products


def slopes(target: Target, job: Job, updates: Mapping[str, Mapping[int, GroupVectors]], sources: Sequence[int]) -> Tensor:
    """The inner products of each probe's gradient with each source's sum of updates: [probes, sources], float64.

    Args:
        target: the model.
        job: its `probes` are looked at.
        updates: parameter -> source -> vectors with a `TOTAL`.
        sources: the columns.

    Raises:
        TracInError: a probe's loss is not finite.
    """
    products = torch.zeros(len(job.probes), len(sources), dtype=torch.float64)
    with Capture(target.model, target.coverage) as capture:
        for batch in batches_of(job.probes, job.batch_size):

            def consume(name: str, forms: tuple[Form, ...], batch: list[int] = batch) -> None:
                mine = updates.get(name, {})
                products[batch] += vector_products(forms, [mine.get(source) for source in sources], TOTAL)

            run_batch(capture, job, job.probes, batch, consume, "probe", target.name)
    return products


def mean_gradients(
    target: Target, job: Job, groups: Sequence[int], vectors: Callable[[str], GroupVectors]
) -> dict[str, list[GroupVectors]]:
    """The mean gradient of each group of probes: parameter -> vectors with a `QUERY`, one for each group.

    Args:
        target: the model.
        job: its `probes` are looked at.
        groups: number of each probe's group, from 0 without a gap.
        vectors: new ones of a parameter.

    Raises:
        TracInError: a probe's loss is not finite.
    """
    counts = [groups.count(group) for group in range(max(groups) + 1)]
    found: dict[str, list[GroupVectors]] = {}
    with Capture(target.model, target.coverage) as capture:
        for batch in batches_of(job.probes, job.batch_size):
            mine = [groups[index] for index in batch]

            def consume(name: str, forms: tuple[Form, ...], mine: list[int] = mine) -> None:
                sums = found.setdefault(name, [vectors(name) for _ in counts])
                of_each = torch.tensor(mine, device=tensor_of(forms).device)
                for group, pieces in summed_by_group(forms, of_each, sorted(set(mine))).items():
                    for values, rows in pieces:
                        shaped = values.reshape(sums[group].shape) if rows is None else values
                        sums[group].add(QUERY, shaped / counts[group], rows)

            run_batch(capture, job, job.probes, batch, consume, "probe", target.name)
    return found


@torch.no_grad()
@no_collectives()
def probe_losses(target: Target, job: Job) -> Tensor:
    """The loss of each probe: [probes], float64.

    Raises:
        TracInError: one is not finite.
    """
    found = torch.zeros(len(job.probes), dtype=torch.float64)
    with uncompiled(target.model):
        for batch in batches_of(job.probes, job.batch_size):
            found[batch] = _losses(job, batch)
    bad = (~torch.isfinite(found)).nonzero()[:, 0].tolist()
    if bad:
        raise TracInError(
            f"The loss of {name_of(job.probes, bad[0], 'probe')} is {float(found[bad[0]])} at {target.name}; look at that sample "
            "and at the fit's own loss."
        )
    return found


def _losses(job: Job, batch: list[int]) -> Tensor:
    if len(batch) > 1 and not job.loss.is_of_one:
        with torch.enable_grad():
            summed = job.loss.summed(job.prepare(job.probes.batch(batch)), len(batch))
            own = summed.own() if summed.is_certain else None
        if own is not None:
            return own.detach().double().cpu()
    return torch.stack([job.loss(job.prepare(job.probes.batch([index])), 1).detach().double().cpu() for index in batch])
