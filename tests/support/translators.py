"""Steps of encoder-decoders, dense and with experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf

from tests.support import texts
from tests.support.models import PAD
from tests.support.step_exactness import Case, Step
from tests.support.zoo import unsettled

COMMON: dict[str, Any] = {
    "vocab_size": 60,
    "pad_token_id": PAD,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
    "use_cache": False,
}

T5: dict[str, Any] = {
    **COMMON,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,
}

BART: dict[str, Any] = {
    **COMMON,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 32,
}

SWITCH: dict[str, Any] = {
    **T5,
    "num_experts": 4,
    "num_sparse_encoder_layers": 1,
    "num_sparse_decoder_layers": 1,
}
NLLB: dict[str, Any] = {
    **BART,
    "num_experts": 4,
    "encoder_sparse_step": 2,
    "decoder_sparse_step": 2,
    "second_expert_policy": "all",
}

#: Family -> its configuration, model, and settings.
FAMILIES: dict[str, tuple[type, type, dict[str, Any]]] = {
    "T5": (hf.T5Config, hf.T5ForConditionalGeneration, T5),
    "mT5": (hf.MT5Config, hf.MT5ForConditionalGeneration, T5),
    "ByT5-like": (
        hf.T5Config,
        hf.T5ForConditionalGeneration,
        {**T5, "num_layers": 3, "num_decoder_layers": 1, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "mBART": (hf.MBartConfig, hf.MBartForConditionalGeneration, BART),
    "Marian": (hf.MarianConfig, hf.MarianMTModel, BART),
    "M2M100": (hf.M2M100Config, hf.M2M100ForConditionalGeneration, BART),
    "NLLB-MoE": (hf.NllbMoeConfig, hf.NllbMoeForConditionalGeneration, {**NLLB, "expert_capacity": 1000}),
    "NLLB-MoE of 12": (
        hf.NllbMoeConfig,
        hf.NllbMoeForConditionalGeneration,
        {**NLLB, "expert_capacity": 1000, "num_experts": 12},
    ),
    "Switch": (hf.SwitchTransformersConfig, hf.SwitchTransformersForConditionalGeneration, SWITCH),
    "Switch, capacity of 2": (
        hf.SwitchTransformersConfig,
        hf.SwitchTransformersForConditionalGeneration,
        {**SWITCH, "expert_capacity": 2},
    ),
}


def translator(config: type, model: type, settings: dict[str, Any], samples: int = 14, batch_size: int = 4) -> Case:
    """A case of these classes."""
    torch.manual_seed(0)
    built = unsettled(model(config(**settings)))
    dtype = torch.float32 if "num_experts" in settings else torch.float64  # routers compute in float32
    return Case(Step(built.to(dtype)).eval(), texts.translations(samples), texts.by_token, batch_size=batch_size)


def _translator(family: str) -> Callable[[], Case]:
    rare = {"samples": 30, "batch_size": 7} if "of 12" in family else {}  # batches after the check reach some for the first time
    return lambda: translator(*FAMILIES[family], **rare)


CASES = {family: _translator(family) for family in FAMILIES}
