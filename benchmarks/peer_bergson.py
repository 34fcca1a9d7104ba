"""bergson's in-memory scoring (https://github.com/EleutherAI/bergson): probe gradients are held, train samples are streamed."""

from __future__ import annotations

import copy
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from benchmarks.account_fit import BATCH_SIZE, Sums, languages, mean_loss, measured_fall
from benchmarks.contenders import Contender, with_embeddings_only_trainable
from benchmarks.scopes import inner_linear_weights
from benchmarks.timing import seconds
from benchmarks.workloads import Sentences, Workload


def scores(workload: Workload, batch_size: int) -> Tensor:
    """Unprojected gradients of all probes are held in memory; one pass over the train samples scores them."""
    from bergson import Scorer
    from bergson.score.score_writer import InMemorySequenceScoreWriter

    held = _collected(workload.model, workload.probes, batch_size, None).gradients
    writer = InMemorySequenceScoreWriter(len(workload.train), len(workload.probes))
    dtype = next(iter(held.values())).dtype
    scorer = Scorer(held, list(held), writer, workload.device, dtype)
    _collected(workload.model, workload.train, batch_size, scorer)
    found = writer.scores
    assert isinstance(found, Tensor)
    return found


def _collected(model: nn.Module, samples: Sentences, batch_size: int, scorer: Any) -> Any:
    """The collector of bergson after one pass over the samples; it packs samples of similar length up to a number of tokens."""
    from bergson import CollectorComputer, GradientProcessor, IndexConfig, InMemoryCollector
    from bergson.data import allocate_batches

    lengths = [len(tokens) for tokens in samples.tokens]
    data = Dataset.from_dict({"input_ids": [tokens.tolist() for tokens in samples.tokens], "length": lengths})
    with tempfile.TemporaryDirectory() as folder:
        config = IndexConfig(run_path=str(Path(folder) / "run"), token_batch_size=batch_size * max(lengths))
        config.partial_run_path.mkdir()
        body = model.base_model
        collector = InMemoryCollector(
            model=body,
            cfg=config,
            processor=GradientProcessor(),
            data=data,
            scorer=scorer,
        )
        batches = allocate_batches(lengths, config.token_batch_size)
        computer = CollectorComputer(model, data, collector=collector, batches=batches, cfg=config)
        computer.run_with_collector_hooks(desc="benchmark")
    return collector


BERGSON = Contender(
    "bergson",
    "bergson",
    scores,
    (8, 32, 64),
    "InMemoryCollector and Scorer, projection_dim=0, loss_reduction='sum', the model frozen but for its input embeddings as its "
    "own pipeline does; it takes Linear weights below the head, so both sides score these",
    prepare=with_embeddings_only_trainable,
    scope=inner_linear_weights,
    bytes_needed=lambda workload, batch_size: (
        4
        * sum(p.numel() for n, p in workload.model.named_parameters() if n in inner_linear_weights(workload.model))
        * (2 * len(workload.probes) + batch_size)
    ),
)


#: How its training callback is set up.
IN_RUN = (
    "GradientCollectorCallback in a Trainer of transformers (batches in its own order), projection_dim=0, float32, and its "
    "defaults: each sample's gradient times the learning rate over the root of Adam's second moment, without momentum, Linear "
    "weights below the head; times the mean gradient of all probes after the fit"
)


def in_run(workload: Workload, epochs: int, rate: float) -> Sums:
    """The gradients that its training callback keeps, summed by train language, times the gradient of the probes at the end."""
    from bergson.huggingface import GradientCollectorCallback, prepare_for_gradient_collection
    from transformers import Trainer, TrainingArguments

    model: Any = copy.deepcopy(workload.model)
    samples, spoken = workload.train, languages(len(workload.train))
    nats: dict[str, float] = defaultdict(float)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=BATCH_SIZE,
            learning_rate=rate,
            lr_scheduler_type="constant",
            weight_decay=0.01,
            max_grad_norm=0.0,
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
            report_to=[],
        )
        collector = GradientCollectorCallback(Path(folder) / "gradients", projection_dim=0, dtype=np.dtype(np.float32))
        data = Dataset.from_dict({"labels": [int(label) for label in samples.labels], "place": list(range(len(samples)))})

        def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
            batch: dict[str, Tensor] = torch.utils.data.default_collate(samples.__getitems__([row["_idx"] for row in rows]))
            return batch

        trainer = Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate, callbacks=[collector])
        took = seconds(prepare_for_gradient_collection(trainer).train)
        model.eval()
        weights = {name: one.weight for name, one in model.base_model.named_modules() if isinstance(one, nn.Linear)}
        gradients = torch.autograd.grad(mean_loss(model, workload), list(weights.values()))
        probes = dict(zip(weights, gradients, strict=True))
        for path in sorted((Path(folder) / "gradients").glob("train/epoch_*")):
            for index, value in enumerate(_products(path, collector.grad_offsets, probes)):
                nats[spoken[index]] += value
    return Sums(dict(nats), measured_fall(model, workload), took)


def _products(path: Path, offsets: dict[str, tuple[int, int]], probes: dict[str, Tensor]) -> list[float]:
    """The inner product of each kept gradient with that of the probes."""
    from bergson.data import load_gradients

    kept = torch.from_numpy(np.array(load_gradients(path)))
    total = torch.zeros(len(kept))
    for name, (low, high) in offsets.items():
        total += kept[:, low:high] @ probes[name].flatten()
    return [float(value) for value in total]
