"""The exact pass: inner products of every train sample with every probe at one snapshot, batch by batch.

The probes' gradients are computed once and held in memory, in several chunks if they do not fit. Every batch of train samples
goes through the model once per chunk. Each shard is written when it is done; existing shards are skipped, and shards are shared
among the ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from tqdm.auto import tqdm

from lightning_tracin.attribution.batching import (
    Job,
    LongestProbes,
    Target,
    batches_of,
    bytes_of_a_probe,
    longest_probes,
    probe_chunks,
    require_finite,
    run_batch,
    shards_of,
    shards_of_rank,
)
from lightning_tracin.attribution.cost import Cost, measured_pace
from lightning_tracin.attribution.late_writes import LateWrites
from lightning_tracin.attribution.method import Method, method
from lightning_tracin.attribution.processes import Processes
from lightning_tracin.attribution.progress import tracked
from lightning_tracin.attribution.spot_check import check_products
from lightning_tracin.config import Options
from lightning_tracin.gradients import Capture, HeldBlock, ProbeBank, ProbeNorms
from lightning_tracin.gradients.block import BLOCK
from lightning_tracin.gradients.forms import Form
from lightning_tracin.gradients.holding import working_bytes
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.ingredients import Block, IngredientStore
from lightning_tracin.storage.records import SpotCheck
from lightning_tracin.storage.sample_table import SampleTable
from lightning_tracin.storage.snapshots import Snapshot


@method("exact")
class Exact(Method):
    """The inner product of every train sample with every probe."""

    layer_cosine = banks_probes = takes_scales = True

    def __init__(self, options: Options) -> None:
        del options  # none affects this method

    def store(self, directory: RunDirectory, snapshot: Snapshot) -> IngredientStore:
        """The store of the snapshot's ingredients."""
        return directory.ingredients(snapshot, self.columns(directory))

    def columns(self, directory: RunDirectory) -> int:
        """One per probe."""
        return directory.record().probes.count

    def compute(self, target: Target, job: Job, directory: RunDirectory, snapshot: Snapshot, processes: Processes) -> None:
        """Compute and store the snapshot's missing shards."""
        del processes  # each rank writes its own shards
        attribute_snapshot(target, job, self.store(directory, snapshot))

    def check(self, target: Target, job: Job, directory: RunDirectory, snapshot: Snapshot) -> SpotCheck:
        """Compare some stored products with single-sample gradients."""
        return check_products(target, job, self.store(directory, snapshot))

    def cost(self, target: Target, job: Job) -> Cost:
        """Memory of the largest chunk of probes and of its products, and time of all chunks."""
        chunks, pace = probe_chunks(target, job), measured_pace(target, job)
        held = min(job.memory_budget, len(job.probes) * bytes_of_a_probe(target, job))
        largest = max(sum(map(len, chunk)) for chunk in chunks)
        working = working_bytes(BLOCK + job.batch_size, largest, next(target.model.parameters()))
        return Cost(held, pace.seconds(job, len(chunks), len(job.probes) // len(chunks)), pace.alone, pace.captured, working)

    def stored_bytes(self, parts: int, train: int, probes: SampleTable) -> int:
        """One product per pair and one norm per sample, for each part."""
        return 4 * parts * (train + 1) * (len(probes) + 1)


def attribute_snapshot(target: Target, job: Job, store: IngredientStore) -> None:
    """Compute the missing ingredients of one snapshot.

    Args:
        target: the snapshot's model.
        job: samples, loss and settings.
        store: the store of the ingredients.

    Raises:
        TracInError: a loss or gradient is not finite; the message names the sample and the snapshot.
    """
    shards = shards_of(batches_of(job.train, job.batch_size))
    longest = longest_probes(target, job)
    chunks = probe_chunks(target, job, longest)
    names = {(chunk, shard): _shard_name(chunks, chunk, shard) for chunk in range(len(chunks)) for shard in range(len(shards))}
    store.keep_only(names.values())
    mine = shards_of_rank(len(shards), job)
    todo = [(chunk, shard) for chunk, shard in names if shard in mine and not store.has(names[chunk, shard])]
    if not todo or todo[0][0] != 0 or longest.batch not in chunks[0]:
        longest.gradients.clear()  # so that they are not in memory during the pass
    probes = sum(len(batch) for chunk in {chunk for chunk, _ in todo} for batch in chunks[chunk])
    with (
        Capture(target.model, target.coverage) as capture,
        progress_bar(target, job, probes + sum(len(batch) for _, shard in todo for batch in shards[shard])) as bar,
        LateWrites.of(next(target.model.parameters()).device) as writes,
    ):
        for chunk, pairs in groupby(todo, key=lambda pair: pair[0]):
            bank = _bank(capture, chunks[chunk], target, job, longest)
            bar.update(bank.probes)
            columns = [index for batch in chunks[chunk] for index in batch]
            for _, shard in pairs:
                block = block_of(capture, bank, columns, shards[shard], target, job, bar)
                write_late(writes, store, names[chunk, shard], block)


def write_late(writes: LateWrites, store: IngredientStore, shard: str, block: Block) -> None:
    """Write a shard when its tensors have come to the CPU."""
    train, probes = block.train, block.probes  # not the block, which would hold the device's memory until then
    tensors = [one.float() for one in (block.dot, block.train_norm, block.probe_norm)]
    writes.put(tensors, lambda copied: store.write(shard, Block(train, probes, *copied)))


def progress_bar(target: Target, job: Job, total: int) -> tqdm[Any]:
    """The progress bar of a pass, in samples."""
    return tracked(job.progress, total=total, desc=f"influence at {target.name}", unit=" samples")


def _shard_name(chunks: Sequence[list[list[int]]], chunk: int, shard: int) -> str:
    """Such as `0000+0240-00002`: first probe, number of probes, shard of train samples."""
    sizes = [sum(map(len, batches)) for batches in chunks]
    return f"{sum(sizes[:chunk]):04d}+{sizes[chunk]:04d}-{shard:05d}"


def _bank(capture: Capture, batches: list[list[int]], target: Target, job: Job, longest: LongestProbes | None) -> ProbeBank:
    bank = ProbeBank(sum(map(len, batches)), target.parts.of, len(target.parts), target.scales)
    collect(capture, bank, batches, target, job, longest)
    bank.seal()
    require_finite(bank.squared_norms, [index for batch in batches for index in batch], job.probes, "probe", target.name)
    return bank


def collect(
    capture: Capture,
    bank: ProbeBank | ProbeNorms,
    batches: list[list[int]],
    target: Target,
    job: Job,
    longest: LongestProbes | None = None,
) -> None:
    """Run the probes' batches and collect their gradients in a bank; those of `longest` are taken out of it."""
    at = 0
    for batch in batches:
        if longest is not None and longest.gradients and batch == longest.batch:
            while longest.gradients:  # one by one, so that the bank alone holds them
                name, forms = longest.gradients.popitem()
                bank.collect(name, forms, at)
            at += len(batch)
            continue

        def keep(name: str, forms: tuple[Form, ...], at: int = at) -> None:
            bank.collect(name, target.expressed(name, forms), at)

        run_batch(capture, job, job.probes, batch, keep, "probe", target.name)
        at += len(batch)


def block_of(
    capture: Capture, bank: ProbeBank, columns: list[int], shard: list[list[int]], target: Target, job: Job, bar: tqdm[Any]
) -> Block:
    """Compute the ingredients of one shard of train samples with all probes of a bank."""
    rows = [index for batch in shard for index in batch]
    dot = bank.squared_norms.new_zeros(len(target.parts), len(rows), bank.probes)
    squared = bank.squared_norms.new_zeros(len(target.parts), len(rows))
    held, start, at = HeldBlock(job.held_bytes), 0, 0

    def keep(name: str, forms: tuple[Form, ...]) -> None:
        held.add(name, target.expressed(name, forms))

    for batch in shard:
        run_batch(capture, job, job.train, batch, keep, job.train_kind, target.name)
        held.end_batch(len(batch))
        at += len(batch)
        if held.is_complete or at == len(rows):
            held.contract(bank, dot[:, start:at], squared[:, start:at])
            start = at
        bar.update(len(batch))
    require_finite(squared, rows, job.train, job.train_kind, target.name)
    return Block(rows, columns, dot, squared.sqrt(), bank.squared_norms.sqrt())
