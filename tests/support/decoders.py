"""Steps of causal language models, with padded and with packed batches, and of mixtures of experts and state-space models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.support import texts
from tests.support.step_exactness import Case, Step, of_transformers
from tests.support.zoo import CAUSAL, unsettled

EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 12,
}

#: Family -> its classes' name, and what is changed in the configuration.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("GPT2", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}),
    "Llama": ("Llama", {}),
    "Qwen3": ("Qwen3", {"tie_word_embeddings": True}),
    "Gemma3": ("Gemma3", {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}),
    "OLMo2": ("Olmo2", {}),
    "Mixtral": ("Mixtral", EXPERTS),
    "Qwen3-MoE": ("Qwen3Moe", EXPERTS),
    "Qwen3-MoE of 12": ("Qwen3Moe", {**EXPERTS, "num_experts": 12}),
    "OLMoE": ("Olmoe", {**EXPERTS, "num_key_value_heads": 2}),
}

#: They have no positions, so a row holds one sequence.
UNPACKED: dict[str, tuple[str, dict[str, Any]]] = {
    "BLOOM": ("Bloom", {"n_layer": 2, "n_head": 2}),
    "Mamba": ("Mamba", {"state_size": 4, "time_step_rank": 4, "conv_kernel": 3, "use_cache": False}),
}


def _decoder(family: str, way: str, dtype: torch.dtype = torch.float64) -> Callable[[], Case]:
    def build() -> Case:  # a model with a cache does not look for packed sequences
        torch.manual_seed(0)
        name, changes = {**FAMILIES, **UNPACKED}[family]
        config = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
        head = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
        model = unsettled(
            of_transformers(f"{name}{head}")(of_transformers(config)(**{**CAUSAL, **changes, "use_cache": way == "padded"}))
        )
        if dtype is torch.float64 and hasattr(model, "set_experts_implementation"):  # the default multiplies in float32 only
            model.set_experts_implementation("eager")
        make, collate = (texts.texts, texts.by_token) if way == "padded" else (texts.packed_rows, texts.packed)
        if "of 12" in family:  # most experts are rare, so batches after the check reach some for the first time
            return Case(Step(model.to(dtype)).eval(), make(30), collate, again=(".experts",), batch_size=7)
        return Case(Step(model.to(dtype)).eval(), make(), collate, again=(".experts",))

    return build


CASES = {
    **{f"{family} {way}": _decoder(family, way) for family in FAMILIES for way in ("padded", "packed")},
    **{f"{family} padded": _decoder(family, "padded") for family in UNPACKED},
    **{
        f"{family} {way}, all experts at once": _decoder(family, way, torch.float32)
        for family, (_, changes) in FAMILIES.items()
        for way in ("padded", "packed")
        if "num_experts" in changes
    },
}
