"""Fine-tune a multilingual classifier and see which languages' training data it relies on for each language.

Without options it fine-tunes a pretrained multilingual sentence encoder on names from the Unicode CLDR, downloads nothing, and
takes a few minutes on a laptop. `--model scratch` trains a small XLM-R from scratch instead. `--help` lists the options.
`finetune_options/` has files of options for public data sets: `finetune.py --config examples/finetune_options/nusax.yaml
--data_dir FOLDER`.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from pathlib import Path
from typing import Literal

import datasets
import pandas as pd
import pytorch_lightning as pl
import torch
import wandb
from jsonargparse import auto_cli
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from lightning_tracin import ContributionCallback, TracInCallback, TracInError, TracInRun
from lightning_tracin.analysis.contributions import whole_fit
from lightning_tracin.errors import printable
from lightning_tracin.studies.data import load_split
from lightning_tracin.studies.datasets import Split
from lightning_tracin.studies.models.classifier import Classifier, tokenizer_and_model
from lightning_tracin.studies.models.shipped_encoder import NAME, is_installed
from lightning_tracin.studies.pretraining import with_encoder
from lightning_tracin.studies.settings import FitSettings
from lightning_tracin.studies.text_data import TextDataModule


@dataclasses.dataclass(frozen=True)
class Finetuning(FitSettings):
    """Fine-tune a multilingual classifier and see which languages' training data it relies on.

    Without options: names from the Unicode CLDR, a pretrained sentence encoder whose embeddings are frozen, five train
    languages and more that are only probed.

    Args:
        model: ``use-multilingual``, the pretrained encoder; ``scratch``, a small XLM-R from scratch; a name on the hub, or a
            folder.
        freeze_embeddings: Whether the embeddings of a pretrained model keep their values.
        epochs: Epochs of fine-tuning; from scratch, 6 are better.
        learning_rate: Highest learning rate; from scratch, 0.001 is better.
        batch_size: Samples in one optimizer step; from scratch, 32 are better.
        top_k: Number of proponents of a probe that count in its reliance.
        output: Folder for everything; by default ``runs/<data>``. A number is added if the folder is in use.
        wandb_mode: ``disabled`` logs to CSV files instead.
    """

    model: str = NAME
    freeze_embeddings: bool = True
    epochs: int = 4
    learning_rate: float = 3e-4
    batch_size: int = 64
    top_k: int = 100
    output: str | None = None
    wandb_mode: Literal["offline", "online", "disabled"] = "offline"


def main() -> None:
    options = auto_cli(Finetuning, as_positional=False)
    datasets.disable_progress_bars()
    try:
        finetune(options)
    except TracInError as error:
        raise SystemExit(f"Error: {error}") from error


def finetune(asked: Finetuning) -> None:
    """Fine-tune with both callbacks, then print accuracy, contributions, influence, and the paths of the results."""
    pl.seed_everything(asked.seed)
    options = with_available_model(asked)
    if options.threads or options.model == "small":
        torch.set_num_threads(options.threads or 1)
    split, account = load_split(options)
    print(printable(f"Data: {account}"))
    output = fresh_directory(Path(options.output or f"runs/{slug(options.data)}"))
    tokenizer, model = tokenizer_and_model(with_encoder(options, split, output / "encoder"), split)
    data = TextDataModule(split, tokenizer, batch_size=options.batch_size, max_length=options.max_length)
    print(
        f"{len(split.train):,} train samples, {len(split.probes):,} probes, {len(split.test):,} test samples; "
        f"a model of {model.num_parameters():,} parameters, a vocabulary of {len(tokenizer):,} pieces"
    )
    logger = logger_for(options, output)

    tracin = TracInCallback(
        dirpath=output,
        max_probes_per_language=None,
        language_column="language",
        item_column="item",
        top_k=options.top_k,
        batch_size=64,
    )
    contribution = ContributionCallback(dirpath=output, language_column="language", item_column="item", batch_size=64)
    trainer = pl.Trainer(
        max_epochs=options.epochs,
        callbacks=[tracin, contribution],
        logger=logger,
        default_root_dir=output,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    module = Classifier(model, learning_rate=options.learning_rate, warmup=options.warmup, weight_decay=options.weight_decay)
    trainer.fit(module, datamodule=data)

    predictions = torch.cat(trainer.predict(module, datamodule=data))  # type: ignore[arg-type]
    run = TracInRun.open(output)
    print(printable(f"\nAccuracy on the test samples\n{accuracies(split, predictions.tolist())}"))
    print(printable(f"\nContributions, in nats: whose samples lowered the loss of each language\n{contributions(run)}"))
    print(printable(f"\nInfluence of languages, all {len(run.snapshots)} snapshots summed\n{influence(run)}"))
    print(f"\nRun directory: {output}")
    for path in sorted((output / "results").iterdir()):
        print(f"  {path}")
    if isinstance(logger, WandbLogger):
        folder = Path(logger.experiment.dir).parent
        wandb.finish()
        print(f"W&B run: {folder}")
        if options.wandb_mode == "offline":
            print(f"To upload it: wandb sync {folder}")


def with_available_model(options: Finetuning) -> Finetuning:
    """The options with the small model for `scratch`, and where the package with the pretrained weights is not installed."""
    if options.model == NAME and not is_installed():
        print(
            f"The weights of {NAME!r} are not installed, so a small model is trained from scratch, which transfers little from "
            "one language to another (and learns more with --epochs 6 --batch_size 32 --learning_rate 0.001). To have them: "
            "pip install 'lightning-tracin[study]'"
        )
    elif options.model != "scratch":
        return options
    return dataclasses.replace(options, model="small", freeze_embeddings=False)


def accuracies(split: Split, predictions: list[int]) -> str:
    """Return a table: the model's accuracy, and that of always predicting the most frequent train label."""
    majority = Counter(split.train.with_format(None)["label"]).most_common(1)[0][0]
    samples = split.test.with_format(None)
    labels = pd.Series(samples["label"])
    zero_shot = set(samples["language"]) - set(split.train.with_format(None)["language"])
    table = pd.DataFrame(
        {
            "language": [f"{language} (zero-shot)" if language in zero_shot else language for language in samples["language"]],
            "accuracy": labels == pd.Series(predictions),
            "majority class": labels == majority,
        }
    )
    parts = table.groupby("language", sort=False).mean()
    parts.loc["all"] = table.drop(columns="language").mean()
    return str(parts.assign(samples=[*table["language"].value_counts(sort=False), len(table)]).round(3).to_string())


