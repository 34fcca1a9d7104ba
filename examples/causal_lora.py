"""Causal language modelling with LoRA: whose text teaches the adapters each language?

On made commands, with a small model: `python examples/causal_lora.py`. On real ones, with a pretrained model:
`python examples/causal_lora.py --data xsid/data --model Qwen/Qwen3-0.6B --items 300`.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import transformers as hf
from jsonargparse import auto_cli
from peft import LoraConfig, get_peft_model
from plain_module import PlainModule
from voice_commands import SMALL, load, loaders, report, tokenizer_of

from lightning_tracin import TracInCallback


def main(
    output: str = "runs/causal_lora", data: str | None = None, model: str | None = None, items: int = 100, epochs: int = 5
) -> pl.Trainer:
    pl.seed_everything(0)
    train, probes = load(data, items)
    tokenizer = tokenizer_of(model, train)

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        return dict(tokenizer(row["text"], return_token_type_ids=False))

    if model is None:
        writer: Any = hf.Qwen3ForCausalLM(hf.Qwen3Config(vocab_size=len(tokenizer), num_key_value_heads=2, head_dim=16, **SMALL))
    else:
        writer = hf.AutoModelForCausalLM.from_pretrained(model)
    adapted = get_peft_model(writer, LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=["q_proj", "v_proj"]))
    tracin = TracInCallback(output, item_column="item", text_columns=["text"], label_column="intent", top_k=20, per_token=True)
    trainer = pl.Trainer(max_epochs=epochs, callbacks=[tracin], logger=False, enable_checkpointing=False)
    trainer.fit(
        PlainModule(adapted, learning_rate=1e-2),
        *loaders(train, probes, encode, hf.DataCollatorForLanguageModeling(tokenizer, mlm=False)),
    )
    report(output)
    return trainer


if __name__ == "__main__":
    auto_cli(main)
