"""Intents: classify voice commands; which languages does the classifier rely on?

On made commands, with a small model: `python examples/intents.py`. On real ones, with a pretrained model:
`python examples/intents.py --data xsid/data --model xlm-roberta-base --items 300`.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import transformers as hf
from jsonargparse import auto_cli
from plain_module import PlainModule
from voice_commands import SMALL, load, loaders, names_in, report, tokenizer_of

from lightning_tracin import TracInCallback


def main(
    output: str = "runs/intents", data: str | None = None, model: str | None = None, items: int = 100, epochs: int = 5
) -> pl.Trainer:
    pl.seed_everything(0)
    train, probes = load(data, items)
    tokenizer, intents = tokenizer_of(model, train), names_in([*train["intent"], *probes["intent"]])

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        return {**tokenizer(row["text"], return_token_type_ids=False), "labels": intents[row["intent"]]}

    if model is None:
        config = hf.XLMRobertaConfig(vocab_size=len(tokenizer), **{**SMALL, "num_labels": len(intents)})
        classifier = hf.XLMRobertaForSequenceClassification(config)
    else:
        classifier = hf.AutoModelForSequenceClassification.from_pretrained(model, num_labels=len(intents))
    tracin = TracInCallback(output, item_column="item", text_columns=["text"], label_column="intent", top_k=20)
    trainer = pl.Trainer(max_epochs=epochs, callbacks=[tracin], logger=False, enable_checkpointing=False)
    trainer.fit(PlainModule(classifier), *loaders(train, probes, encode, hf.DataCollatorWithPadding(tokenizer)))
    report(output)
    return trainer


if __name__ == "__main__":
    auto_cli(main)
