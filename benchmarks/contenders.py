"""A contender: another library that computes the same scores, at its best settings."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata

from torch import Tensor, nn

from benchmarks.scopes import Scope, everything
from benchmarks.workloads import Workload

#: From a workload and a batch size to scores [train, probes], in the workload's order.
Scorer = Callable[[Workload, int], Tensor]


@dataclass(frozen=True)
class Contender:
    """One peer as it is measured.

    Args:
        name: as shown in tables.
        distribution: as it is installed.
        scores: computes the scores; imports the peer when called.
        batch_sizes: those tried; the fastest is used.
        settings: how it is set up, for readers.
        prepare: what it does to a model once; not timed.
        scope: which parameters both sides score.
        exact: whether its scores should equal ours; if not, their distance is shown.
        bytes_needed: memory that a workload takes at a batch size, computed.
    """

    name: str
    distribution: str
    scores: Scorer
    batch_sizes: tuple[int, ...]
    settings: str
    prepare: Callable[[Workload], Workload] = lambda workload: workload
    scope: Scope = everything
    exact: bool = True
    bytes_needed: Callable[[Workload, int], int] = lambda _workload, _batch_size: 0

    @property
    def version(self) -> str | None:
        """The installed version, None where it is not installed."""
        return version_of(self.distribution)


def with_embeddings_only_trainable(workload: Workload) -> Workload:
    """The workload with a copy of its model in which only embeddings require gradients.

    Hooks still see the gradients of activations, and no unused weight gradient is computed.
    """
    model = copy.deepcopy(workload.model).requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.requires_grad_(True)
    return replace(workload, model=model)


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution, None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def parameter_bytes(workload: Workload) -> int:
    """Bytes of the model's parameters."""
    return sum(parameter.numel() * parameter.element_size() for parameter in workload.model.parameters())
