"""kronfluence's pairwise scores with the `identity` strategy (https://github.com/pomonam/kronfluence): plain inner products."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from benchmarks.contenders import Contender
from benchmarks.scopes import linear_layers
from benchmarks.workloads import Loss, Workload


def prepare(workload: Workload) -> Workload:
    """The workload with a copy of its model in which kronfluence has replaced the layers that it tracks."""
    from kronfluence.analyzer import prepare_model

    return replace(workload, model=prepare_model(copy.deepcopy(workload.model), _task(workload.loss)))


def scores(workload: Workload, batch_size: int) -> Tensor:
    """All probes in one go, train samples by batches."""
    from kronfluence.analyzer import Analyzer
    from kronfluence.arguments import FactorArguments, ScoreArguments

    on_cpu = workload.device.type == "cpu"
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer("benchmark", workload.model, _task(workload.loss), cpu=on_cpu, disable_tqdm=True, output_dir=folder)
        analyzer.fit_all_factors("identity", workload.train, batch_size, factor_args=FactorArguments(strategy="identity"))
        analyzer.compute_pairwise_scores(
            "scores",
            "identity",
            query_dataset=workload.probes,
            train_dataset=workload.train,
            per_device_query_batch_size=len(workload.probes),
            per_device_train_batch_size=batch_size,
            score_args=ScoreArguments(),
        )
        found = analyzer.load_pairwise_scores("scores")["all_modules"]
    assert isinstance(found, Tensor)
    return found.T


def _task(loss: Loss) -> object:
    from kronfluence.task import Task

    class SummedLoss(Task):  # type: ignore[misc]
        """The workload's loss on both sides."""

        def compute_train_loss(self, batch: Mapping[str, Tensor], model: nn.Module, sample: bool = False) -> Tensor:
            assert not sample
            return loss(model, batch)

        def compute_measurement(self, batch: Mapping[str, Tensor], model: nn.Module) -> Tensor:
            return loss(model, batch)

    return SummedLoss()


KRONFLUENCE = Contender(
    "kronfluence identity",
    "kronfluence",
    scores,
    (8, 32, 64),
    "strategy 'identity', all probes in one batch; it tracks Linear layers only (weight and bias), so both sides score these",
    prepare=prepare,
    scope=linear_layers,
)
