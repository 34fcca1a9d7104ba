"""The batches, shards and probe chunks of one pass, and running one batch through the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from lightning_tracin.attribution.across_samples import AcrossSamples
from lightning_tracin.attribution.closeness import same
from lightning_tracin.attribution.losses import LastSum, Summed, SummedLoss, require_sum
from lightning_tracin.attribution.no_collectives import no_collectives
from lightning_tracin.attribution.progress import Progress
from lightning_tracin.attribution.samples import SampleSet
from lightning_tracin.errors import TracInError
from lightning_tracin.gradients import Capture, Coverage, ProbeBank
from lightning_tracin.gradients.eigenbases import Eigenbasis
from lightning_tracin.gradients.forms import Form
from lightning_tracin.gradients.freezing import unfrozen
from lightning_tracin.gradients.partition import Parts

#: What messages call a train sample.
TRAIN_SAMPLE = "train sample"

#: Train samples per shard: the most that is lost when a run is killed.
SHARD_SAMPLES = 1024

#: Fraction of the free memory that a pass may use for gradients.
_FREE_SHARE = 0.4

#: Fraction of the memory budget for the factors of a block of train samples; the rest is for the probes.
_HELD_SHARE = 0.25


@dataclass(frozen=True)
class Job:
    """The samples, loss and settings of a pass: the same at every snapshot."""

    train: SampleSet
    probes: SampleSet
    loss: SummedLoss
    prepare: Callable[[Any], Any]  # moves a batch to the model's device
    batch_size: int
    memory_budget: int  # bytes for the probes' gradients and held factors; the same on all ranks
    rank: int = 0
    ranks: int = 1
    progress: Progress = False
    train_kind: str = TRAIN_SAMPLE  # what messages call the train samples

    @property
    def held_bytes(self) -> int:
        """Memory budget for the factors of a block of train samples."""
        return int(_HELD_SHARE * self.memory_budget)


@dataclass(frozen=True)
class Target:
    """The model and parameters scored at one snapshot."""

    name: str  # of the snapshot, for messages
    model: nn.Module  # in evaluation mode, with the snapshot's weights
    coverage: Coverage
    parts: Parts
    scales: Mapping[str, Tensor] | None = None  # parameter -> factor of train and probe gradients, from a preconditioner or mask
    bases: Mapping[str, Eigenbasis] | None = None  # parameter -> bases that its gradients are expressed in before they are scaled

    def expressed(self, parameter: str, forms: tuple[Form, ...]) -> tuple[Form, ...]:
        """A parameter's gradients in the target's bases."""
        return forms if self.bases is None else self.bases[parameter].forms(forms)

    def scale(self, parameter: str) -> Tensor | None:
        """The factor of a parameter's gradients, elementwise; None means 1."""
        return None if self.scales is None else self.scales[parameter]


