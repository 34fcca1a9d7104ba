"""A convolutional multilingual sentence encoder with a classification head, as a Hugging Face model.

The architecture is that of the universal sentence encoder, multilingual, version 3 (Yang et al. 2020, "Multilingual Universal
Sentence Encoder for Semantic Retrieval", ACL demos): word-piece embeddings, branches of residual convolutions over windows of
2, 3 and 5 pieces, a sum over the pieces that is divided by the root of their number, and residual layers. It has ordinary
linear layers and layer norms only; a convolution is a linear layer on the pieces of a window.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

#: Pieces in the window of each branch, and how many of them stand before the piece itself.
ORDERS = ((2, 0), (3, 1), (5, 2))


class SentenceEncoderConfig(PretrainedConfig):
    """Sizes of the encoder.

    Args:
        vocab_size: number of pieces.
        hidden_size: width of embeddings and of the sentence's representation.
        branch_size: width of each branch.
        residual_size: width of the hidden residual layers.
        layer_norm_eps: added to variances.
        classifier_dropout: of the representation, before the head.
        initializer_range: standard deviation of new weights.
        options: of every Hugging Face configuration.

    Example:
        >>> SentenceEncoderConfig(vocab_size=100).hidden_size
        512
    """

    model_type = "use-multilingual"

    def __init__(
        self,
        vocab_size: int = 128_010,
        hidden_size: int = 512,
        branch_size: int = 256,
        residual_size: int = 320,
        layer_norm_eps: float = 1e-12,
        classifier_dropout: float = 0.1,
        initializer_range: float = 0.02,
        **options: Any,
    ) -> None:
        self.vocab_size, self.hidden_size, self.branch_size = vocab_size, hidden_size, branch_size
        self.residual_size, self.layer_norm_eps = residual_size, layer_norm_eps
        self.classifier_dropout, self.initializer_range = classifier_dropout, initializer_range
        super().__init__(**options)


class Branch(nn.Module):
    """Two residual convolutions over windows of pieces."""

    def __init__(self, config: SentenceEncoderConfig, order: int, before: int) -> None:
        super().__init__()
        self.order, self.before = order, before
        self.first = nn.Linear(order * config.branch_size, config.branch_size)
        self.second = nn.Linear(order * config.branch_size, config.branch_size)

    def forward(self, pieces: Tensor, mask: Tensor) -> Tensor:
        """New features of each piece, [samples, pieces, branch]; `mask` [samples, pieces, 1] is 0 for padding and 1 elsewhere."""
        pieces = functional.relu(self.first(self._windows(pieces * mask))) + pieces
        out: Tensor = functional.relu(self.second(self._windows(pieces * mask))) + pieces
        return out

    def _windows(self, pieces: Tensor) -> Tensor:
        """The pieces of each window, zero beyond the ends: [samples, pieces, order * branch]."""
        padded = functional.pad(pieces, (0, 0, self.before, self.order - 1 - self.before))
        return torch.cat([padded[:, place : place + pieces.shape[1]] for place in range(self.order)], dim=2)


class SentenceEncoderBase(PreTrainedModel):
    """How new weights are drawn; a layer that checkpoints do not have, such as a head, gets them."""

    config_class = SentenceEncoderConfig
    base_model_prefix = "encoder"
    _input_embed_layer = "embeddings"

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


class SentenceEncoder(SentenceEncoderBase):
    """The encoder: a sentence of pieces to a representation of length 1.

    Example:
        >>> encoder = SentenceEncoder(SentenceEncoderConfig(vocab_size=9, hidden_size=8, branch_size=4, residual_size=6)).eval()
        >>> encoder(torch.tensor([[1, 5, 2]])).pooler_output.shape
        torch.Size([1, 8])
    """

    def __init__(self, config: SentenceEncoderConfig) -> None:
        super().__init__(config)
        width, hidden = config.hidden_size, config.residual_size
        self.embeddings = nn.Embedding(config.vocab_size, width)
        branches = len(ORDERS) * config.branch_size
        self.branch_projection = nn.Linear(width, branches)
        self.branch_norm = nn.LayerNorm(branches, eps=config.layer_norm_eps)  # over all branches at once, as in the package
        self.branches = nn.ModuleList(Branch(config, order, before) for order, before in ORDERS)
        features = width + branches
        self.norm = nn.LayerNorm(features, eps=config.layer_norm_eps)
        self.projection = nn.Linear(features, width)
        self.inner = nn.ModuleList(
            nn.Linear(*sizes, bias=False) for sizes in ((width, hidden), (hidden, hidden), (hidden, width), (width, width))
        )
        self.residual = nn.ModuleList(nn.Linear(*sizes, bias=False) for sizes in ((width, hidden), (hidden, width)))
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, inputs_embeds: Tensor | None = None, **_: Any
    ) -> BaseModelOutputWithPooling:
        """Encode sentences.

        Args:
            input_ids: pieces, [samples, pieces].
            attention_mask: 1 for pieces, 0 for padding, [samples, pieces]. None: no padding.
            inputs_embeds: embeddings instead of pieces, [samples, pieces, hidden].

        Returns:
            `last_hidden_state`, features of each piece (zero for padding), and `pooler_output` [samples, hidden], of length 1.
        """
        embedded = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        mask = embedded.new_ones(embedded.shape[:2]) if attention_mask is None else attention_mask.to(embedded.dtype)
        mask = mask[:, :, None]
        parts = self.branch_norm(self.branch_projection(embedded)).chunk(len(ORDERS), dim=2)
        found = [branch(part, mask) for branch, part in zip(self.branches, parts, strict=True)]
        features = torch.cat([embedded, *found], dim=2)
        features = self.norm(features) * mask
        count = mask.sum(1)
        mean = self.projection(features.sum(1) / count) * count.sqrt()  # of a sum, divided by the root of the number
        first = functional.relu(self.inner[0](mean))
        first = functional.relu(self.residual[0](mean) + self.inner[1](first))
        second = functional.relu(self.inner[2](first))
        pooled = functional.normalize(torch.tanh(self.residual[1](first) + self.inner[3](second)), dim=1)
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=pooled)


class SentenceEncoderForSequenceClassification(SentenceEncoderBase):
    """The encoder with a linear head on its representation, scaled so that its elements are about 1 large."""

    def __init__(self, config: SentenceEncoderConfig) -> None:
        super().__init__(config)
        self.encoder = SentenceEncoder(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, len(config.id2label or ()))
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput:
        """Classify sentences; with `labels` [samples], the loss is their mean cross-entropy."""
        pooled = self.encoder(input_ids, attention_mask, inputs_embeds).pooler_output
        logits = self.classifier(self.dropout(pooled * self.config.hidden_size**0.5))
        loss = None if labels is None else functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


AutoConfig.register(SentenceEncoderConfig.model_type, SentenceEncoderConfig)
AutoModel.register(SentenceEncoderConfig, SentenceEncoder)
AutoModelForSequenceClassification.register(SentenceEncoderConfig, SentenceEncoderForSequenceClassification)
