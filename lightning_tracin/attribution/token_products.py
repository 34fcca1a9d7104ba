"""Inner products of train samples with each token of some probes at one snapshot; nothing is stored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from lightning_tracin.attribution.batching import Job, Target, batches_of, probe_chunks, require_finite
from lightning_tracin.attribution.exact import block_of, collect, progress_bar
from lightning_tracin.attribution.losses import LastSum
from lightning_tracin.attribution.no_collectives import no_collectives
from lightning_tracin.attribution.samples import SampleSet, joined
from lightning_tracin.attribution.token_losses import Token, TokenLoss, prepared_tokens, token_samples
from lightning_tracin.errors import TracInError
from lightning_tracin.gradients import Capture, ProbeBank, rounding, verify_gradients
from lightning_tracin.storage.shards import FloatArray, Indices, Ingredients

#: Positions whose captured gradients are compared with autograd's.
_CHECKED = 4


@dataclass(frozen=True)
class TokenProducts:
    """The tokens of some probes, and their products.

    Attributes:
        tokens: of each probe.
        ingredients: products [parts, train, tokens] with the tokens of all probes in a row; the norm of a token's probe is that
            of the whole probe, so that a score divides all tokens of a probe by the same.
    """

    tokens: tuple[tuple[Token, ...], ...]
    ingredients: Ingredients


def token_products(target: Target, job: Job) -> TokenProducts:
    """Compute the products of the job's train samples with the tokens of the job's probes.

    The whole probes are computed, too, to check that the products of their tokens add up.

    Args:
        target: the snapshot's model.
        job: samples, loss and settings.

    Raises:
        TracInError: the tokens' losses cannot be seen, a loss or gradient is not finite, or the tokens' products do not add up to
            those of their probe.
    """
    loss, prepare = TokenLoss(job.loss), prepared_tokens(job.prepare)
    tokens = tuple(loss.tokens(job.prepare(job.probes.batch([index]))) for index in range(len(job.probes)))
    if not any(tokens):
        raise TracInError("No token of these probes counts in their loss (all labels are ignored); choose other probes.")
    split = token_samples(job.probes, tokens)
    job = replace(job, loss=loss, prepare=prepare, probes=joined([split, job.probes]))
    _verify(target, loss, split, job)
    dot, train_norm, norms, dtype = _products(target, job)
    owner = np.repeat(np.arange(len(tokens)), [len(each) for each in tokens])
    parts, whole, whole_norms = dot[:, :, : len(split)], dot[:, :, len(split) :], norms[:, len(split) :]
    _require_sums(parts, whole, train_norm, whole_norms, owner, rounding(dtype))
    return TokenProducts(tokens, Ingredients(parts, train_norm, whole_norms[:, owner]))


@no_collectives()
def _verify(target: Target, loss: TokenLoss, split: SampleSet, job: Job) -> None:
    """Compare the gradients of some tokens of one probe with autograd's."""
    most = 1 if loss.is_of_one else _CHECKED
    few = [index for index in range(len(split)) if split.source(index) == split.source(0)][:most]
    alone = [job.prepare(split.batch([index])) for index in few]
    summed = LastSum(partial(loss.summed, job.prepare(split.batch(few)), len(few)))
    verify_gradients(target.model, target.coverage, summed.total, [partial(loss, one, 1) for one in alone], summed.own)


def _products(target: Target, job: Job) -> tuple[FloatArray, FloatArray, FloatArray, torch.dtype]:
    """Products [parts, train, probes], norms of train samples [parts, train] and of probes [parts, probes]; data type."""
    parts, chunks, batches = len(target.parts), probe_chunks(target, job), batches_of(job.train, job.batch_size)
    dot = np.zeros((parts, len(job.train), len(job.probes)), np.float32)
    train_norm, norms = np.zeros(dot.shape[:2], np.float32), np.zeros((parts, len(job.probes)), np.float32)
    total = len(job.probes) + len(chunks) * len(job.train)
    with Capture(target.model, target.coverage) as capture, progress_bar(target, job, total) as bar:
        for chunk in chunks:
            columns = [index for batch in chunk for index in batch]
            bank = ProbeBank(len(columns), target.parts.of, parts, target.scales)
            collect(capture, bank, chunk, target, job)
            bank.seal()
            require_finite(bank.squared_norms, columns, job.probes, "probe", target.name)
            bar.update(len(columns))
            block = block_of(capture, bank, columns, batches, target, job, bar)
            dot[:, np.asarray(block.train)[:, None], np.asarray(columns)] = block.dot.cpu().float().numpy()
            train_norm[:, block.train] = block.train_norm.cpu().float().numpy()
            norms[:, columns] = block.probe_norm.cpu().float().numpy()
    return dot, train_norm, norms, capture.coarsest


def _require_sums(
    tokens: FloatArray, whole: FloatArray, train_norm: FloatArray, norms: FloatArray, owner: Indices, most: float
) -> None:
    """Check that the products of the tokens of each probe add up to the probe's own."""
    train_sizes, sizes = np.sqrt(np.square(train_norm).sum(0)), np.sqrt(np.square(norms).sum(0))
    for probe in range(whole.shape[2]):
        off = np.abs(tokens[:, :, owner == probe].sum(2) - whole[:, :, probe]).max()
        scale = max(float(train_sizes.max() * sizes[probe]), 1e-30)
        if not off <= most * scale:
            raise TracInError(
                f"The products of the tokens of a probe do not add up to the probe's own: they are off by {off / scale:.1e} of "
                "the gradients' norms. The loss of a sample is not the sum of its tokens' losses, or this is a bug in "
                "lightning-tracin: please report it."
            )
