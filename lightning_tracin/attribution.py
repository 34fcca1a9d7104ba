"""The engine: one snapshot's ingredients, for every train sample and every probe.

The probes' gradients are computed once and held in a bank; then the train samples pass by in batches of similar length, each
with one forward and one activations-only backward. Work is cut into shards that are written as they are done: a shard that
is already there is not computed again, and ranks take turns at shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lightning_tracin.errors import TracInError
from lightning_tracin.gradients import Capture, Coverage, ProbeBank
from lightning_tracin.ingredients import Block, IngredientStore
from lightning_tracin.losses import SummedLoss
from lightning_tracin.samples import SampleSet

#: Train samples of one shard: what is lost at most when a run is killed.
_SHARD = 1024

#: Part of the free memory that the probes' gradients may take.
_BUDGET_SHARE = 0.4


@dataclass(frozen=True)
class Job:
    """What stays the same from snapshot to snapshot."""

    train: SampleSet
    probes: SampleSet
    loss: SummedLoss
    prepare: Callable[[Any], Any]  # moves a batch to the model's device
    batch_size: int
    memory_budget: int  # bytes for the probes' gradients; the same on all ranks
    rank: int = 0
    ranks: int = 1
    progress: bool = False


def attribute_snapshot(
    model: nn.Module,
    coverage: Coverage,
    groups: Mapping[str, int],
    group_count: int,
    job: Job,
    store: IngredientStore,
    name: str,
) -> None:
    """Compute what is missing of one snapshot's ingredients.

    Args:
        model: in evaluation mode, holding the snapshot's weights.
        coverage: the layers of the scored parameters.
        groups: scored parameter -> its group.
        group_count: number of groups.
        job: samples, loss and settings.
        store: where the shards go.
        name: of the snapshot, for messages.

    Raises:
        TracInError: a loss or gradient is not finite; the message names the sample and the snapshot.
    """
    shards = _shards(_batches(job.train, job.batch_size))
    probe_batches = _batches(job.probes, job.batch_size)[::-1]  # the bank's choice of forms goes by the longest
    chunks = list(_chunks(probe_batches, _probes_at_once(coverage, job)))
    names = {(chunk, shard): _shard_name(chunks, chunk, shard) for chunk in range(len(chunks)) for shard in range(len(shards))}
    store.keep_only(names.values())
    mine = range(job.rank, len(shards), job.ranks)
    todo = [(chunk, shard) for chunk, shard in names if shard in mine and not store.has(names[chunk, shard])]
    with (
        Capture(model, coverage) as capture,
        tqdm(total=_work(todo, chunks, shards), desc=f"influence at {name}", unit=" samples", disable=not job.progress) as bar,
    ):
        for chunk, pairs in groupby(todo, key=lambda pair: pair[0]):
            bank = _bank(capture, chunks[chunk], groups, group_count, job, name)
            bar.update(bank.probes)
            for _, shard in pairs:
                block = _block(capture, bank, chunks[chunk], shards[shard], group_count, job, name, bar)
                store.write(names[chunk, shard], block)


def _shard_name(chunks: Sequence[list[list[int]]], chunk: int, shard: int) -> str:
    """Such as `0000+0240-00002`: first probe, number of probes, shard of train samples."""
    sizes = [sum(map(len, batches)) for batches in chunks]
    return f"{sum(sizes[:chunk]):04d}+{sizes[chunk]:04d}-{shard:05d}"


def _work(todo: Sequence[tuple[int, int]], chunks: Sequence[list[list[int]]], shards: Sequence[list[list[int]]]) -> int:
    """Samples to pass through the model."""
    probes = sum(len(batch) for chunk in {chunk for chunk, _ in todo} for batch in chunks[chunk])
    return probes + sum(len(batch) for _, shard in todo for batch in shards[shard])


def _batches(samples: SampleSet, batch_size: int) -> list[list[int]]:
    """Batches of samples of one source and of similar length, shortest first."""
    order = sorted(range(len(samples)), key=lambda i: (samples.source(i), samples.sizes[i], i))
    batches = []
    for _, same in groupby(order, key=samples.source):
        indices = list(same)
        batches += [indices[at : at + batch_size] for at in range(0, len(indices), batch_size)]
    return batches


def _shards(batches: Sequence[list[int]]) -> list[list[list[int]]]:
    shards: list[list[list[int]]] = [[]]
    for batch in batches:
        if sum(map(len, shards[-1])) >= _SHARD:
            shards.append([])
        shards[-1].append(batch)
    return shards


def _chunks(batches: Sequence[list[int]], most: int) -> Iterator[list[list[int]]]:
    """Batches of probes in chunks of at most so many probes; a batch that is larger is cut."""
    chunk: list[list[int]] = []
    for batch in batches:
        for at in range(0, len(batch), most):
            piece = batch[at : at + most]
            if chunk and sum(map(len, chunk)) + len(piece) > most:
                yield chunk
                chunk = []
            chunk.append(piece)
    yield chunk


def _probes_at_once(coverage: Coverage, job: Job) -> int:
    """How many probes' gradients fit into the budget, tables of embeddings aside: their gradients are a few rows."""
    tables = {name for layer in coverage.layers if isinstance(layer.module, nn.Embedding) for name in layer.names.values()}
    written_out = sum(count for name, count in coverage.elements.items() if name not in tables)
    parameter = next(next(iter(coverage.layers)).module.parameters())
    return max(1, job.memory_budget // max(1, written_out * parameter.element_size()))


def free_share(device: torch.device) -> int:
    """Bytes that the probes' gradients may take where nothing else is asked for: a share of what is free now."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return int(_BUDGET_SHARE * free)


def _bank(
    capture: Capture, batches: list[list[int]], groups: Mapping[str, int], group_count: int, job: Job, name: str
) -> ProbeBank:
    bank = ProbeBank(sum(map(len, batches)), groups, group_count)
    at = 0
    for batch in batches:
        _run(
            capture,
            job,
            job.probes,
            batch,
            lambda parameter, forms, at=at: bank.collect(parameter, forms, at),
            "probe",
            name,
        )
        at += len(batch)
    bank.seal()
    _require_finite(bank.squared_norms, [index for batch in batches for index in batch], job.probes, "probe", name)
    return bank


def _block(
    capture: Capture,
    bank: ProbeBank,
    chunk: list[list[int]],
    shard: list[list[int]],
    group_count: int,
    job: Job,
    name: str,
    bar: tqdm[Any],
) -> Block:
    rows = [index for batch in shard for index in batch]
    dot = bank.squared_norms.new_zeros(group_count, len(rows), bank.probes)
    squared = bank.squared_norms.new_zeros(group_count, len(rows))
    at = 0
    for batch in shard:
        here = slice(at, at + len(batch))
        into = dot[:, here], squared[:, here]
        _run(
            capture,
            job,
            job.train,
            batch,
            lambda parameter, forms, into=into: bank.contract(parameter, forms, *into),
            "train sample",
            name,
        )
        _require_finite(squared[:, here], batch, job.train, "train sample", name)
        at += len(batch)
        bar.update(len(batch))
    columns = [index for batch in chunk for index in batch]
    return Block(rows, columns, dot, squared.sqrt(), bank.squared_norms.sqrt())


def _run(
    capture: Capture,
    job: Job,
    samples: SampleSet,
    batch: list[int],
    consumer: Callable[..., None],
    kind: str,
    name: str,
) -> None:
    prepared = job.prepare(samples.batch(batch))
    loss = capture.run(lambda: job.loss(prepared, len(batch)), len(batch), consumer)
    if torch.isfinite(loss):
        return
    for index in batch:
        alone = job.prepare(samples.batch([index]))
        with torch.no_grad():
            value = job.loss(alone, 1)
        if not torch.isfinite(value):
            raise TracInError(
                f"The loss of {described(samples, index, kind)} is {float(value)} at snapshot {name}; look at that sample and at "
                "the fit's own loss (a diverged model has no influence to measure)."
            )
    raise TracInError(
        f"The loss of a batch of {kind}s ({batch[0]}, ...) is {float(loss)} at snapshot {name}, though each sample alone has a "
        "finite loss; use a smaller `batch_size` or `dtype='float64'`."
    )


def _require_finite(squared: Tensor, indices: Sequence[int], samples: SampleSet, kind: str, name: str) -> None:
    bad = (~torch.isfinite(squared)).any(0).nonzero()[:, 0].tolist()
    if bad:
        raise TracInError(
            f"The gradient of {described(samples, indices[bad[0]], kind)} is not finite at snapshot {name}; look at that sample, "
            "or use `dtype='float64'`."
        )


def described(samples: SampleSet, index: int, kind: str) -> str:
    """A sample as messages name it."""
    return f"{kind} {index} (language {samples.table.language[index]!r})"
