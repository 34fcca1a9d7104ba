"""Spot check of a pass: compares some stored products with gradients of single samples from plain autograd.

Tests verify the engine on test cases; the spot check verifies the current run. A few short and long train samples and probes go
through the model again, one at a time, without hooks, banks or shards. The probes' gradients are normalized and summed with
random signs s_j, so that one product per train sample checks all its pairs: ``<g_z, sum over j of s_j g_j / |g_j|>`` must equal
the same sum of stored products. Norms are compared one by one. An error e in one pair shows as e / sqrt(number of probes).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightning_tracin.attribution.batching import Job, Target, batches_of, name_of
from lightning_tracin.attribution.no_collectives import no_collectives
from lightning_tracin.attribution.samples import SampleSet
from lightning_tracin.errors import TracInError
from lightning_tracin.gradients import Capture, Dense, Rows, Sketch, can_double, in_double, plain_gradient, rounding
from lightning_tracin.gradients.partition import Parts
from lightning_tracin.gradients.sparse import elements, elements_of_both, plus, scaled
from lightning_tracin.gradients.verify import CLOSE
from lightning_tracin.storage.features import FeatureStore, Side
from lightning_tracin.storage.ingredients import IngredientStore
from lightning_tracin.storage.records import SpotCheck

#: One sample is checked per `_PASS` train samples, so that the check takes at most 1% of the pass; but at least `_LEAST` samples
#: (more than 1% of a small run) and at most `_MOST`.
_PASS, _LEAST, _MOST = 1000, 6, 24

#: Norms below this fraction of the largest norm count as this fraction when differences are divided by them.
_FLOOR = 0.01

#: Additional rounding of features in half precision.
_HALF = 2e-3

#: A deviation above 2e-5 has to be explained by rounding: at most this many times that of single samples in float32.
_TIMES = 20

#: Number of elements multiplied at a time.
_BLOCK = 1_000_000


@dataclass(frozen=True)
class _Alone:
    """Gradients of single samples at a snapshot, in the target's bases and with its scales."""

    target: Target
    job: Job

    @no_collectives()
    def gradient(self, samples: SampleSet, indices: Sequence[int]) -> dict[str, Tensor]:
        """The gradient of the sum of some samples' losses; sparse for tables, see `plain_gradient`."""
        target, job = self.target, self.job
        batch = job.prepare(samples.batch(list(indices)))
        found = plain_gradient(target.model, target.coverage.elements, lambda: job.loss(batch, len(indices)))
        if target.bases is not None:
            found = {name: target.bases[name].gradient(one) for name, one in found.items()}
        scales = target.scales
        return found if scales is None else {name: scaled(one, scales[name]) for name, one in found.items()}

    @no_collectives()
    def rounding(self, samples: SampleSet, index: int) -> float:
        """The largest difference due to rounding, for the least precise data type in the model."""
        target, job = self.target, self.job
        batch = job.prepare(samples.batch([index]))
        with Capture(target.model, target.coverage) as capture:
            capture.run(lambda: job.loss(batch, 1), 1, lambda *_: None)
        dtypes = (capture.coarsest, next(target.model.parameters()).dtype)
        return max(rounding(dtype) for dtype in dtypes)

    def explained(self) -> float:
        """The largest deviation that rounding explains, by what it does to the gradients of the samples that are checked.

        Infinity where float64 cannot tell: the model is in another type, or has a kernel without float64.
        """
        model = self.target.model
        if not can_double(model) or next(model.parameters()).dtype not in CLOSE:
            return math.inf
        apart, norms = [], []
        for samples, indices in zip((self.job.train, self.job.probes), _chosen(self.job), strict=True):
            for index in indices:
                single = self.gradient(samples, [index])
                try:
                    with in_double(model):
                        double = self.gradient(samples, [index])
                except (RuntimeError, NotImplementedError):
                    return math.inf
                norms.append(_norm(double))
                apart.append(_norm({name: plus(double[name], -values.double()) for name, values in single.items()}))
        largest = float((torch.tensor(apart) / _floored(torch.tensor(norms))).max())
        return max(CLOSE[next(model.parameters()).dtype], _TIMES * largest)


def check_products(target: Target, job: Job, store: IngredientStore) -> SpotCheck:
    """Check stored inner products and norms of train samples and probes.

    Args:
        target: the snapshot's model.
        job: samples, loss and settings.
        store: the complete ingredients.

    Raises:
        TracInError: they differ from the gradients; the message names a pair and the folder.
    """
    alone = _Alone(target, job)
    train, probes = _chosen(job)
    stored = store.some(train, probes)
    dot, train_norm, probe_norm = (torch.from_numpy(one).double() for one in (stored.dot, stored.train_norm, stored.probe_norm))
    sizes = _floored(probe_norm.square().sum(0).sqrt())
    weights = _signs(len(probes)) / sizes
    total: dict[str, Tensor] = {}
    found = []
    for j, probe in enumerate(probes):
        gradient = alone.gradient(job.probes, [probe])
        found.append((_norms(gradient, target.parts) - probe_norm[:, j]).abs().max() / sizes[j])
        _add(total, gradient, float(weights[j]))
        del gradient  # before the next one is computed
    wanted = (dot * weights).sum(2) / len(probes) ** 0.5
    found += _of_train(alone, train, train_norm, [(total, 1 / len(probes) ** 0.5, wanted)])
    pairs = len(train) * len(probes)
    return _judged(alone, train[0], pairs, found, store.folder, lambda: _worst_pair(alone, train, probes, dot))


