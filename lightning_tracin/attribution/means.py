"""The pass for language means: the probes' languages take the place of the probes."""

from __future__ import annotations

import torch

from lightning_tracin.attribution.batching import (
    Job,
    Target,
    batches_of,
    require_finite,
    shards_of,
    shards_of_rank,
)
from lightning_tracin.attribution.exact import block_of, collect, progress_bar
from lightning_tracin.gradients import Capture, ProbeNorms, QueryBank
from lightning_tracin.storage.ingredients import IngredientStore


def attribute_means(target: Target, job: Job, store: IngredientStore) -> None:
    """Compute what is missing of one snapshot's ingredients with the probes' languages in the place of the probes.

    A language has two columns: the mean of its probes' gradients (languages in alphabetical order), and behind all of these the
    mean of its probes' gradients divided by their norms, of which cosines are made.

    Args:
        target: the snapshot.
        job: samples, loss and settings.
        store: where the shards go; it has twice as many columns as there are languages.

    Raises:
        TracInError: as `attribute_snapshot`.
    """
    shards = shards_of(batches_of(job.train, job.batch_size))
    names = [f"means-{shard:05d}" for shard in range(len(shards))]
    store.keep_only(names)
    todo = [shard for shard in shards_of_rank(len(shards), job) if not store.has(names[shard])]
    if not todo:
        return
    total = 2 * len(job.probes) + sum(len(batch) for shard in todo for batch in shards[shard])
    with Capture(target.model, target.coverage) as capture, progress_bar(target, job, total) as bar:
        bank = queries_of(capture, target, job)
        bar.update(2 * len(job.probes))
        for shard in todo:
            block = block_of(capture, bank, list(range(bank.probes)), shards[shard], target, job, bar)
            store.write(names[shard], block)


def queries_of(capture: Capture, target: Target, job: Job) -> QueryBank:
    """The two queries of each language of the probes; see `attribute_means`."""
    batches = batches_of(job.probes, job.batch_size)[::-1]
    order = [index for batch in batches for index in batch]
    norms = ProbeNorms(len(order), target.parts.of, len(target.parts))
    collect(capture, norms, batches, target, job)
    require_finite(norms.squared, order, job.probes, "probe", target.name)
    languages = job.probes.table.language
    names = sorted(set(languages))
    member = torch.tensor([[languages[index] == name for name in names] for index in order]).to(norms.squared)
    mean = member / member.sum(0)
    norm = norms.squared.sum(0).sqrt()[:, None]
    bank = QueryBank(torch.cat([mean, torch.where(norm > 0, mean / norm, 0)], 1), target.parts.of, len(target.parts))
    collect(capture, bank, batches, target, job)
    bank.seal()
    return bank