def free_share(device: torch.device) -> int:
    """The default memory budget: a fraction of the memory that is free now, in bytes."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return int(_FREE_SHARE * free)


def batches_of(samples: SampleSet, batch_size: int) -> list[list[int]]:
    """Batches of samples from one source with similar lengths, shortest first."""
    order = sorted(range(len(samples)), key=lambda i: (samples.source(i), samples.sizes[i], i))
    batches = []
    for _, of_source in groupby(order, key=samples.source):
        indices = list(of_source)
        batches += [indices[at : at + batch_size] for at in range(0, len(indices), batch_size)]
    return batches


def shards_of(batches: Sequence[list[int]]) -> list[list[list[int]]]:
    """Split batches into shards of about `SHARD_SAMPLES` samples.

    Example:
        >>> [sum(map(len, shard)) for shard in shards_of([[0] * 500] * 5)]
        [1500, 1000]
    """
    shards: list[list[list[int]]] = [[]]
    for batch in batches:
        if sum(map(len, shards[-1])) >= SHARD_SAMPLES:
            shards.append([])
        shards[-1].append(batch)
    return shards


def shards_of_rank(count: int, job: Job) -> list[int]:
    """The shards that this rank computes, out of `count`.

    Shards are sorted by sample length, so ranks are assigned back and forth (0, 1, 1, 0, ...) to balance the long ones.

    Example:
        >>> import types
        >>> [shards_of_rank(6, types.SimpleNamespace(rank=rank, ranks=2)) for rank in (0, 1)]
        [[0, 3, 4], [1, 2, 5]]
    """
    rounds = ([*range(at, min(at + job.ranks, count))] for at in range(0, count, job.ranks))
    turns = ((row, job.rank if number % 2 == 0 else job.ranks - 1 - job.rank) for number, row in enumerate(rounds))
    return [row[turn] for row, turn in turns if turn < len(row)]


@dataclass(frozen=True)
class LongestProbes:
    """The longest batch of probes and its gradients, which a pass measures first and then need not compute again."""

    batch: list[int]
    gradients: dict[str, tuple[Form, ...]]  # parameter -> gradients, as `Target.expressed` gives them


def longest_probes(target: Target, job: Job) -> LongestProbes:
    """Run the longest batch of probes.

    A whole batch is used, because a layer may see only some positions of a sample (such as the last token).
    """
    longest = max(batches_of(job.probes, job.batch_size), key=lambda batch: max(job.probes.sizes[index] for index in batch))
    gradients: dict[str, tuple[Form, ...]] = {}
    with Capture(target.model, target.coverage) as capture:

        def keep(name: str, forms: tuple[Form, ...]) -> None:
            gradients[name] = target.expressed(name, forms)

        run_batch(capture, job, job.probes, longest, keep, "probe", target.name)
    return LongestProbes(longest, gradients)


def probe_chunks(target: Target, job: Job, longest: LongestProbes | None = None) -> list[list[list[int]]]:
    """The probes' batches in chunks whose gradients fit into the memory budget, longest first.

    Args:
        target: the snapshot's model.
        job: samples and settings.
        longest: the longest batch, if it has been run already.
    """
    batches = batches_of(job.probes, job.batch_size)[::-1]
    most = max(1, (job.memory_budget - job.held_bytes) // max(1, bytes_of_a_probe(target, job, longest)))
    return list(_chunks(batches, most))


def _chunks(batches: Sequence[list[int]], most: int) -> Iterator[list[list[int]]]:
    """Group batches into chunks of at most `most` samples; larger batches are split."""
    chunk: list[list[int]] = []
    for batch in batches:
        for at in range(0, len(batch), most):
            piece = batch[at : at + most]
            if chunk and sum(map(len, chunk)) + len(piece) > most:
                yield chunk
                chunk = []
            chunk.append(piece)
    yield chunk


def bytes_of_a_probe(target: Target, job: Job, longest: LongestProbes | None = None) -> int:
    """Upper bound of a bank's memory per probe, measured on the longest batch, which is run unless it is given."""
    longest = longest or longest_probes(target, job)
    gradients = longest.gradients
    held = ProbeBank(len(job.probes), target.parts.of, len(target.parts), target.scales).bytes_held(gradients)
    unreached = sum(count for name, count in target.coverage.elements.items() if name not in gradients)
    return -(-held // len(longest.batch)) + unreached * _element_size(target.coverage)


def bytes_of_a_query(coverage: Coverage) -> int:
    """Memory of a sum of many probes' gradients: all of it is dense, except embedding tables."""
    tables = {name for layer in coverage.layers if isinstance(layer.module, nn.Embedding) for name in layer.names.values()}
    dense = sum(count for name, count in coverage.elements.items() if name not in tables)
    return dense * _element_size(coverage)


def _element_size(coverage: Coverage) -> int:
    return next(next(iter(coverage.layers)).module.parameters()).element_size()


@no_collectives()
def run_batch(
    capture: Capture, job: Job, samples: SampleSet, batch: list[int], consumer: Callable[..., None], kind: str, name: str
) -> LastSum:
    """Run one batch through the model, and pass its per-sample gradients to a consumer.

    Args:
        capture: the capture of the model.
        job: loss and settings.
        samples: the job's train samples or probes.
        batch: indices of the samples.
        consumer: called with each parameter's name and gradients.
        kind: "train sample" or "probe", for messages.
        name: name of the snapshot, for messages.

    Returns:
        The losses of the batch.

    Raises:
        TracInError: a loss is not finite, or it is not the sum of its samples' own losses; the message names the sample (or the
            batch) and the snapshot.
    """
    prepared = job.prepare(samples.batch(batch))
    across = AcrossSamples()

    def forward() -> Summed:
        with across:
            return job.loss.summed(prepared, len(batch))

    summed = LastSum(forward)

    def alone(position: int) -> Tensor:
        return job.loss(job.prepare(samples.batch([batch[position]])), 1)

    loss = capture.run(summed.total, len(batch), consumer, summed.own, alone)
    if torch.isfinite(loss):
        is_certain = summed.last is None or summed.last.is_certain
        if is_certain and across.is_seen and len(batch) > 1 and summed.last is not None:
            is_certain = _is_of_each(capture, job, samples, batch, summed)
        if not is_certain:
            each = [job.prepare(samples.batch([index])) for index in batch]
            which = f"a batch of {kind}s ({', '.join(map(str, batch[:5]))}{', ...' if len(batch) > 5 else ''}) at snapshot {name}"
            require_sum(job.loss, float(loss), each, loss.dtype, which, prepared)
        return summed
    for position, index in enumerate(batch):
        with torch.no_grad():
            value = alone(position)
        if not torch.isfinite(value):
            raise TracInError(
                f"The loss of {name_of(samples, index, kind)} is {float(value)} at snapshot {name}; look at that sample and at "
                "the fit's own loss (a diverged model has no influence to measure)."
            )
    raise TracInError(
        f"The loss of a batch of {kind}s ({batch[0]}, ...) is {float(loss)} at snapshot {name}, though each sample alone has a "
        "finite loss; use a smaller `batch_size` or `dtype='float64'`."
    )


def _is_of_each(capture: Capture, job: Job, samples: SampleSet, batch: list[int], summed: LastSum) -> bool:
    """Whether samples have the losses in this batch that they have in half of it."""
    found = [_own(summed)]
    middle = len(batch) // 2
    with unfrozen(job.loss.module, capture.coverage.elements):  # what a loss is made of shows in its graph
        for half in (batch[:middle], batch[middle:]):
            alone = LastSum(lambda half=half: job.loss.summed(job.prepare(samples.batch(half)), len(half)))  # type: ignore[misc]
            total = alone.total()
            found.append([float(total.detach())] if len(half) == 1 else _own(alone))
    together, *halves = found
    apart = [loss for half in halves for loss in half]
    scale, dtype = sum(map(abs, together)) / len(batch), total.dtype
    return len(together) == len(apart) and all(same(*pair, dtype, scale) for pair in zip(together, apart, strict=True))


@torch.no_grad()
def _own(summed: LastSum) -> list[float]:
    losses = summed.own()
    return [] if losses is None else losses.tolist()


def require_finite(values: Tensor, indices: Sequence[int], samples: SampleSet, kind: str, name: str) -> None:
    """Check that gradients are finite.

    Args:
        values: [any, len(indices)], such as squared norms.
        indices: indices of the samples.
        samples: the set that contains them.
        kind: "train sample" or "probe".
        name: name of the snapshot.

    Raises:
        TracInError: a value is not finite; the message names its sample.
    """
    bad = (~torch.isfinite(values)).any(0).nonzero()[:, 0].tolist()
    if bad:
        raise TracInError(
            f"The gradient of {name_of(samples, indices[bad[0]], kind)} is not finite at snapshot {name}; look at that sample, "
            "or use `dtype='float64'`."
        )


def name_of(samples: SampleSet, index: int, kind: str) -> str:
    """How messages name a sample, such as `probe 3 (language 'sw')`."""
    return f"{kind} {index} (language {samples.table.language[index]!r})"
