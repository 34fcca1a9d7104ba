"""Choose sentences to add for one language by their influence on its probes, and check the choice by fitting again.

Without options it uses names from the Unicode CLDR and a small model. `docs/selecting-data.md` says what the scores can promise.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
from datasets import Dataset, concatenate_datasets
from jsonargparse import auto_cli

from lightning_tracin import TracInCallback, TracInRun
from lightning_tracin.studies.data import load_split
from lightning_tracin.studies.models.classifier import Classifier, tokenizer_and_model
from lightning_tracin.studies.settings import FitSettings
from lightning_tracin.studies.text_data import TextDataModule


@dataclasses.dataclass(frozen=True)
class Selection(FitSettings):
    """Choose sentences to add for one language, and check the choice by fitting again.

    Args:
        language: Probe language to help.
        candidates: Number of candidate sentences of each train language.
        add: Number of sentences to add.
        output: Folder of the run.
    """

    language: str = "nl"
    candidates: int = 200
    add: int = 100
    output: str = "runs/select_data"


def main(options: Selection) -> None:
    split, _ = load_split(options, extra=options.candidates)
    tokenizer, _ = tokenizer_and_model(options, split)
    data = TextDataModule(split, tokenizer, batch_size=options.batch_size, max_length=options.max_length)
    train, candidates = data.train, data.extra

    def loss_after_fit(samples: Dataset, *callbacks: pl.Callback) -> tuple[Classifier, float]:
        """Fit on samples; the loss is that of the language's test samples, which no choice has seen."""
        pl.seed_everything(options.seed)
        model = tokenizer_and_model(options, split)[1]
        module = Classifier(model, learning_rate=options.learning_rate, warmup=options.warmup, weight_decay=options.weight_decay)
        data.train = samples
        quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "enable_progress_bar": False}
        trainer = pl.Trainer(max_epochs=options.epochs, callbacks=list(callbacks), **quiet)  # type: ignore[arg-type]
        trainer.fit(module, datamodule=data)
        own = np.flatnonzero(np.array(split.test.with_format(None)["language"]) == options.language)
        return module, trainer.validate(module, data.loader(data.test.select(own)), verbose=False)[0]["val_loss"]

    tracin = TracInCallback(options.output, item_column="item", max_probes_per_language=None, top_k=1, projection_dim=1024)
    module, before = loss_after_fit(train, tracin)
    scores = TracInRun.open(Path(options.output)).score(module, data.loader(candidates), similarity="dot")
    mine = scores.sel(probe=scores["probe_language"] == options.language).mean("probe")
    print(f"Mean influence on {options.language}:\n{mine.groupby('candidate_language').mean().to_series().to_string()}")
    best = np.argsort(-mine.to_numpy(), kind="stable")[: options.add]
    drawn = np.random.default_rng(options.seed).permutation(len(candidates))[: options.add]
    print(f"Loss on {options.language} without more data: {before:.4f}")
    for name, chosen in (("of highest influence", best), ("drawn at random", drawn)):
        larger = concatenate_datasets([train, candidates.select(chosen)]).with_format(columns=train.format["columns"])
        _, after = loss_after_fit(larger)
        print(f"Loss on {options.language} with {len(chosen)} sentences {name}: {after:.4f}")


if __name__ == "__main__":
    main(auto_cli(Selection, as_positional=False))
