"""The work of one pass: which samples go through the model together, and what is said when one cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from lightning_tracin.attribution.losses import Summed, SummedLoss, require_sum
from lightning_tracin.attribution.no_collectives import no_collectives
from lightning_tracin.attribution.samples import SampleSet
from lightning_tracin.errors import TracInError
from lightning_tracin.gradients import Capture, Coverage, ProbeBank
from lightning_tracin.gradients.forms import Form
from lightning_tracin.gradients.partition import Parts

#: Train samples of one shard: what is lost at most when a run is killed.
SHARD_SAMPLES = 1024

#: Part of the free memory that a pass may take beside the model and a batch's activations.
_FREE_SHARE = 0.4

#: Part of the budget that the factors of a block of train samples may take; the rest is the probes'.
_HELD_SHARE = 0.25


@dataclass(frozen=True)
class Job:
    """What stays the same from snapshot to snapshot."""

    train: SampleSet
    probes: SampleSet
    loss: SummedLoss
    prepare: Callable[[Any], Any]  # moves a batch to the model's device
    batch_size: int
    memory_budget: int  # bytes for the probes' gradients and held factors; the same on all ranks
    rank: int = 0
    ranks: int = 1
    progress: bool = False

    @property
    def held_bytes(self) -> int:
        """How much the factors of a block of train samples may take."""
        return int(_HELD_SHARE * self.memory_budget)


@dataclass(frozen=True)
class Target:
    """What is scored at one snapshot."""

    name: str  # of the snapshot, for messages
    model: nn.Module  # in evaluation mode, holding the snapshot's weights
    coverage: Coverage
    parts: Parts
    scales: Mapping[str, Tensor] | None = None  # of a preconditioner: parameter -> factor of both sides' gradients


def free_share(device: torch.device) -> int:
    """Bytes that a pass may take where nothing else is asked for: a share of what is free now."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return int(_FREE_SHARE * free)


def batches_of(samples: SampleSet, batch_size: int) -> list[list[int]]:
    """Batches of samples of one source and of similar length, shortest first."""
    order = sorted(range(len(samples)), key=lambda i: (samples.source(i), samples.sizes[i], i))
    batches = []
    for _, same in groupby(order, key=samples.source):
        indices = list(same)
        batches += [indices[at : at + batch_size] for at in range(0, len(indices), batch_size)]
    return batches


def shards_of(batches: Sequence[list[int]]) -> list[list[list[int]]]:
    """Batches by shard: what is written together."""
    shards: list[list[list[int]]] = [[]]
    for batch in batches:
        if sum(map(len, shards[-1])) >= SHARD_SAMPLES:
            shards.append([])
        shards[-1].append(batch)
    return shards


def shards_of_rank(count: int, job: Job) -> list[int]:
    """The shards that this rank computes, of so many in all.

    Shards ascend in length, so ranks take turns there and back: each gets as many long ones as the others.
    """
    rounds = ([*range(at, min(at + job.ranks, count))] for at in range(0, count, job.ranks))
    turns = ((row, job.rank if number % 2 == 0 else job.ranks - 1 - job.rank) for number, row in enumerate(rounds))
    return [row[turn] for row, turn in turns if turn < len(row)]


def probe_chunks(target: Target, job: Job) -> list[list[list[int]]]:
    """The probes in chunks whose gradients fit into the budget, in batches, longest first."""
    batches = batches_of(job.probes, job.batch_size)[::-1]
    most = max(1, (job.memory_budget - job.held_bytes) // max(1, bytes_of_a_probe(target, job)))
    return list(_chunks(batches, most))


def _chunks(batches: Sequence[list[int]], most: int) -> Iterator[list[list[int]]]:
    """Batches in chunks of at most so many samples; a batch that is larger is cut."""
    chunk: list[list[int]] = []
    for batch in batches:
        for at in range(0, len(batch), most):
            piece = batch[at : at + most]
            if chunk and sum(map(len, chunk)) + len(piece) > most:
                yield chunk
                chunk = []
            chunk.append(piece)
    yield chunk


def bytes_of_a_probe(target: Target, job: Job) -> int:
    """What a bank holds of one probe at the most: counted on the longest batch, as if all probes were as long.

    A whole batch is looked at, because a layer may see other positions of one sample than of another (the last token's).
    """
    longest = max(batches_of(job.probes, job.batch_size), key=lambda batch: max(job.probes.sizes[index] for index in batch))
    gradients: dict[str, tuple[Form, ...]] = {}
    with Capture(target.model, target.coverage) as capture:
        run_batch(capture, job, job.probes, longest, gradients.__setitem__, "probe", target.name)
    held = ProbeBank(len(job.probes), target.parts.of, len(target.parts), target.scales).bytes_held(gradients)
    unreached = sum(count for name, count in target.coverage.elements.items() if name not in gradients)
    return -(-held // len(longest)) + unreached * _element_size(target.coverage)


def bytes_of_a_query(coverage: Coverage) -> int:
    """What a sum of many probes' gradients takes: all of it written out but tables of embeddings."""
    tables = {name for layer in coverage.layers if isinstance(layer.module, nn.Embedding) for name in layer.names.values()}
    written_out = sum(count for name, count in coverage.elements.items() if name not in tables)
    return written_out * _element_size(coverage)


def _element_size(coverage: Coverage) -> int:
    return next(next(iter(coverage.layers)).module.parameters()).element_size()


@no_collectives()
def run_batch(
    capture: Capture, job: Job, samples: SampleSet, batch: list[int], consumer: Callable[..., None], kind: str, name: str
) -> None:
    """One batch through the model.

    Args:
        capture: of the model.
        job: loss and settings.
        samples: the job's train samples or probes.
        batch: which of them.
        consumer: takes the gradients.
        kind: "train sample" or "probe", for messages.
        name: of the snapshot, for messages.

    Raises:
        TracInError: a loss is not finite, or it is not the sum of its samples' own losses; the message names the sample (or the
            batch) and the snapshot.
    """
    prepared = job.prepare(samples.batch(batch))
    found: list[Summed] = []

    def total() -> Tensor:
        found.append(job.loss.summed(prepared, len(batch)))
        return found[-1].total

    loss = capture.run(total, len(batch), consumer)
    if torch.isfinite(loss):
        if not found[-1].is_certain:
            alone = [job.prepare(samples.batch([index])) for index in batch]
            which = f"a batch of {kind}s ({', '.join(map(str, batch[:5]))}{', ...' if len(batch) > 5 else ''}) at snapshot {name}"
            require_sum(job.loss, float(loss), alone, loss.dtype, which)
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


def require_finite(values: Tensor, indices: Sequence[int], samples: SampleSet, kind: str, name: str) -> None:
    """Refuse gradients that are not finite.

    Args:
        values: [any, len(indices)], such as squared norms.
        indices: the samples.
        samples: whose they are.
        kind: "train sample" or "probe".
        name: of the snapshot.

    Raises:
        TracInError: a value is not finite; the message names its sample.
    """
    bad = (~torch.isfinite(values)).any(0).nonzero()[:, 0].tolist()
    if bad:
        raise TracInError(
            f"The gradient of {described(samples, indices[bad[0]], kind)} is not finite at snapshot {name}; look at that sample, "
            "or use `dtype='float64'`."
        )


def described(samples: SampleSet, index: int, kind: str) -> str:
    """A sample as messages name it."""
    return f"{kind} {index} (language {samples.table.language[index]!r})"
