"""An ordinary LightningModule for a Hugging Face sequence classifier; it knows nothing of influence."""

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

from lightning_tracin.errors import needs
from lightning_tracin.studies.datasets import Split
from lightning_tracin.studies.models.shipped_encoder import NAME, shipped_model, shipped_tokenizer
from lightning_tracin.studies.settings import FitSettings
from lightning_tracin.studies.text_data import found_on_hub, pretrained_tokenizer, texts_of, train_tokenizer


class Classifier(pl.LightningModule):
    """Fine-tunes with AdamW, a linear warm-up and a linear decay to zero.

    Args:
        model: the classifier.
        learning_rate: highest learning rate.
        warmup: fraction of the optimizer steps in the warm-up.
        weight_decay: weight decay of AdamW.

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
        """Return AdamW with a schedule that advances after every step."""
        return adamw_with_warmup(self, self.learning_rate, self.warmup, self.weight_decay)


def adamw_with_warmup(
    module: pl.LightningModule, learning_rate: float, warmup: float, weight_decay: float
) -> OptimizerLRScheduler:
    """AdamW with a linear warm-up over a fraction of the steps and a linear decay to zero, advanced after every step."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, weight_decay=weight_decay)
    steps = int(module.trainer.estimated_stepping_batches)
    scheduler = get_linear_schedule_with_warmup(optimizer, int(warmup * steps), steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def tokenizer_and_model(options: FitSettings, split: Split) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Train a tokenizer and build a small model, or load both.

    Raises:
        TracInError: the model does not exist, or there is no network.
        MissingPackageError: the package that ships the model's weights is not installed.
    """
    labels = split.train.features["label"].names
    if options.model == "small":
        tokenizer = train_tokenizer(texts_of(split.train), options.vocabulary_size)
        model = small_model(tokenizer, labels, options)
    elif options.model == NAME:
        tokenizer, model = shipped_tokenizer(), shipped_model(**label_names(labels))
    else:
        tokenizer, model = pretrained_tokenizer(options.model), pretrained_model(options.model, labels)
    if options.freeze_embeddings:
        model.get_input_embeddings().requires_grad_(False)
    for part in model.modules():
        if isinstance(part, nn.Dropout) and options.dropout is not None:
            part.p = options.dropout
    return tokenizer, model


def small_model(tokenizer: PreTrainedTokenizerBase, labels: list[str], options: FitSettings) -> PreTrainedModel:
    """Build an XLM-R of the given size with random weights."""
    return XLMRobertaForSequenceClassification(small_config(tokenizer, options, **label_names(labels)))


def small_config(tokenizer: PreTrainedTokenizerBase, options: FitSettings, **more: Any) -> XLMRobertaConfig:
    """The configuration of an XLM-R of the given size."""
    return XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden_size,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        intermediate_size=4 * options.hidden_size,
        max_position_embeddings=options.max_length + 2,  # RoBERTa's positions start after the padding token's id, 1
        type_vocab_size=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **more,
    )


def pretrained_model(name: str, labels: list[str]) -> PreTrainedModel:
    """Load a model from a local folder or the Hugging Face hub, with a classification head for these labels.

    Raises:
        TracInError: the model does not exist, or there is no network.
    """
    with found_on_hub("model", name):
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            name, ignore_mismatched_sizes=True, **label_names(labels)
        )
    model.train()  # a loaded model is in evaluation mode, without dropout
    return model


def label_names(labels: list[str]) -> dict[str, Any]:
    """Class names as arguments of a Hugging Face configuration.

    Example:
        >>> label_names(["no", "yes"])
        {'id2label': {0: 'no', 1: 'yes'}, 'label2id': {'no': 0, 'yes': 1}}
    """
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
