"""dattri-llm's `TracInAttributor` (https://github.com/TRAIS-Lab/dattri-llm), on the fly, with the summed loss."""

from __future__ import annotations

import tempfile

from torch import Tensor

from benchmarks.contenders import Contender, parameter_bytes, with_embeddings_only_trainable
from benchmarks.workloads import Workload


def scores(workload: Workload, batch_size: int) -> Tensor:
    """Its documented single call, `attribute`, over every layer that has a parameter."""
    from dattri_llm import REGISTER_ALL, AttributionArguments, AttributionTask, HookManagerConfig, TracInAttributor

    with tempfile.TemporaryDirectory() as folder:
        arguments = AttributionArguments(
            output_dir=folder,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=batch_size,
            use_cpu=workload.device.type == "cpu",
            dataloader_pin_memory=workload.device.type != "cpu",
        )
        task = AttributionTask(loss_func=workload.loss, model=workload.model)
        attributor = TracInAttributor(arguments, task=task)
        result = attributor.attribute(
            workload.train, workload.probes, hook_config=HookManagerConfig(linear_io=REGISTER_ALL, include_frozen=True)
        )
    found = result.scores
    assert isinstance(found, Tensor)
    return found


def _bytes_needed(workload: Workload, batch_size: int) -> int:
    return parameter_bytes(workload) * (2 * len(workload.probes) + batch_size)


DATTRI_LLM = Contender(
    "dattri-llm TracIn",
    "dattri-llm",
    scores,
    (16, 32, 64),
    "TracInAttributor.attribute on the model as it is, all layers hooked, streamed (nothing written but the scores)",
    bytes_needed=_bytes_needed,
)

FROZEN = Contender(
    "dattri-llm TracIn, weights frozen",
    "dattri-llm",
    scores,
    (16, 32, 64),
    "the same with all but the embeddings frozen by hand (include_frozen=True), so that no weight's gradient is computed in vain",
    prepare=with_embeddings_only_trainable,
    bytes_needed=_bytes_needed,
)