def check_means(target: Target, job: Job, store: IngredientStore) -> SpotCheck:
    """Check the stored products of some train samples with the mean gradients of one language; see `check_products`."""
    alone = _Alone(target, job)
    train, probes = _chosen(job)
    counts = job.probes.table.counts()
    language = min(sorted(counts), key=lambda name: counts[name])
    members = [index for index, one in enumerate(job.probes.table.language) if one == language]
    column = sorted(counts).index(language)
    mean: dict[str, Tensor] = {}
    directions: dict[str, Tensor] = {}
    length = 0.0  # mean norm of the members' gradients
    few = len(members) <= max(_LEAST, len(probes))  # else only their mean is computed, batch by batch
    some = job.probes.take(members)
    for batch in [[index] for index in range(len(members))] if few else batches_of(some, job.batch_size):
        gradient = alone.gradient(some, batch)
        norm = _norm(gradient)
        length += norm / len(members)
        _add(mean, gradient, 1 / len(members))
        if few:
            _add(directions, gradient, 1 / norm / len(members) if norm > 0 else 0.0)
    stored = store.some(train, [column, len(counts) + column] if few else [column])
    dot, train_norm = torch.from_numpy(stored.dot).double(), torch.from_numpy(stored.train_norm).double()
    queries = [(mean, 1 / max(length, 1e-30), dot[:, :, 0] / max(length, 1e-30))]
    if few:
        queries.append((directions, 1.0, dot[:, :, 1]))
    found = _of_train(alone, train, train_norm, queries)
    what = f"the mean over the probes of language {language!r}"
    return _judged(alone, train[0], len(train) * len(members), found, store.folder, lambda: what)


def check_features(
    target: Target, job: Job, store: FeatureStore, only: SampleSet | None = None, side: Side = "probes", first: int = 0
) -> SpotCheck:
    """Check the stored features of some train samples and probes.

    Args:
        target: the snapshot's model.
        job: samples, loss and settings.
        store: the complete features.
        only: samples to check alone. None: check the train samples and probes of the job.
        side: which side these samples are on.
        first: index of the first of them on that side.

    Raises:
        TracInError: they differ from the gradients; the message names a sample and the folder.
    """
    alone = _Alone(target, job)
    device = next(target.model.parameters()).device
    sketch = store.sketch().to(device)
    train, some = _chosen(job)
    sides: list[tuple[Side, SampleSet, list[int], int]] = [("train", job.train, train, 0), ("probes", job.probes, some, 0)]
    if only is not None:
        sides = [(side, only, _spread(only, job.batch_size, len(some)), first)]
    found, names = [], []
    for side, samples, indices, offset in sides:
        stored = store.some(side, [offset + index for index in indices]).double()
        sizes = _floored(stored.norm(dim=1))
        for i, index in enumerate(indices):
            features = _features(sketch, alone.gradient(samples, [index])).cpu().double()
            found.append((stored[i] - features).norm() / sizes[i])
            names.append(name_of(samples, index, job.train_kind if side == "train" else "probe"))
    pairs = len(train) * len(some) if only is None else len(sides[0][2])
    worst = names[int(torch.stack(found).argmax())]  # a NaN counts as the largest
    return _judged(alone, sides[0][2][0], pairs, found, store.folder, lambda: f"the features of {worst}", sides[0][1], _HALF)


def _of_train(
    alone: _Alone, train: Sequence[int], norms: Tensor, queries: Sequence[tuple[Mapping[str, Tensor], float, Tensor]]
) -> list[Tensor]:
    """Deviations of the stored norms of train samples, and of their products with some vectors, relative to the norms.

    Args:
        alone: computes the gradients.
        train: indices of the samples.
        norms: the stored norms: [parts, samples].
        queries: for each vector: the vector, a factor of its products, and the stored products: [parts, samples].
    """
    sizes, found = _floored(norms.square().sum(0).sqrt()), []
    for i, sample in enumerate(train):
        gradient = alone.gradient(alone.job.train, [sample])
        found.append((_norms(gradient, alone.target.parts) - norms[:, i]).abs().max() / sizes[i])
        for query, factor, wanted in queries:
            found.append((_inner(gradient, query, alone.target.parts) * factor - wanted[:, i]).abs().max() / sizes[i])
        del gradient  # before the next one is computed
    return found


