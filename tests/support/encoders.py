"""Steps of encoders: sequence, token and span labels, and masked words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.support import texts
from tests.support.step_exactness import Case, Step, of_transformers
from tests.support.zoo import SMALL, unsettled

TASKS: dict[str, tuple[Callable[[], list[texts.Sample]], Callable[..., Any]]] = {
    "SequenceClassification": (texts.classes, texts.by_sample),
    "TokenClassification": (texts.tags, texts.by_token),
    "QuestionAnswering": (texts.spans, texts.by_span),
    "MaskedLM": (texts.masked, texts.by_token),
}

FAMILIES: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "XLM-R": ("XLMRoberta", tuple(TASKS), {"type_vocab_size": 1}),
    "BERT": ("Bert", tuple(TASKS), {}),
    "ModernBERT": (
        "ModernBert",
        tuple(TASKS),
        {"cls_token_id": 0, "sep_token_id": 2, "local_attention": 8, "global_attn_every_n_layers": 2},
    ),
    "DeBERTa": (
        "Deberta",
        tuple(TASKS),
        {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 16, "type_vocab_size": 0},
    ),
    "DeBERTa-v2": (
        "DebertaV2",
        tuple(TASKS),
        {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 4,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "conv_kernel_size": 3,
        },
    ),
    "CANINE": (
        "Canine",
        ("SequenceClassification", "TokenClassification", "QuestionAnswering"),
        {
            "downsampling_rate": 4,
            "num_hash_functions": 4,
            "num_hash_buckets": 16,
            "local_transformer_stride": 16,
            "upsampling_kernel_size": 4,
            "bos_token_id": 0,
            "eos_token_id": 2,
        },
    ),
    "Electra": ("Electra", ("TokenClassification",), {"embedding_size": 8}),
    "DistilBERT": ("DistilBert", ("TokenClassification",), {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2}),
}


def _encoder(family: str, task: str) -> Callable[[], Case]:
    def build() -> Case:
        torch.manual_seed(0)
        name, _, changes = FAMILIES[family]
        labels = 2 if task == "QuestionAnswering" else 3
        config = of_transformers(f"{name}Config")(**{**SMALL, **changes, "num_labels": labels})
        model: nn.Module = unsettled(of_transformers(f"{name}For{task}")(config))
        make, collate = TASKS[task]
        if family == "CANINE" or task == "QuestionAnswering":  # one padded length: a span's softmax is over all positions
            collate = texts.of_length(16, collate)
        dtype = torch.float32 if family == "CANINE" else torch.float64  # its mask overflows in float64
        return Case(Step(model.to(dtype)).eval(), make(), collate)

    return build


CASES = {f"{family} {task}": _encoder(family, task) for family, (_, tasks, _) in FAMILIES.items() for task in tasks}
