"""The unit of cost: what a fit does with the train samples, without its optimizer."""

from __future__ import annotations

from torch import nn

from lightning_tracin.attribution.batching import Job


def plain_pass(model: nn.Module, job: Job) -> None:
    """A forward and backward over the job's train samples, for all parameters' gradients, in batches of similar length."""
    order = sorted(range(len(job.train)), key=lambda index: job.train.sizes[index])
    for at in range(0, len(order), job.batch_size):
        batch = order[at : at + job.batch_size]
        model.zero_grad(set_to_none=True)
        job.loss(job.prepare(job.train.batch(batch)), len(batch)).backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)
