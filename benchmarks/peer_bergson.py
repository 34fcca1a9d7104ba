"""bergson's in-memory scoring (https://github.com/EleutherAI/bergson): probe gradients are held, train samples are streamed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import Tensor, nn

from benchmarks.contenders import Contender, with_embeddings_only_trainable
from benchmarks.scopes import inner_linear_weights
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