def contributions(run: TracInRun) -> str:
    """Return a table with a row for each probe language: how far its loss fell, and which train language did how much of it."""
    whole = whole_fit(run.contributions(cumulative=True))
    table = whole.pivot(index="probe_language", columns="train_language", values="nats")[whole["train_language"].unique()]
    table.insert(0, "fall", whole.groupby("probe_language")["fall"].first())
    return str(table.round(3).to_string())


def influence(run: TracInRun) -> str:
    """Return two tables with a row for each probe language and a column for each train language: influence, and its contrast."""
    table = run.reliance(cumulative=True)
    last = table[table["snapshot"] == table["snapshot"].max()]
    sums, contrast = (last.pivot(index="probe_language", columns="train_language", values=name) for name in ("value", "contrast"))
    return (
        f"Sum over each language's samples, {last['unit'].iloc[0]}\n{sums.round(3).to_string()}\n\n"
        f"Contrast: what is there in particular, without row and column effects\n{contrast.round(3).to_string()}"
    )


def fresh_directory(path: Path) -> Path:
    """Make a new directory; a number is added to the name if it is in use."""
    number = 1
    fresh = path
    while fresh.exists() and (not fresh.is_dir() or any(fresh.iterdir())):
        number += 1
        fresh = path.with_name(f"{path.name}-{number}")
    fresh.mkdir(parents=True, exist_ok=True)
    return fresh


def slug(name: str) -> str:
    """Return the last two parts of a name or path as one word."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(Path(name).parts[-2:]).lower()).strip("-")


def logger_for(options: Finetuning, output: Path) -> Logger:
    """Return the logger that the options choose."""
    if options.wandb_mode == "disabled":
        return CSVLogger(output, name="metrics")
    offline = options.wandb_mode == "offline"  # the script prints itself where an offline run is
    settings = wandb.Settings(silent=offline)
    return WandbLogger(project="lightning-tracin", name=output.name, save_dir=output, offline=offline, settings=settings)


if __name__ == "__main__":
    main()
