"""Tiny random models of the families that people fine-tune, with a loss summed over the samples of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor, nn

from tests.support.models import PAD, tiny_xlmr

Loss = Callable[[dict[str, Tensor]], Tensor]

SMALL: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": PAD,
    "num_labels": 3,
}
CAUSAL: dict[str, Any] = {**SMALL, "num_key_value_heads": 1, "head_dim": 8, "bos_token_id": 0, "eos_token_id": 2}


def unsettled(model: nn.Module) -> nn.Module:
    """With every parameter away from its neutral start, so that mistakes show; in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).mul_(0.15))
    return model.eval()


def classified(model: nn.Module) -> Loss:
    """A classifier's loss, summed."""
    return lambda batch: model(**batch).loss * len(batch["labels"])


def next_tokens(model: nn.Module) -> Loss:
    """A causal language model's loss on its own input, summed over each sample's tokens."""

    def loss(batch: dict[str, Tensor]) -> Tensor:
        ids = batch["input_ids"]
        logits = model(input_ids=ids, attention_mask=batch["attention_mask"]).logits[:, :-1]
        losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        return (losses * batch["attention_mask"][:, 1:]).sum()

    return loss


def rewritten(model: nn.Module) -> Loss:
    """An encoder-decoder's loss: the input backwards, summed over each sample's tokens."""

    def loss(batch: dict[str, Tensor]) -> Tensor:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=ids[:, :3], use_cache=False).logits
        losses = F.cross_entropy(logits.transpose(1, 2), ids[:, :3].flip(1), reduction="none")
        return (losses * mask[:, :3]).sum()

    return loss


def _classifier(config: type, model: type, **changes: Any) -> Callable[[], tuple[nn.Module, Loss]]:
    def build() -> tuple[nn.Module, Loss]:
        torch.manual_seed(0)
        built = unsettled(model(config(**{**SMALL, **changes})))
        return built, classified(built)

    return build


def _causal(config: type, model: type, **changes: Any) -> Callable[[], tuple[nn.Module, Loss]]:
    def build() -> tuple[nn.Module, Loss]:
        torch.manual_seed(0)
        built = unsettled(model(config(**{**CAUSAL, **changes})))
        return built, next_tokens(built)

    return build


def _t5(config: type, model: type) -> Callable[[], tuple[nn.Module, Loss]]:
    def build() -> tuple[nn.Module, Loss]:
        torch.manual_seed(0)
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "relative_attention_num_buckets": 8}
        built = unsettled(model(config(vocab_size=60, pad_token_id=PAD, decoder_start_token_id=0, **sizes)))
        return built, rewritten(built)

    return build


def xlm_roberta() -> tuple[nn.Module, Loss]:
    built = unsettled(tiny_xlmr())
    return built, classified(built)


def gpt2() -> tuple[nn.Module, Loss]:
    torch.manual_seed(0)
    config = hf.GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=2)
    built = unsettled(hf.GPT2LMHeadModel(config))
    return built, next_tokens(built)


def lora() -> tuple[nn.Module, Loss]:
    import peft

    adapted = peft.get_peft_model(tiny_xlmr(), peft.LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS"))
    built = unsettled(adapted)
    return built, classified(built)


MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}

MODELS: dict[str, Callable[[], tuple[nn.Module, Loss]]] = {
    "xlm-roberta": xlm_roberta,
    "bert": _classifier(hf.BertConfig, hf.BertForSequenceClassification),
    "albert": _classifier(hf.AlbertConfig, hf.AlbertForSequenceClassification, embedding_size=8),
    "deberta-v2": _classifier(
        hf.DebertaV2Config,
        hf.DebertaV2ForSequenceClassification,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=4,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
    ),
    "modernbert": _classifier(
        hf.ModernBertConfig, hf.ModernBertForSequenceClassification, cls_token_id=0, sep_token_id=2, local_attention=8
    ),
    "gpt2": gpt2,
    "llama": _causal(hf.LlamaConfig, hf.LlamaForCausalLM),
    "qwen3": _causal(hf.Qwen3Config, hf.Qwen3ForCausalLM, tie_word_embeddings=True),
    "qwen2-moe": _causal(hf.Qwen2MoeConfig, hf.Qwen2MoeForCausalLM, shared_expert_intermediate_size=12, **MOE),
    "qwen3-moe": _causal(hf.Qwen3MoeConfig, hf.Qwen3MoeForCausalLM, **MOE),
    "mixtral": _causal(hf.MixtralConfig, hf.MixtralForCausalLM, **MOE),
    "gemma": _causal(hf.GemmaConfig, hf.GemmaForCausalLM),
    "gemma3": _causal(hf.Gemma3TextConfig, hf.Gemma3ForCausalLM),
    "t5": _t5(hf.T5Config, hf.T5ForConditionalGeneration),
    "mt5": _t5(hf.MT5Config, hf.MT5ForConditionalGeneration),
    "lora": lora,
}
