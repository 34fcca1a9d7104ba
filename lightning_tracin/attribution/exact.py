"""The engine: one snapshot's ingredients, batch by batch.

The probes' gradients are computed once and held (in chunks of probes, where they do not fit into memory, or summed to one query
for each language, where only means are asked for); every batch of train samples goes through the model once for each chunk.
Blocks of results are written as soon as they are done: a shard that is already there is not computed again, and ranks take turns
at shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from tqdm.auto import tqdm

from lightning_tracin.attribution.batching import (
    Job,
    Target,
    batches_of,
    probe_chunks,
    require_finite,
    run_batch,
    shards_of,
    shards_of_rank,
)
from lightning_tracin.gradients import Capture, HeldBlock, ProbeBank, ProbeNorms
from lightning_tracin.storage.ingredients import Block, IngredientStore


def attribute_snapshot(target: Target, job: Job, store: IngredientStore) -> None:
    """Compute what is missing of one snapshot's ingredients.

    Args:
        target: the snapshot.
        job: samples, loss and settings.
        store: where the shards go.

    Raises:
        TracInError: a loss or gradient is not finite; the message names the sample and the snapshot.
    """
    shards = shards_of(batches_of(job.train, job.batch_size))
    chunks = probe_chunks(target, job)
    names = {(chunk, shard): _shard_name(chunks, chunk, shard) for chunk in range(len(chunks)) for shard in range(len(shards))}
    store.keep_only(names.values())
    mine = shards_of_rank(len(shards), job)
    todo = [(chunk, shard) for chunk, shard in names if shard in mine and not store.has(names[chunk, shard])]
    probes = sum(len(batch) for chunk in {chunk for chunk, _ in todo} for batch in chunks[chunk])
    with (
        Capture(target.model, target.coverage) as capture,
        progress_bar(target, job, probes + sum(len(batch) for _, shard in todo for batch in shards[shard])) as bar,
    ):
        for chunk, pairs in groupby(todo, key=lambda pair: pair[0]):
            bank = _bank(capture, chunks[chunk], target, job)
            bar.update(bank.probes)
            columns = [index for batch in chunks[chunk] for index in batch]
            for _, shard in pairs:
                store.write(names[chunk, shard], block_of(capture, bank, columns, shards[shard], target, job, bar))


def progress_bar(target: Target, job: Job, total: int) -> tqdm[Any]:
    """The bar of one snapshot's pass, counted in samples."""
    return tqdm(total=total, desc=f"influence at {target.name}", unit=" samples", disable=not job.progress)


def _shard_name(chunks: Sequence[list[list[int]]], chunk: int, shard: int) -> str:
    """Such as `0000+0240-00002`: first probe, number of probes, shard of train samples."""
    sizes = [sum(map(len, batches)) for batches in chunks]
    return f"{sum(sizes[:chunk]):04d}+{sizes[chunk]:04d}-{shard:05d}"


def _bank(capture: Capture, batches: list[list[int]], target: Target, job: Job) -> ProbeBank:
    bank = ProbeBank(sum(map(len, batches)), target.parts.of, len(target.parts), target.scales)
    collect(capture, bank, batches, target, job)
    bank.seal()
    require_finite(bank.squared_norms, [index for batch in batches for index in batch], job.probes, "probe", target.name)
    return bank


def collect(capture: Capture, bank: ProbeBank | ProbeNorms, batches: list[list[int]], target: Target, job: Job) -> None:
    """Pass probes through the model batch by batch into a bank."""
    at = 0
    for batch in batches:
        run_batch(
            capture,
            job,
            job.probes,
            batch,
            lambda parameter, forms, at=at: bank.collect(parameter, forms, at),
            "probe",
            target.name,
        )
        at += len(batch)


def block_of(
    capture: Capture, bank: ProbeBank, columns: list[int], shard: list[list[int]], target: Target, job: Job, bar: tqdm[Any]
) -> Block:
    """The ingredients of a shard of train samples with all probes of a bank."""
    rows = [index for batch in shard for index in batch]
    dot = bank.squared_norms.new_zeros(len(target.parts), len(rows), bank.probes)
    squared = bank.squared_norms.new_zeros(len(target.parts), len(rows))
    held, start, at = HeldBlock(job.held_bytes), 0, 0
    for batch in shard:
        run_batch(capture, job, job.train, batch, held.add, "train sample", target.name)
        held.end_batch(len(batch))
        at += len(batch)
        if held.is_complete or at == len(rows):
            held.contract(bank, dot[:, start:at], squared[:, start:at])
            start = at
        bar.update(len(batch))
    require_finite(squared, rows, job.train, "train sample", target.name)
    return Block(rows, columns, dot, squared.sqrt(), bank.squared_norms.sqrt())
