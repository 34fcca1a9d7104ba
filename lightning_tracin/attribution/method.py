"""The protocol of an attribution method, and the registry of methods.

A method computes and stores something for every train sample and probe at a snapshot, and knows how scores follow from it. The
rest of the package asks the method object and never compares its name. To add one, write a class under `@method("name")` in a
module of its own; users choose it with `TracInCallback(method="name")`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from lightning_tracin.attribution.batching import Job, Target
from lightning_tracin.attribution.cost import Cost
from lightning_tracin.attribution.processes import Processes
from lightning_tracin.config import SCALED, WHITENED, Measure, Options, Similarity
from lightning_tracin.errors import TracInError
from lightning_tracin.gradients import Coverage
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.records import SpotCheck
from lightning_tracin.storage.sample_table import SampleTable
from lightning_tracin.storage.shards import Ingredients
from lightning_tracin.storage.snapshots import Snapshot


class Store(Protocol):
    """The files that a method stores for one snapshot.

    A method may bring a class of its own. One with `read(into)` and `shards(into)`, as `storage.ingredients.IngredientStore` has
    them, is read as it is; products that are computed when they are read need a function registered with
    `analysis.feature_products.ingredients_of` and `product_shards`.
    """

    @property
    def folder(self) -> Path:
        """The folder of its files."""

    def is_complete(self) -> bool:
        """Whether all files exist and are intact."""


class Method(Protocol):
    """One way to compute influence.

    Attributes:
        measure: what tables and curves show: `"share"` ranks the train samples of each probe, `"mean"` needs no ranking.
        adds_probes: whether probes can be added later without another pass over the train samples.
        whitens: whether scores can be whitened by the Fisher information.
        layer_cosine: whether the cosine within one layer can be computed from the stored files.
        banks_probes: whether train samples are multiplied with a bank of all probes' gradients.
        takes_scales: whether it multiplies gradients with `Target.scales`, which Adam's preconditioner and masks need.
        metric: the name of the inner product, if the stored products are of one of the method's own.
    """

    measure: Measure = "share"
    adds_probes: bool = False
    whitens: bool = False
    layer_cosine: bool = False
    banks_probes: bool = False
    takes_scales: bool = False
    metric: str | None = None

    def store(self, directory: RunDirectory, snapshot: Snapshot) -> Store:
        """The store of a snapshot's products."""

    def columns(self, directory: RunDirectory) -> int:
        """Number of products per train sample."""

    def queries(self, probes: SampleTable) -> SampleTable:
        """What influence is measured on: the probes, or groups of them."""
        return probes

    def compute(self, target: Target, job: Job, directory: RunDirectory, snapshot: Snapshot, processes: Processes) -> None:
        """Compute and store the missing products of a snapshot; ranks share the work.

        Raises:
            TracInError: a loss or gradient is not finite; the message names the sample and the snapshot.
        """

    def add(self, target: Target, job: Job, directory: RunDirectory, snapshot: Snapshot, first: int) -> SpotCheck:
        """Compute, store and check what the job's probes add to a snapshot; methods with `adds_probes` do it.

        Args:
            target: the snapshot's model.
            job: a job whose probes are the new ones.
            directory: the run.
            snapshot: of the run.
            first: index of the first new probe in the run.

        Raises:
            TracInError: a loss or gradient is not finite, or what is stored differs from single-sample gradients.
        """
        raise NotImplementedError

    def compute_candidates(
        self, target: Target, job: Job, directory: RunDirectory, snapshot: Snapshot, processes: Processes
    ) -> SpotCheck:
        """Compute, store and check a snapshot's products with candidates in place of train samples.

        The probes of a method with `adds_probes` are the fit's stored ones; the job's are then not used.

        Args:
            target: the snapshot's model.
            job: a job whose train samples are the candidates.
            directory: a directory of candidates; see `storage.candidates`.
            snapshot: of the fit.
            processes: the processes of the pass.

        Raises:
            TracInError: a loss or gradient is not finite, or what is stored differs from single-sample gradients.
        """
        self.compute(target, job, directory, snapshot, processes)
        return self.check(target, job, directory, snapshot)

    def check(self, target: Target, job: Job, directory: RunDirectory, snapshot: Snapshot) -> SpotCheck:
        """Compare some stored products with single-sample gradients from plain autograd.

        Raises:
            TracInError: they differ by more than rounding.
        """

    def cost(self, target: Target, job: Job) -> Cost:
        """Estimate the cost of one pass from a few batches."""

    def stored_bytes(self, parts: int, train: int, probes: SampleTable) -> int:
        """Disk space of one snapshot's products."""

    def factor_bytes(self, coverage: Coverage) -> int:
        """Disk space of what else a snapshot's products need."""
        del coverage
        return 0

    def readable(self, ingredients: Ingredients, similarity: Similarity) -> tuple[Ingredients, Similarity]:
        """The columns that a similarity uses, and the similarity whose formula turns them into scores."""
        return ingredients, similarity


_Class = TypeVar("_Class", bound=Callable[[Options], Method])
_METHODS: dict[str, Callable[[Options], Method]] = {}

#: The built-in methods; each is in a module of its name.
BUILT_IN = ("exact", "means", "projected", "ekfac")


def method(name: str) -> Callable[[_Class], _Class]:
    """Register the decorated class under a name; it is created from `Options`."""

    def register(made: _Class) -> _Class:
        _METHODS[name] = made
        return made

    return register


def method_of(options: Options) -> Method:
    """Create the method that the options select.

    Raises:
        TracInError: there is no method of this name, or it cannot do what other options ask for.

    Example:
        >>> method_of(Options(language_means=True)).measure
        'mean'
    """
    for module in BUILT_IN:
        importlib.import_module(f"lightning_tracin.attribution.{module}")
    name = options.method_name
    if name not in _METHODS:
        raise TracInError(f"There is no method {name!r}; the methods are {', '.join(sorted(_METHODS))}.")
    made, used = _METHODS[name](options), f"preconditioner={options.preconditioner!r}"
    for asked, can in (
        ("a mask" if options.mask is not None else None, made.takes_scales),
        (used if options.preconditioner in SCALED else None, made.takes_scales),
        (used if options.preconditioner in WHITENED else None, made.whitens),
        ("per_token=True" if options.per_token else None, made.metric is None),
    ):
        if asked is not None and not can:
            raise TracInError(f"The method {name!r} does not support {asked}; leave it out, or use another method.")
    return made