def _judged(
    alone: _Alone,
    sample: int,
    pairs: int,
    found: Sequence[Tensor],
    folder: Path,
    worst: Callable[[], str],
    samples: SampleSet | None = None,
    more: float = 0.0,
) -> SpotCheck:
    """The result of a check.

    Raises:
        TracInError: a deviation is NaN, or larger than rounding in one sample's pass plus `more`.
    """
    deviation = float(torch.stack(list(found)).max())  # NaN if one of them is
    most = alone.rounding(alone.job.train if samples is None else samples, sample)
    if deviation > CLOSE[torch.float32] + more:
        most = min(most, alone.explained())
    if not deviation <= most + more:
        raise TracInError(
            f"The stored results of snapshot {alone.target.name} are wrong by {deviation:.1e} of the gradients' norms: {worst()}."
            f" ({pairs} pairs were checked one sample at a time.) Either the module's loss or state changed during the pass, or "
            f"this is a bug in lightning-tracin: please report it. Delete {folder} to compute it again."
        )
    # Two digits, because machines round sums differently in the last place.
    return SpotCheck(pairs=pairs, deviation=float(f"{deviation:.1e}"))


def described(check: SpotCheck) -> str:
    """A check in words.

    Example:
        >>> described(SpotCheck(pairs=8, deviation=3e-7))
        '8 pairs, largest deviation 3e-07'
    """
    return f"{check.pairs} pairs, largest deviation {check.deviation:.0e}"


def _chosen(job: Job) -> tuple[list[int], list[int]]:
    """The train samples and the probes to check, from short to long."""
    count = min(_MOST, max(_LEAST, len(job.train) // _PASS))
    of_train = 2 if count < _MOST // 2 else 4
    return _spread(job.train, job.batch_size, of_train), _spread(job.probes, job.batch_size, count - of_train)


def _spread(samples: SampleSet, batch_size: int, count: int) -> list[int]:
    """At most `count` samples, evenly spread over the batches of a pass."""
    order = [index for batch in batches_of(samples, batch_size) for index in batch]
    places = torch.linspace(0, len(order) - 1, min(count, len(order))).round().long().tolist()
    return [order[place] for place in dict.fromkeys(places)]


def _signs(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 2, (count,), generator=generator).double() * 2 - 1


def _floored(norms: Tensor) -> Tensor:
    """Norms to divide differences by: none is zero or much smaller than the largest."""
    return norms.clamp(min=max(_FLOOR * float(norms.max()), 1e-30))


def _inner(one: Mapping[str, Tensor], other: Mapping[str, Tensor], parts: Parts) -> Tensor:
    """Inner product of two gradients in each part: [parts]."""
    out = torch.zeros(len(parts), dtype=torch.float64)
    for name, values in one.items():
        both = elements_of_both(values, other[name])
        pairs = zip(*(torch.split(each, _BLOCK) for each in both), strict=True)
        out[parts.of[name]] += sum(float((a.double() * b.double()).sum()) for a, b in pairs)
    return out


def _norms(gradient: Mapping[str, Tensor], parts: Parts) -> Tensor:
    """Norm of a gradient in each part: [parts]."""
    return _inner(gradient, gradient, parts).sqrt()


def _norm(gradient: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(elements(values).double().square().sum()) for values in gradient.values()))


def _add(total: dict[str, Tensor], gradient: Mapping[str, Tensor], weight: float) -> None:
    for name, values in gradient.items():
        if name in total and not (total[name].is_sparse or values.is_sparse):
            total[name].add_(values, alpha=weight)
        else:
            total[name] = plus(total[name], values * weight) if name in total else values * weight


def _features(sketch: Sketch, gradient: Mapping[str, Tensor]) -> Tensor:
    """The features of one gradient: [features]."""
    found = []
    for name, part in sketch.parts.items():
        is_table = part.left is None and part.right is None  # as rows, to avoid an index over all its elements
        full = gradient[name] if gradient[name].is_sparse else gradient[name].view(part.rows, part.columns)
        form = _rows_of(full) if is_table else Dense(full.to_dense().view(1, -1))
        found.append(sketch.features(name, (form,))[0])
    return torch.cat(found)


def _rows_of(gradient: Tensor) -> Rows:
    gradient = gradient if gradient.is_sparse else gradient.to_sparse(1)
    row = gradient.indices()[0]
    return Rows(torch.zeros_like(row), row, gradient.values(), 1, len(gradient))


def _worst_pair(alone: _Alone, train: Sequence[int], probes: Sequence[int], dot: Tensor) -> str:
    """Describe the pair that differs most, by computing each pair again."""
    target, job = alone.target, alone.job
    worst, text = -1.0, ""
    for j, probe in enumerate(probes):
        q = alone.gradient(job.probes, [probe])
        for i, sample in enumerate(train):
            z = alone.gradient(job.train, [sample])
            true, held = float(_inner(z, q, target.parts).sum()), float(dot[:, i, j].sum())
            off = abs(true - held) / max(_norm(z) * _norm(q), 1e-30)
            if off > worst:
                one, other = name_of(job.train, sample, job.train_kind), name_of(job.probes, probe, "probe")
                worst, text = off, f"the inner product of {one} with {other}, which is {true:.6g} and was stored as {held:.6g}"
    return text
