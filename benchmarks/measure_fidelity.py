"""How well projected features approximate exact gradients, on trained models and real multilingual data.

A small XLM-R is fine-tuned on NusaX and on PAWS-X as `examples/finetune_options` say. Then every train sample's cosine with every
probe is computed exactly, and from features; per probe, the Spearman correlation of the two over the train samples, and the
overlap of the top 100.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import scipy.stats
import torch
import yaml

from benchmarks import ours
from benchmarks.registry import Context, measurement
from benchmarks.report import Report, Result
from lightning_tracin.analysis.feature_products import feature_ingredients
from lightning_tracin.analysis.scores import Scores, snapshot_scores
from lightning_tracin.attribution.batching import Job, free_share
from lightning_tracin.attribution.exact import attribute_snapshot
from lightning_tracin.attribution.losses import loss_named
from lightning_tracin.attribution.projected import prepare_sketch, project_snapshot
from lightning_tracin.attribution.samples import from_loader
from lightning_tracin.config import SampleColumns
from lightning_tracin.storage.features import FeatureStore
from lightning_tracin.storage.ingredients import IngredientStore
from lightning_tracin.storage.shards import Ingredients
from lightning_tracin.studies.data import load_split
from lightning_tracin.studies.models.classifier import Classifier, tokenizer_and_model
from lightning_tracin.studies.settings import FitSettings
from lightning_tracin.studies.text_data import TextDataModule
from lightning_tracin.trainer.isolation import isolated_copy

CONFIGS = Path(__file__).parents[1] / "examples" / "finetune_options"

#: Where the data sets are expected: next to the project.
DATA = Path(__file__).parents[2] / "shared" / "data"
FOLDERS = {"nusax": "nusax-senti", "pawsx": "pawsx-dev"}

#: Samples of the top that are compared, and numbers stored of a sample (two bytes each): those of the figures, and others.
TOP = 100
DIMENSION, OTHERS = 8192, (2048, 32_768)


@measurement("projected_spearman", "projected_top100_overlap")
def fidelity(context: Context) -> Report:
    """Means over the probes of both data sets; low and high are those of one data set."""
    found: dict[str, list[tuple[float, float]]] = {}
    notes = []
    for name, folder in FOLDERS.items():
        if not (DATA / folder).is_dir():
            notes.append(f"projected_spearman, projected_top100_overlap: {folder} was skipped: the data set is missing.")
            continue
        for dim, agreed in agreements(name, context.scale).items():
            if dim == DIMENSION:
                found[name] = agreed
            spearman, overlap = np.mean(agreed, axis=0)
            least = np.min(agreed, axis=0)
            notes.append(
                f"{name}, {dim:,} features ({2 * dim / 1024:.0f} KB): Spearman {spearman:.5f} (least of {len(agreed)} probes "
                f"{least[0]:.5f}), overlap of the top {TOP} {overlap:.3f} (least {least[1]:.2f})."
            )
    results = []
    for position, metric in enumerate(("projected_spearman", "projected_top100_overlap")):
        means = [float(np.mean([pair[position] for pair in agreed])) for agreed in found.values()]
        if means:
            results.append(Result(metric, float(np.mean(means)), min(means), max(means), len(means), f"at {2 * DIMENSION} bytes"))
    return Report(tuple(results), notes=tuple(notes))


def settings_of(name: str) -> FitSettings:
    """The fit of a file of options of `examples/finetune.py`, by the small model (`scratch` in the file).

    Example:
        >>> settings_of("nusax").model
        'small'
    """
    asked = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    asked.pop("output")
    return FitSettings(**{**asked, "model": "small", "data_dir": str(DATA)})


def agreements(name: str, scale: float) -> dict[int, list[tuple[float, float]]]:
    """Train on one data set; number of features -> Spearman correlation and overlap of each probe."""
    options = settings_of(name)
    pl.seed_everything(options.seed)
    split, _ = load_split(options)
    tokenizer, model = tokenizer_and_model(options, split)
    data = TextDataModule(split, tokenizer, batch_size=options.batch_size, max_length=options.max_length)
    module = Classifier(model, learning_rate=options.learning_rate, warmup=options.warmup, weight_decay=options.weight_decay)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    epochs = max(1, round(options.epochs * min(1, scale)))
    pl.Trainer(max_epochs=epochs, accelerator="cpu", enable_model_summary=False, **quiet).fit(module, datamodule=data)
    train, probes = (
        from_loader(loader, SampleColumns(item_column="item"), "samples")
        for loader in (data.train_dataloader(), data.val_dataloader())
    )
    if scale < 1:
        train, probes = (samples.take(range(0, len(samples), round(1 / scale))) for samples in (train, probes))
    copy = isolated_copy(module, torch.float32)  # as the callback does
    loss = loss_named(copy, "training_step (mean)")
    job = Job(train, probes, loss, lambda batch: batch, ours.BATCH_SIZE, free_share(torch.device("cpu")))
    target = ours.target_of(copy)
    with tempfile.TemporaryDirectory() as folder:
        store = IngredientStore(Path(folder) / "exact", len(train), len(probes))
        attribute_snapshot(target, job, store)
        exact = cosine(store.read([0] * len(target.parts)))
        agreed = {}
        for dim in (DIMENSION, *OTHERS):
            features = FeatureStore(Path(folder) / str(dim), len(train), len(probes))
            prepare_sketch(target, job, features, dim)
            project_snapshot(target, job, features)
            agreed[dim] = agreement(exact, cosine(feature_ingredients(features, target.parts, [0] * len(target.parts))))
    return agreed


def cosine(ingredients: Ingredients) -> Scores:
    """The cosine of whole gradients: [train, probes]."""
    return snapshot_scores(ingredients, "cosine", np.ones(len(ingredients.dot)))


def agreement(exact: Scores, estimated: Scores) -> list[tuple[float, float]]:
    """Spearman correlation and overlap of the top of each probe."""
    found = []
    for one, other in zip(exact.T, estimated.T, strict=True):
        tops = [set(np.argsort(-scores, kind="stable")[:TOP].tolist()) for scores in (one, other)]
        found.append((float(scipy.stats.spearmanr(one, other).statistic), len(tops[0] & tops[1]) / len(tops[0])))
    return found
