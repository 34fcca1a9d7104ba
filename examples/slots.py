"""Token tagging: find the slots of voice commands; which languages does the tagger rely on?

On made commands, with a small model: `python examples/slots.py`. On real ones, with a pretrained model:
`python examples/slots.py --data xsid/data --model xlm-roberta-base --items 300`.
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
    output: str = "runs/slots", data: str | None = None, model: str | None = None, items: int = 100, epochs: int = 5
) -> pl.Trainer:
    pl.seed_everything(0)
    train, probes = load(data, items)
    tokenizer, tags = tokenizer_of(model, train), names_in([*train["slots"], *probes["slots"]])

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        encoded = tokenizer(row["words"], is_split_into_words=True)
        words = encoded.word_ids()
        starts = [now is not None and now != before for before, now in zip([None, *words], words, strict=False)]
        labels = [tags[row["slots"][word]] if start else -100 for word, start in zip(words, starts, strict=True)]
        return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"], "labels": labels}

    if model is None:
        config = hf.XLMRobertaConfig(vocab_size=len(tokenizer), **{**SMALL, "num_labels": len(tags)})
        tagger = hf.XLMRobertaForTokenClassification(config)
    else:
        tagger = hf.AutoModelForTokenClassification.from_pretrained(model, num_labels=len(tags))
    tracin = TracInCallback(output, item_column="item", text_columns=["text"], label_column="intent", top_k=20, per_token=True)
    trainer = pl.Trainer(max_epochs=epochs, callbacks=[tracin], logger=False, enable_checkpointing=False)
    trainer.fit(PlainModule(tagger), *loaders(train, probes, encode, hf.DataCollatorForTokenClassification(tokenizer)))
    report(output)
    return trainer


if __name__ == "__main__":
    auto_cli(main)
