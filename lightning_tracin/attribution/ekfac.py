"""The EK-FAC pass: exact products under the inverse of a Kronecker-factored, eigenvalue-corrected second moment, layer by layer.

Grosse et al. 2023 (arXiv 2308.03296, section 2.2) approximate the influence ``<g_probe, (F + c)^-1 g_train>`` so: F has no blocks
between parameters; within one, it is diagonal in the eigenvectors of K-FAC's factors (`gradients.eigenbases`), with the mean
squared coordinates of single samples' gradients as eigenvalues (George et al. 2018, arXiv 1806.03884). Here:

1. One pass over the train samples sums the covariances of every layer's inputs and output gradients. Rank 0 decomposes them.
2. A second pass sums each coordinate's square, for two halves of the train samples. From these follow the eigenvalues lambda, and
   the damping c under which each half's eigenvalues predict the other's best (`gradients.second_moments`).
3. The exact pass multiplies coordinates, scaled by ``1 / sqrt(lambda + c)``. So norms and cosines are those of the same inner
   product, and the learning rate of a parameter's group may be applied afterwards: no block of F has two groups.

Translations of one item are in the same half: the halves would otherwise agree for no other reason than that they say the same.

What differs from the source:

- F is the empirical Fisher, from the samples' own labels. The source samples labels from the model, or uses the Gauss-Newton
  Hessian.
- c comes from the held-out fit, for each parameter alone. The source takes 0.1 times the mean eigenvalue of the layer.
- Every scored parameter has a part. The source takes the weights of the MLP layers, with their biases as one more input. Here,
  attention and convolutions (over patches of the input) are treated like any linear layer. Embedding tables have a basis for
  their columns. Biases, normalisations and parameters whose layer has no rule have the diagonal of F, with no basis.
- The score sums over snapshots, as all scores of the package do. The source takes the last weights alone: `snapshots=[-1]`.

The ranks share all three passes. A killed pass goes on from the files of `storage.factors` and the shards that exist.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor

from lightning_tracin.attribution.batching import Job, Target, batches_of, run_batch, shards_of, shards_of_rank
from lightning_tracin.attribution.cost import Cost, measured_pace
from lightning_tracin.attribution.exact import Exact, attribute_snapshot
from lightning_tracin.attribution.method import method
from lightning_tracin.attribution.processes import Processes, on_rank_zero
from lightning_tracin.attribution.spot_check import check_products
from lightning_tracin.config import Options
from lightning_tracin.errors import TracInError
from lightning_tracin.gradients import Capture, Coverage
from lightning_tracin.gradients.eigenbases import LARGEST_SIDE, OUTER, WRITTEN_OUT, Covariances, Eigenbasis, eigenvectors
from lightning_tracin.gradients.forms import Form
from lightning_tracin.gradients.second_moments import SecondMoments, chosen_damping, damped_scale
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.factors import FactorStore
from lightning_tracin.storage.records import SpotCheck
from lightning_tracin.storage.snapshots import Snapshot


@method("ekfac")
class Ekfac(Exact):
    """The product of every train sample with every probe under the damped inverse of EK-FAC's second moment."""

    takes_scales = False
    metric = "ekfac"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        if options.dtype == "bfloat16":
            raise TracInError(
                "method='ekfac' divides by second moments, and rounding in dtype='bfloat16' is larger than many of them; take "
                "dtype='float32'."
            )

    def compute(self, target: Target, job: Job, directory: RunDirectory, snapshot: Snapshot, processes: Processes) -> None:
        """Fit and store the snapshot's factors if there are none, and compute and store its missing shards."""
        factors = directory.factors(snapshot)
        fit_bases(target, job, factors, processes)
        fit_scales(target, job, factors, processes)
        attribute_snapshot(in_metric(target, factors), job, self.store(directory, snapshot))

    def compute_candidates(
        self, target: Target, job: Job, directory: RunDirectory, snapshot: Snapshot, processes: Processes
    ) -> SpotCheck:
        """Compute, store and check the candidates' products, with the factors of the fit's own train samples."""
        del processes  # one process computes all
        attribute_snapshot(in_metric(target, directory.factors(snapshot)), job, self.store(directory, snapshot))
        return self.check(target, job, directory, snapshot)

    def check(self, target: Target, job: Job, directory: RunDirectory, snapshot: Snapshot) -> SpotCheck:
        """Compare some stored products with single-sample gradients, in the stored bases and with the stored scales."""
        return check_products(in_metric(target, directory.factors(snapshot)), job, self.store(directory, snapshot))

    def cost(self, target: Target, job: Job) -> Cost:
        """As for exact products, with two more passes over the train samples, in which each gradient is written out once."""
        exact, pace = super().cost(target, job), measured_pace(target, job)
        fitting = len(job.train) / job.ranks * 2 * (pace.captured + pace.multiplied)
        return replace(exact, seconds=exact.seconds + fitting)

    def factor_bytes(self, coverage: Coverage) -> int:
        """One scale for each element, and the bases of the parameters that may have them."""
        shapes = shapes_of(coverage).values()
        bases = sum(side**2 for shape in shapes if min(shape) > 1 for side in shape if side <= LARGEST_SIDE)
        return 4 * (coverage.total + bases)


