"""dattri-llm's `TracInAttributor` (https://github.com/TRAIS-Lab/dattri-llm), on the fly, with the summed loss."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from contextlib import ExitStack
from typing import Any

import pytorch_lightning as pl
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.account_fit import Order, Sums, fit, languages, mean_loss, measured_fall
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


#: How its training callback is set up.
IN_RUN = (
    "DataSelectionCallback with the mean gradient of all probes as target in every step, which drops nothing; its scores times "
    "the learning rate, which is the fall to first order under plain SGD"
)


def in_run(workload: Workload, epochs: int, rate: float) -> Sums:
    """The scores of its training callback in a fit, summed by train language, times the learning rate."""
    scored = _Scored(workload)
    took, module = fit(workload, epochs, [scored], rate)
    fitted: Any = module
    return Sums(dict(scored.nats), measured_fall(fitted.model, workload), took)


class _Scored(pl.Callback):
    """Lets the callback score the samples of each step."""

    def __init__(self, workload: Workload) -> None:
        self._workload, self._languages = workload, languages(len(workload.train))
        self._batches = list(Order(len(workload.train)))
        self._context = ExitStack()
        self.nats: dict[str, float] = defaultdict(float)

    def on_train_start(self, _trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        from dattri_llm import REGISTER_ALL, DataSelectionCallback, HookManager, HookManagerConfig

        model: Any = pl_module.model
        probes = DataLoader(self._workload.probes, batch_size=len(self._workload.probes))
        self._selection = DataSelectionCallback(
            model,
            target="val_loader",
            val_loader=list(probes),
            val_loss_fn=lambda one, _batch: mean_loss(one, self._workload),
            selection_kwargs={"threshold": float("-inf")},
        )
        manager = HookManager(model, config=HookManagerConfig(linear_io=REGISTER_ALL), callbacks=[self._selection])
        self._context.enter_context(manager.collect(deregister_on_exit=True))

    def on_train_batch_end(self, trainer: pl.Trainer, *given: Any) -> None:
        rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        for index, score in zip(self._batches[given[-1]], self._selection.last_scores.tolist(), strict=True):
            self.nats[self._languages[index]] += rate * score

    def on_train_end(self, *_: Any) -> None:
        self._context.close()
