"""Tiny models and ragged data that tests share."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn
from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

PAD = 1


def tiny_xlmr(attention: str = "sdpa", seed: int = 0, **changes: Any) -> XLMRobertaForSequenceClassification:
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": 60,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 24,
        "type_vocab_size": 1,
        "num_labels": 3,
        "pad_token_id": PAD,
        "initializer_range": 0.3,
        "attn_implementation": attention,
        **changes,
    }
    model = XLMRobertaForSequenceClassification(XLMRobertaConfig(**settings))
    for module in model.modules():  # biases and scales away from their neutral start, so that mistakes show
        if isinstance(module, nn.LayerNorm | nn.Linear):
            nn.init.normal_(module.bias, std=0.1)
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight, mean=1.0, std=0.2)
    return model


def ragged_samples(count: int, seed: int = 0, shortest: int = 3, longest: int = 14, vocabulary: int = 60) -> list[dict[str, Any]]:
    """Token sequences of different lengths with labels; begin and end tokens are shared by all."""
    generator = random.Random(seed)
    return [
        {
            "input_ids": [
                0,
                *[generator.randrange(4, vocabulary) for _ in range(generator.randint(shortest, longest) - 2)],
                2,
            ],
            "labels": generator.randrange(3),
        }
        for _ in range(count)
    ]


def padded(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A collate function: pads on the right."""
    longest = max(len(sample["input_ids"]) for sample in samples)
    ids = torch.full((len(samples), longest), PAD)
    for line, sample in zip(ids, samples, strict=True):
        line[: len(sample["input_ids"])] = torch.tensor(sample["input_ids"])
    return {
        "input_ids": ids,
        "attention_mask": (ids != PAD).long(),
        "labels": torch.tensor([sample["labels"] for sample in samples]),
    }
