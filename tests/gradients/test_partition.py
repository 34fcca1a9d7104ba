"""The depth at which a parameter stands, from its name, on real models."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn
from transformers import AlbertConfig, AlbertForSequenceClassification, GPT2Config, GPT2LMHeadModel, T5Config
from transformers import T5ForConditionalGeneration as T5

from lightning_tracin.gradients.partition import layer_labels, parts_of
from tests.support.models import tiny_xlmr


def labels(model: nn.Module) -> dict[str, str]:
    return layer_labels(name for name, _ in model.named_parameters())


def test_encoder() -> None:
    found = labels(tiny_xlmr())
    assert parts_of(dict.fromkeys(found, 0), per_layer=True).depths == ["embeddings", "layer 0", "layer 1", "head"]
    assert found["roberta.encoder.layer.1.attention.self.query.weight"] == "layer 1"
    assert found["classifier.dense.bias"] == "head"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            lambda: GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=3, n_head=2, n_positions=8)),
            ["embeddings", "layer 0", "layer 1", "layer 2", "head"],
        ),
        (
            lambda: AlbertForSequenceClassification(
                AlbertConfig(vocab_size=20, embedding_size=4, hidden_size=8, num_attention_heads=2, intermediate_size=8)
            ),
            ["embeddings", "layer 0", "head"],
        ),
        (
            lambda: T5(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2)),
            [
                "embeddings",
                "encoder layer 0",
                "encoder layer 1",
                "encoder head",
                "decoder layer 0",
                "decoder layer 1",
                "decoder head",
            ],
        ),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), ["layer 0", "layer 2"]),
        (lambda: nn.Linear(2, 2), ["head"]),
    ],
)
def test_other_shapes(model: Any, expected: list[str]) -> None:
    assert list(dict.fromkeys(labels(model()).values())) == expected


def test_parts_are_groups_by_layers() -> None:
    groups = {"embed.weight": 0, "l.0.weight": 0, "l.0.bias": 1, "l.1.weight": 0, "l.1.bias": 1, "h.bias": 1}
    parts = parts_of(groups, per_layer=True)
    named = [(parts.groups[parts.of[name]], parts.layers[parts.of[name]]) for name in groups]
    assert named == [(0, "embeddings"), (0, "layer 0"), (1, "layer 0"), (0, "layer 1"), (1, "layer 1"), (1, "head")]
    together = parts_of(groups, per_layer=False)
    assert together.groups == (0, 1)
    assert [together.of[name] for name in groups] == list(groups.values())
