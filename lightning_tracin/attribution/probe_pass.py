"""Looks at the probes where two windows meet: their losses, and how fast each would change along the updates of the window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_tracin.attribution.batching import Job, Target, batches_of, name_of, run_batch
from lightning_tracin.attribution.no_collectives import no_collectives
from lightning_tracin.errors import TracInError
from lightning_tracin.gradients import Capture
from lightning_tracin.gradients.forms import Form, tensor_of
from lightning_tracin.gradients.freezing import uncompiled
from lightning_tracin.gradients.group_vectors import TOTAL, GroupVectors, summed_by_group
from lightning_tracin.gradients.vector_products import vector_products

#: Name of the vector with the sum of a probe group's gradients.
GRADIENT = "gradient"


@dataclass(frozen=True)
class Slopes:
    """The probes' gradients at some weights.

    Attributes:
        products: [probes, sources] inner products with each source's sum of updates, float64.
        gradients: parameter -> probe group -> the sum of its probes' gradients.
    """

    products: Tensor
    gradients: Mapping[str, Mapping[int, GroupVectors]]


def slopes(
    target: Target, job: Job, groups: Sequence[int], updates: Mapping[str, Mapping[int, GroupVectors]], sources: Sequence[int]
) -> Slopes:
    """Compute the probes' gradients, their sums by group, and their products with updates.

    Args:
        target: the model.
        job: its `probes` are looked at.
        groups: number of each probe's group.
        updates: parameter -> source -> vectors with a `TOTAL`.
        sources: the columns of the products.

    Raises:
        TracInError: a probe's loss is not finite.
    """
    products = torch.zeros(len(job.probes), len(sources), dtype=torch.float64)
    tables = {name for layer in target.coverage.layers for name in layer.names.values() if layer.rule_name == "Embedding"}
    tables -= {name for layer in target.coverage.layers for name in layer.names.values() if layer.rule_name != "Embedding"}
    parameters = dict(target.model.named_parameters())
    gradients: dict[str, dict[int, GroupVectors]] = {}
    with Capture(target.model, target.coverage) as capture:
        for batch in batches_of(job.probes, job.batch_size):
            here = torch.tensor([groups[index] for index in batch])
            present = sorted(set(here.tolist()))

            def consume(
                name: str, forms: tuple[Form, ...], batch: list[int] = batch, here: Tensor = here, present: list[int] = present
            ) -> None:
                mine = updates.get(name, {})
                products[batch] += vector_products(forms, [mine.get(source) for source in sources], TOTAL)
                own, shape = gradients.setdefault(name, {}), parameters[name].shape
                device = tensor_of(forms).device
                for group, pieces in summed_by_group(forms, here.to(device), present).items():
                    if group not in own:
                        own[group] = GroupVectors(shape, tensor_of(forms).dtype, device, name in tables)
                    for values, rows in pieces:
                        own[group].add(GRADIENT, values.reshape(shape) if rows is None else values, rows)

            run_batch(capture, job, job.probes, batch, consume, "probe", target.name)
    return Slopes(products, gradients)


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


def contributions(
    left: Mapping[str, Mapping[int, GroupVectors]],
    right: Slopes,
    groups: Sequence[int],
    updates: Mapping[str, Mapping[int, GroupVectors]],
    sources: Sequence[int],
) -> Tensor:
    """By how much each source lowered the loss of each probe in a window: [probes, sources], float64.

    For the mean over a group this is minus the inner product of the updates with the mean of the group's gradients at both ends
    of the window (the trapezoidal rule). How single probes differ from that mean is seen at the window's end.

    Args:
        left: the sums of the groups' gradients where the window begins; see `Slopes.gradients`.
        right: the slopes where it ends.
        groups: number of each probe's group.
        updates: parameter -> source -> vectors with a `TOTAL`.
        sources: the columns.
    """
    found = -right.products
    of_probe = torch.tensor(groups)
    for group in sorted(set(groups)):
        mine = of_probe == group
        count = int(mine.sum())
        for column, source in enumerate(sources):
            before = sum(
                own[group].dot(GRADIENT, updates[name][source], TOTAL)
                for name, own in left.items()
                if group in own and source in updates.get(name, {})
            )
            after = float(right.products[mine, column].sum())
            found[mine, column] -= 0.5 * (before - after) / count
    return found
