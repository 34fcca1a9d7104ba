"""What a method of attribution is, and which ones there are.

A method computes something of every train sample and probe at a snapshot, stores it, and knows how scores follow from it. The
rest of the package asks the method; nothing else compares its name. A new one is one module: a class under `@method("name")`,
chosen by `TracInCallback(method="name")`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from lightning_tracin.attribution.batching import Job, Target
from lightning_tracin.attribution.cost import Cost
from lightning_tracin.attribution.processes import Processes
from lightning_tracin.config import Measure, Options, Similarity
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.records import SpotCheck
from lightning_tracin.storage.sample_table import SampleTable
from lightning_tracin.storage.shards import Ingredients
from lightning_tracin.storage.snapshots import Snapshot


class Store(Protocol):
    """What a method has stored of one snapshot."""

    @property
    def folder(self) -> Path:
        """The folder of its files."""

    def is_complete(self) -> bool:
        """Whether nothing is missing or damaged."""


class Method(Protocol):
    """One way to compute influence.

    Attributes:
        measure: what tables and curves show; `"share"` ranks the train samples of each probe, `"mean"` needs no ranks.
        adds_probes: whether probes can be added later without another pass over the train samples.
        whitens: whether scores can be taken under the Fisher information of what is stored.
        layer_cosine: whether a layer's own cosine follows from what is stored.
        banks_probes: whether it multiplies with a bank of the probes' gradients, batch by batch.
    """

    measure: Measure
    adds_probes: bool
    whitens: bool
    layer_cosine: bool
    banks_probes: bool

    def store(self, directory: RunDirectory, snapshot: Snapshot) -> Store:
        """Where the products of a snapshot are stored, or will be."""

    def columns(self, directory: RunDirectory) -> int:
        """Number of products for each train sample."""

    def queries(self, probes: SampleTable) -> SampleTable:
        """What influence is on: the probes, or sums of them."""

    def compute(self, target: Target, job: Job, directory: RunDirectory, snapshot: Snapshot, processes: Processes) -> None:
        """Compute and store what is missing of a snapshot; ranks share the work.

        Raises:
            TracInError: a loss or gradient is not finite; the message names the sample and the snapshot.
        """

    def check(self, target: Target, job: Job, directory: RunDirectory, snapshot: Snapshot) -> SpotCheck:
        """Compare some of what is stored with single samples' gradients by plain autograd.

        Raises:
            TracInError: they differ by more than rounding.
        """

    def cost(self, target: Target, job: Job) -> Cost:
        """What one snapshot's pass will take, by the pace of a few batches."""

    def stored_bytes(self, parts: int, train: int, probes: SampleTable) -> int:
        """Size of one snapshot's products on disk."""

    def readable(self, ingredients: Ingredients, similarity: Similarity) -> tuple[Ingredients, Similarity]:
        """The columns that a similarity is taken on, and the formula by which scores follow from them."""


_Class = TypeVar("_Class", bound=Callable[[Options], Method])
_METHODS: dict[str, Callable[[Options], Method]] = {}

#: The modules of the methods that come with the package.
_OWN = ("exact", "means", "projected")


def method(name: str) -> Callable[[_Class], _Class]:
    """Register the decorated class, which is built from `Options`, as the method of this name."""

    def register(made: _Class) -> _Class:
        _METHODS[name] = made
        return made

    return register


def method_of(options: Options) -> Method:
    """The method that options choose.

    Raises:
        TracInError: there is none of this name.
    """
    for module in _OWN:
        importlib.import_module(f"lightning_tracin.attribution.{module}")
    name = options.method_name
    if name not in _METHODS:
        raise TracInError(f"There is no method {name!r}; there are {', '.join(sorted(_METHODS))}.")
    return _METHODS[name](options)
