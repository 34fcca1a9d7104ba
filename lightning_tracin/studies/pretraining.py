"""Pre-training of a small multilingual encoder by masked language modelling (Devlin et al. 2019).

It replaces a downloaded model: pre-training on the unlabelled texts of the data, all languages together, takes some minutes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import DataCollatorForLanguageModeling, XLMRobertaForMaskedLM

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets import Split
from lightning_tracin.studies.models.classifier import adamw_with_warmup, small_config
from lightning_tracin.studies.quiet import quiet_trainer
from lightning_tracin.studies.settings import FitSettings
from lightning_tracin.studies.text_data import texts_of, train_tokenizer


class MaskedLanguageModel(pl.LightningModule):
    """Pre-trains with AdamW, a linear warm-up and a linear decay to zero."""

    def __init__(self, model: XLMRobertaForMaskedLM, *, learning_rate: float) -> None:
        super().__init__()
        self.model, self.learning_rate = model, learning_rate
        self.losses: list[float] = []  # mean loss of each epoch
        self._sum, self._count = 0.0, 0

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return the mean loss over the masked positions of a batch; logits of other positions are not computed."""
        states = self.model.base_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        masked = batch["labels"] != -100  # how transformers marks positions without a target
        loss = cross_entropy(self.model.lm_head(states[masked]), batch["labels"][masked])
        self._sum, self._count = self._sum + float(loss.detach()), self._count + 1
        self.log("masked_loss", loss, prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        """Store the epoch's mean loss."""
        self.losses.append(self._sum / max(1, self._count))
        self._sum, self._count = 0.0, 0

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW with a schedule that advances after every step."""
        return adamw_with_warmup(self, self.learning_rate, warmup=0.1, weight_decay=0.01)


def with_encoder(options: FitSettings, split: Split, folder: Path, *, progress: bool = True) -> FitSettings:
    """Pre-train an encoder unless it exists, and return the settings of a fit that starts from it.

    Args:
        options: settings of the fit; with `pretraining_epochs=0` they are returned unchanged.
        split: the data; the encoder is trained on all texts, without labels.
        folder: folder of the encoder.
        progress: whether to show a progress bar.

    Raises:
        TracInError: `options.model` is not `small`; or see `pretrain`.
    """
    if not options.pretraining_epochs:
        return options
    if options.model != "small":
        raise TracInError(
            f"pretraining_epochs={options.pretraining_epochs} is for a small model, but model is {options.model!r}; leave out "
            "one of the two."
        )
    parts = (split.train, split.probes, split.test, split.extra)
    pretrain([text for part in parts for text in texts_of(part)], options, folder, progress=progress)
    return replace(options, model=str(folder.resolve()), pretraining_epochs=0, threads=options.threads or 1)


def pretrain(texts: Sequence[str], options: FitSettings, folder: Path, *, progress: bool = True) -> None:
    """Train a tokenizer and an encoder on texts, and write both to a folder that `from_pretrained` can read.

    The folder appears only when pre-training is complete.

    Args:
        texts: unlabelled texts of all languages.
        options: vocabulary, sizes, seed, and `pretraining_*`.
        folder: output folder; if it exists, nothing is done. Its `pretraining.json` holds the mean loss of each epoch.
        progress: whether to show a progress bar.

    Raises:
        TracInError: there is no text, or the vocabulary is smaller than the number of characters.
    """
    if folder.exists():
        return
    distinct = list(dict.fromkeys(text for text in texts if text.strip()))
    if not distinct:
        raise TracInError("The data have no text to pre-train on; name the column of the text as text_column.")
    tokenizer = train_tokenizer(distinct, options.vocabulary_size, masked=True)
    with torch.random.fork_rng(devices=[]):
        pl.seed_everything(options.seed, verbose=False)
        module = MaskedLanguageModel(
            XLMRobertaForMaskedLM(small_config(tokenizer, options)), learning_rate=options.pretraining_learning_rate
        )
        encoded = tokenizer(distinct, truncation=True, max_length=options.max_length)["input_ids"]
        loader: DataLoader[Any] = DataLoader(
            [{"input_ids": ids} for ids in encoded],  # type: ignore[arg-type]
            batch_size=options.pretraining_batch_size,
            shuffle=True,
            collate_fn=DataCollatorForLanguageModeling(tokenizer),
        )
        quiet_trainer(max_epochs=options.pretraining_epochs, enable_progress_bar=progress).fit(module, loader)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    module.model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    (partial / "pretraining.json").write_text(json.dumps({"texts": len(distinct), "losses": module.losses}, indent=1))
    partial.rename(folder)
