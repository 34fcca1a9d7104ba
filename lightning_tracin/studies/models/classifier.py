"""An ordinary LightningModule around a Hugging Face sequence classifier; it does not know about influence."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    get_linear_schedule_with_warmup,
)

from lightning_tracin.errors import TracInError, needs
from lightning_tracin.studies.datasets import Split
from lightning_tracin.studies.settings import FitSettings
from lightning_tracin.studies.text_data import pretrained_tokenizer, texts_of, train_tokenizer


class Classifier(pl.LightningModule):
    """Fine-tunes with AdamW, a linear warm-up and a linear decay to zero.

    Args:
        model: the classifier.
        learning_rate: the highest one.
        warmup: share of the optimizer steps that belong to the warm-up.
        weight_decay: of AdamW.

    Raises:
        MissingPackageError: torchmetrics is not installed.
    """

    def __init__(self, model: PreTrainedModel, *, learning_rate: float, warmup: float, weight_decay: float) -> None:
        super().__init__()
        self.model = model
        self.learning_rate, self.warmup, self.weight_decay = learning_rate, warmup, weight_decay
        classes = model.config.num_labels
        metrics = needs("torchmetrics.classification", "study", "Classifiers of a study")
        self.train_accuracy = metrics.MulticlassAccuracy(classes, average="micro")
        self.val_accuracy = metrics.MulticlassAccuracy(classes, average="micro")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return the mean loss of a batch."""
        output = self.model(**batch)
        self.train_accuracy(output.logits, batch["labels"])
        self.log("train_loss", output.loss, prog_bar=True)
        self.log("train_accuracy", self.train_accuracy, on_step=False, on_epoch=True)
        loss: Tensor = output.loss
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:  # noqa: ARG002
        """Log loss and accuracy of a batch."""
        output = self.model(**batch)
        self.val_accuracy(output.logits, batch["labels"])
        self.log("val_loss", output.loss)
        self.log("val_accuracy", self.val_accuracy, prog_bar=True)

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return the most probable label of each sample."""
        logits: Tensor = self.model(**batch).logits
        return logits.argmax(dim=-1)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW with a schedule that is advanced after every step."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = get_linear_schedule_with_warmup(  # type: ignore[no-untyped-call]
            optimizer, int(self.warmup * steps), steps
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def tokenizer_and_model(options: FitSettings, split: Split) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Return a tokenizer trained on the train samples with a small model, or load both."""
    labels = split.train.features["label"].names
    if options.model == "small":
        tokenizer = train_tokenizer(texts_of(split.train), options.vocabulary_size)
        model = small_model(tokenizer, labels, options)
    else:
        tokenizer, model = pretrained_tokenizer(options.model), pretrained_model(options.model, labels)
    for part in model.modules():
        if isinstance(part, nn.Dropout) and options.dropout is not None:
            part.p = options.dropout
    return tokenizer, model


def small_model(tokenizer: PreTrainedTokenizerBase, labels: list[str], options: FitSettings) -> PreTrainedModel:
    """Return an XLM-R of the given size with random weights."""
    return XLMRobertaForSequenceClassification(small_config(tokenizer, options, **label_names(labels)))


def small_config(tokenizer: PreTrainedTokenizerBase, options: FitSettings, **more: Any) -> XLMRobertaConfig:
    """Return the configuration of an XLM-R of the given size."""
    return XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden_size,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        intermediate_size=4 * options.hidden_size,
        max_position_embeddings=options.max_length + 2,  # RoBERTa counts positions from the padding token's id on, which is 1
        type_vocab_size=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **more,
    )


def pretrained_model(name: str, labels: list[str]) -> PreTrainedModel:
    """Load a model from a local folder or the Hugging Face hub, with a classification head for these labels.

    Raises:
        TracInError: It does not exist, or there is no network.
    """
    try:
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            name, ignore_mismatched_sizes=True, **label_names(labels)
        )
    except OSError as error:
        raise TracInError(
            f"The model {name!r} is neither a local folder nor available from the Hugging Face hub: correct the name; "
            "without a network, download it elsewhere, copy the folder and give its path as --model, or use --model "
            "small."
        ) from error
    model.train()  # a loaded model is in evaluation mode, without dropout
    return model


def label_names(labels: list[str]) -> dict[str, Any]:
    """Return the class names as a Hugging Face configuration takes them."""
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
