"""The workloads: models of real shapes with random weights, and samples of different lengths.

Every side of a comparison gets the same `Workload`. Its samples are in ascending order of length, so that a side that takes them
in order pads as little as one that sorts them itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, XLMRobertaConfig, XLMRobertaForSequenceClassification

Batch: TypeAlias = dict[str, Tensor]
#: Returns the sum of the losses of a batch's samples.
Loss: TypeAlias = Callable[..., Tensor]

_CLASSES = 3
_XLM_R_PAD = 1


class Sentences(Dataset[Batch]):
    """A dataset for any data loader; a request for several samples pads them to the longest.

    Args:
        tokens: of each sample, [length], in ascending order of length.
        labels: of each sample, [length] or a scalar.
        pad: token that fills up.
    """

    def __init__(self, tokens: Sequence[Tensor], labels: Sequence[Tensor], pad: int) -> None:
        self.tokens, self.labels, self.pad = tuple(tokens), tuple(labels), pad

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Batch]:
        """Several samples, padded to the longest."""
        longest = max(len(self.tokens[index]) for index in indices)
        return [
            {
                "input_ids": _filled(self.tokens[index], longest, self.pad),
                "attention_mask": _filled(torch.ones_like(self.tokens[index]), longest, 0),
                "labels": _filled(self.labels[index], longest, -100) if self.labels[index].ndim else self.labels[index],
            }
            for index in indices
        ]

    def first(self, count: int) -> Sentences:
        """That many samples (or all), spread evenly over all lengths."""
        count = min(count, len(self))
        chosen = [index * len(self) // count for index in range(count)]
        return Sentences([self.tokens[i] for i in chosen], [self.labels[i] for i in chosen], self.pad)


def _filled(values: Tensor, length: int, value: int) -> Tensor:
    return F.pad(values, (0, length - len(values)), value=value)


@dataclass(frozen=True)
class Workload:
    """One model and its samples."""

    name: str
    description: str
    model: nn.Module  # in evaluation mode
    loss: Loss
    train: Sentences
    probes: Sentences

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return next(self.model.parameters()).device

    def to(self, device: torch.device) -> Workload:
        """The same with the model on another device."""
        return Workload(self.name, self.description, self.model.to(device), self.loss, self.train, self.probes)

    def smaller(self, train: int, probes: int) -> Workload:
        """The same with fewer samples."""
        return Workload(self.name, self.description, self.model, self.loss, self.train.first(train), self.probes.first(probes))

    def scaled(self, scale: float) -> Workload:
        """The same with this fraction of the samples, at least two of each."""
        if scale == 1:
            return self
        return self.smaller(max(2, int(len(self.train) * scale)), max(2, int(len(self.probes) * scale)))


def classification_loss(model: nn.Module, batch: Mapping[str, Tensor], reduction: str = "sum") -> Tensor:
    """Cross entropy of each sample's label; `reduction="none"` gives [samples]."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return F.cross_entropy(logits, batch["labels"], reduction=reduction)


def next_token_loss(model: nn.Module, batch: Mapping[str, Tensor], reduction: str = "sum") -> Tensor:
    """Cross entropy of a sample's next tokens, summed; `reduction="none"` gives [samples].

    Causal attention needs no mask for padding at the end.
    """
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction=reduction)
    return losses.view(len(labels), -1).sum(1) if reduction == "none" else losses


def reference(train: int = 256, probes: int = 64) -> Workload:
    """XLM-R's shape made small: 6 layers, width 256, 30,000 tokens; the workload of the targets."""
    return xlm_r("reference", train, probes, layers=6, width=256, heads=4, inner=1024, vocabulary=30_000)


def base_shape(train: int = 24, probes: int = 4) -> Workload:
    """XLM-R base's real shape: 12 layers, width 768, 250,002 tokens."""
    return xlm_r("XLM-R base", train, probes, layers=12, width=768, heads=12, inner=3072, vocabulary=250_002)


def causal_lm(train: int = 256, probes: int = 64) -> Workload:
    """A small GPT-NeoX (Pythia's family): 6 layers, width 256, 8,000 tokens."""
    return gpt_neox("causal LM", train, probes, layers=6, width=256, heads=4, vocabulary=8_000)


def base_causal_lm(train: int = 24, probes: int = 4) -> Workload:
    """The shape of Pythia 160M: 12 layers, width 768, 50,304 tokens."""
    return gpt_neox("causal LM, base", train, probes, layers=12, width=768, heads=12, vocabulary=50_304)


def gpt_neox(name: str, train: int, probes: int, *, layers: int, width: int, heads: int, vocabulary: int) -> Workload:
    """GPT-NeoX's architecture in any size, with random weights."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=64,
        use_cache=False,
    )
    model: nn.Module = GPTNeoXForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    texts = [_texts(count, vocabulary, generator) for count in (train, probes)]
    samples = [Sentences(tokens, tokens, pad=0) for tokens in texts]
    shape = f"GPT-NeoX, {layers} layers, width {width}, {vocabulary:,} tokens"
    description = f"{shape}; {train} train samples x {probes} probes of 8 to 48 tokens"
    return Workload(name, description, model.eval(), next_token_loss, *samples)


def xlm_r(name: str, train: int, probes: int, *, layers: int, width: int, heads: int, inner: int, vocabulary: int) -> Workload:
    """XLM-R's architecture in any size, with random weights and three classes."""
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=514,
        type_vocab_size=1,
        pad_token_id=_XLM_R_PAD,
    )
    config.num_labels = _CLASSES
    model: nn.Module = XLMRobertaForSequenceClassification(config)
    generator = torch.Generator().manual_seed(0)
    sides = []
    for count in (train, probes):
        tokens = _texts(count, vocabulary, generator)
        sides.append(Sentences(tokens, list(torch.randint(0, _CLASSES, (count,), generator=generator)), _XLM_R_PAD))
    description = (
        f"XLM-R's architecture, {layers} layers, width {width}, {vocabulary:,} tokens; {train} train samples x {probes} probes "
        "of 8 to 48 tokens"
    )
    return Workload(name, description, model.eval(), classification_loss, *sides)


def _texts(count: int, vocabulary: int, generator: torch.Generator) -> list[Tensor]:
    """Samples of 8 to 48 tokens with begin and end tokens, ids distributed by Zipf's law, shortest first."""
    lengths = torch.randint(8, 49, (count,), generator=generator).sort().values
    texts = []
    for length in lengths.tolist():
        uniform = torch.rand(length - 2, generator=generator, dtype=torch.float64)
        inner = (vocabulary**uniform).long().clamp(4, vocabulary - 1)
        texts.append(torch.cat([torch.tensor([0]), inner, torch.tensor([2])]))
    return texts
