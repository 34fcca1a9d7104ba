"""Steps of models that PEFT adapts: the adapters alone are trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import torch
import transformers as hf
from torch import nn

from tests.support import texts
from tests.support.models import tiny_xlmr
from tests.support.step_exactness import Case, Step
from tests.support.zoo import CAUSAL, unsettled

QUERY_VALUE = ["query", "value"]
LINEAR = ["query", "key", "value", "dense"]

CLASSIFIERS: dict[str, Callable[[], peft.PeftConfig]] = {
    "LoRA": lambda: peft.LoraConfig(r=2, target_modules=QUERY_VALUE, task_type="SEQ_CLS"),
    "LoRA, rank-stabilised, with biases": lambda: peft.LoraConfig(
        r=2, target_modules=LINEAR, task_type="SEQ_CLS", use_rslora=True, bias="lora_only"
    ),
    "LoRA of embeddings": lambda: peft.LoraConfig(r=2, target_modules=["word_embeddings", "query"], task_type="SEQ_CLS"),
    "DoRA": lambda: peft.LoraConfig(r=2, target_modules=QUERY_VALUE, task_type="SEQ_CLS", use_dora=True),
    "IA3": lambda: peft.IA3Config(
        target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"], task_type="SEQ_CLS"
    ),
    "VeRA": lambda: peft.VeraConfig(r=2, target_modules=QUERY_VALUE, task_type="SEQ_CLS"),
    "AdaLoRA": lambda: peft.AdaLoraConfig(init_r=3, target_r=2, target_modules=QUERY_VALUE, task_type="SEQ_CLS", total_step=10),
    "LoHa": lambda: peft.LoHaConfig(r=2, target_modules=QUERY_VALUE, task_type="SEQ_CLS"),
    "LoKr": lambda: peft.LoKrConfig(r=2, target_modules=QUERY_VALUE, task_type="SEQ_CLS"),
    "OFT": lambda: peft.OFTConfig(oft_block_size=4, target_modules=QUERY_VALUE, task_type="SEQ_CLS", use_cayley_neumann=False),
    "BOFT": lambda: peft.BOFTConfig(
        boft_block_size=4, boft_n_butterfly_factor=1, target_modules=QUERY_VALUE, task_type="SEQ_CLS"
    ),
    "HRA": lambda: peft.HRAConfig(r=2, target_modules=QUERY_VALUE, task_type="SEQ_CLS"),
    "FourierFT": lambda: peft.FourierFTConfig(n_frequency=20, target_modules=QUERY_VALUE, task_type="SEQ_CLS"),
    "LayerNorm tuning": lambda: peft.LNTuningConfig(target_modules=["LayerNorm"], task_type="SEQ_CLS"),
    "prompt tuning": lambda: peft.PromptTuningConfig(num_virtual_tokens=3, task_type="SEQ_CLS"),
    "prefix tuning": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="SEQ_CLS"),
    "prefix tuning with a projection": lambda: peft.PrefixTuningConfig(
        num_virtual_tokens=3, task_type="SEQ_CLS", prefix_projection=True, encoder_hidden_size=8
    ),
    "P-tuning with an MLP": lambda: peft.PromptEncoderConfig(
        num_virtual_tokens=3, task_type="SEQ_CLS", encoder_hidden_size=8, encoder_reparameterization_type="MLP"
    ),
    "P-tuning with an LSTM": lambda: peft.PromptEncoderConfig(
        num_virtual_tokens=3, task_type="SEQ_CLS", encoder_hidden_size=8, encoder_reparameterization_type="LSTM"
    ),
}

DECODERS: dict[str, Callable[[], peft.PeftConfig]] = {
    "causal LoRA": lambda: peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    "causal LoRA of the head": lambda: peft.LoraConfig(
        r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM"
    ),
    "causal prompt tuning": lambda: peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "causal prefix tuning": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "LLaMA-Adapter": lambda: peft.AdaptionPromptConfig(adapter_len=3, adapter_layers=1, task_type="CAUSAL_LM"),
}


#: The share of elements that come from single samples: an LSTM that makes one prompt for all samples does not meet any of them.
ALONE = {"P-tuning with an LSTM": 0.95}

#: Methods that compute a weight from their parameters, so that the layer itself is run again.
AGAIN = ("query", "value", "word_embeddings", "oft_R.default")


class WithoutPenalty(Step):
    """AdaLoRA adds a penalty on its matrices in its own forward, which is no sample's loss."""

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.model.base_model.model(**batch).loss


STEPS = {"AdaLoRA": WithoutPenalty}


def _adapted(name: str, model: Callable[[], nn.Module], config: Callable[[], Any], make: Any, collate: Any) -> Callable[[], Case]:
    def build() -> Case:
        torch.manual_seed(0)
        adapted = peft.get_peft_model(model(), config())
        step = STEPS.get(name, Step)(unsettled(adapted).double())
        return Case(step.eval(), make(), collate, ALONE.get(name, 0.0), AGAIN)

    return build


def _llama() -> nn.Module:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**CAUSAL))


CASES = {
    **{name: _adapted(name, tiny_xlmr, config, texts.classes, texts.by_sample) for name, config in CLASSIFIERS.items()},
    **{name: _adapted(name, _llama, config, texts.texts, texts.by_token) for name, config in DECODERS.items()},
}
