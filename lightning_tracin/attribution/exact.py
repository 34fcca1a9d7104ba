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
    bytes_of_a_probe,
    probe_chunks,
    require_finite,
    run_batch,
    shards_of,
    shards_of_rank,
)
from lightning_tracin.attribution.cost import Cost, measured_pace
from lightning_tracin.attribution.method import method
from lightning_tracin.attribution.processes import Processes
from lightning_tracin.attribution.spot_check import check_products
from lightning_tracin.config import Measure, Options, Similarity
from lightning_tracin.gradients import Capture, HeldBlock, ProbeBank, ProbeNorms
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.ingredients import Block, IngredientStore
from lightning_tracin.storage.records import SpotCheck
from lightning_tracin.storage.sample_table import SampleTable
from lightning_tracin.storage.shards import Ingredients
from lightning_tracin.storage.snapshots import Snapshot


@method("exact")
class Exact:
    """Every train sample's product with every probe."""

    measure: Measure = "share"
    adds_probes = whitens = False
    layer_cosine = banks_probes = True

    def __init__(self, options: Options) -> None:
        del options  # none of them changes what is computed

    def store(self, directory: RunDirectory, snapshot: Snapshot) -> IngredientStore:
        """The shards of the snapshot's ingredients."""
        return directory.ingredients(snapshot, self.columns(directory))

    def columns(self, directory: RunDirectory) -> int:
        """One for each probe."""
        return directory.record().probes.count

    def queries(self, probes: SampleTable) -> SampleTable:
        """The probes themselves."""
        return probes

    def compute(self, target: Target, job: Job, directory: RunDirectory, snapshot: Snapshot, processes: Processes) -> None:
        """Compute and store what is missing of a snapshot."""
        del processes  # ranks write shards of their own
        attribute_snapshot(target, job, self.store(directory, snapshot))

    def check(self, target: Target, job: Job, directory: RunDirectory, snapshot: Snapshot) -> SpotCheck:
        """Compare some stored products with single samples' gradients."""
        return check_products(target, job, self.store(directory, snapshot))

    def cost(self, target: Target, job: Job) -> Cost:
        """The probes' gradients are held, in chunks that fit the budget."""
        chunks, pace = probe_chunks(target, job), measured_pace(target, job)
        held = min(job.memory_budget, len(job.probes) * bytes_of_a_probe(target, job))
        return Cost(held, pace.seconds(job, len(chunks), len(job.probes) // len(chunks)))

    def stored_bytes(self, parts: int, train: int, probes: SampleTable) -> int:
        """A product for each pair and a norm for each sample, by part."""
        return 4 * parts * (train + 1) * (len(probes) + 1)

    def readable(self, ingredients: Ingredients, similarity: Similarity) -> tuple[Ingredients, Similarity]:
        """All columns, by the similarity's own formula."""
        return ingredients, similarity


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