def shapes_of(coverage: Coverage) -> dict[str, tuple[int, int]]:
    """Rows and columns of each scored parameter: its first dimension, and all others; a vector is one column."""
    found = {name: layer.module.get_parameter(own).shape for layer in coverage.layers for own, name in layer.names.items()}
    return {name: (shape[0], math.prod(shape[1:])) if shape else (1, 1) for name, shape in sorted(found.items())}


def in_metric(target: Target, store: FactorStore) -> Target:
    """A target whose gradients are expressed in the stored bases and multiplied with the stored scales.

    Raises:
        TracInError: factors are missing or damaged.
    """
    model = next(target.model.parameters())
    scales = {name: scale.to(model.device, model.dtype) for name, scale in _named(store.read("scales"), "scale").items()}
    return replace(target, bases=_bases(target, store), scales=scales)


def _bases(target: Target, store: FactorStore) -> dict[str, Eigenbasis]:
    device = next(target.model.parameters()).device
    held = {name: tensor.to(device) for name, tensor in store.read("bases").items()}
    return {name: Eigenbasis(held.get(f"left/{name}"), held.get(f"right/{name}")) for name in target.coverage.elements}


def _named(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{kind}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{kind}/")}


def _shards_of_rank(job: Job) -> list[list[int]]:
    """The batches of this rank."""
    shards = shards_of(batches_of(job.train, job.batch_size))
    return [batch for shard in shards_of_rank(len(shards), job) for batch in shards[shard]]


def _exists(store: FactorStore, name: str, processes: Processes) -> bool:
    """Whether rank 0 finds a file, so that all ranks do the same."""
    return bool(on_rank_zero(processes, lambda: store.has(name)))


def fit_bases(target: Target, job: Job, store: FactorStore, processes: Processes) -> None:
    """Compute and store the eigenbases of every parameter, if they are not stored.

    Args:
        target: the snapshot's model.
        job: samples, loss and settings.
        store: where they are stored.
        processes: the ranks that share the pass.

    Raises:
        TracInError: a loss is not finite, or the bases cannot be written.
    """
    if _exists(store, "bases", processes):
        return
    shapes = shapes_of(target.coverage)
    covariances = Covariances(shapes)
    with Capture(target.model, target.coverage) as capture:
        for batch in _shards_of_rank(job):
            run_batch(capture, job, job.train, batch, covariances.add, job.train_kind, target.name)
    kinds = processes.gather(torch.tensor(list(covariances.kinds.values())))
    found: dict[str, Tensor] = {}
    for number, name in enumerate(shapes):
        kind = 0
        for of_rank in kinds[:, number].tolist():
            kind |= of_rank
        sides = () if kind == 0 or kind & WRITTEN_OUT else (0, 1) if kind == OUTER else (1,)
        for side in sides:
            own = covariances.of(name, side)
            if own is not None:
                summed = processes.gather(own).sum(0)
                if processes.rank == 0:
                    found[f"{('left', 'right')[side]}/{name}"] = eigenvectors(summed)
    on_rank_zero(processes, lambda: store.write("bases", found))


def fit_scales(target: Target, job: Job, store: FactorStore, processes: Processes) -> None:
    """Measure the second moments in the stored bases, choose dampings, and store the scales, if they are not stored.

    Args:
        target: the snapshot's model.
        job: samples, loss and settings.
        store: where the bases are.
        processes: the ranks that share the pass.

    Raises:
        TracInError: a loss is not finite, the bases are damaged, the scales cannot be written, or there are no two halves.
    """
    if _exists(store, "scales", processes):
        return
    elements, bases = target.coverage.elements, _bases(target, store)
    halves = halves_of(job.train.table.item)
    counts = torch.bincount(halves, minlength=2)
    if not bool(counts.all()):
        raise TracInError(
            f"method='ekfac' chooses its damping by samples held out, but all {len(halves)} train samples are of one item "
            f"({job.train.table.item[0]!r}); give more, or another `item_column`."
        )
    moments = SecondMoments()
    with Capture(target.model, target.coverage) as capture:
        for batch in _shards_of_rank(job):
            mine = halves[batch]

            def add(name: str, forms: tuple[Form, ...], mine: Tensor = mine) -> None:
                moments.add(name, elements[name], bases[name].forms(forms), mine)

            run_batch(capture, job, job.train, batch, add, job.train_kind, target.name)
    shapes = {name: parameter.shape for name, parameter in target.model.named_parameters() if name in elements}
    sums = {name: processes.gather(moments.of(name, size)).sum(0) for name, size in sorted(elements.items())}
    energy = sum(float(one.sum(dtype=torch.float64)) for one in sums.values())
    found: dict[str, Tensor] = {}
    for name in sorted(sums) if processes.rank == 0 else ():
        summed = sums.pop(name)
        damping = chosen_damping(summed / counts[:, None])
        found[f"scale/{name}"] = damped_scale(summed, damping, counts.tolist(), energy).view(shapes[name])
        if bool(found[f"scale/{name}"].any()):
            found[f"damping/{name}"] = torch.tensor(damping, dtype=torch.float64)
    on_rank_zero(processes, lambda: store.write("scales", found))
    if processes.rank == 0:
        chosen = [float(one) for one in _named(found, "damping").values()]
        processes.info(
            f"TracIn: EK-FAC's damping at {target.name}, by held-out fit: {min(chosen):.0e} to {max(chosen):.0e} of a "
            f"parameter's mean eigenvalue, median {median(chosen):.0e}."
        )


def halves_of(items: Sequence[str | None]) -> Tensor:
    """The half of each sample, 0 or 1, drawn at random; samples of one item are in the same half: [samples].

    Example:
        >>> halves = halves_of(["a", "b", "a", "b", None, None])
        >>> bool(halves[0] == halves[2]), bool(halves[1] == halves[3]), halves.sum().item()
        (True, True, 3)
    """
    members: dict[object, list[int]] = {}
    for index, item in enumerate(items):
        members.setdefault((index,) if item is None else item, []).append(index)
    groups = list(members.values())
    halves, counts = torch.zeros(len(items), dtype=torch.int64), [0, 0]
    for number in torch.randperm(len(groups), generator=torch.Generator().manual_seed(0)).tolist():
        smaller = int(counts[1] < counts[0])
        halves[groups[number]] = smaller
        counts[smaller] += len(groups[number])
    return halves
