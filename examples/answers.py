"""Question answering: find the words that say when, where or whom; which languages teach it?

On made commands, with a small model: `python examples/answers.py`. On real ones, with a pretrained model:
`python examples/answers.py --data xsid/data --model xlm-roberta-base --items 300`.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import transformers as hf
from jsonargparse import auto_cli
from plain_module import PlainModule
from voice_commands import SMALL, load, loaders, report, tokenizer_of, with_answers

from lightning_tracin import TracInCallback


def main(
    output: str = "runs/answers", data: str | None = None, model: str | None = None, items: int = 100, epochs: int = 5
) -> pl.Trainer:
    pl.seed_everything(0)
    train, probes = with_answers(*load(data, items))
    tokenizer = tokenizer_of(model, train)

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        encoded = tokenizer([row["question"]], row["words"], is_split_into_words=True)
        ends = [encoded.word_to_tokens(row[end], sequence_index=1) for end in ("first", "last")]
        positions = {"start_positions": ends[0].start, "end_positions": ends[1].end - 1}
        return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"], **positions}

    if model is None:
        reader = hf.XLMRobertaForQuestionAnswering(hf.XLMRobertaConfig(vocab_size=len(tokenizer), **SMALL))
    else:
        reader = hf.AutoModelForQuestionAnswering.from_pretrained(model)
    # Padded positions compete for the answer in these heads: with one length for all, a sample's loss depends on it alone.
    collate = hf.DataCollatorWithPadding(tokenizer, padding="max_length", max_length=64)
    tracin = TracInCallback(output, item_column="item", text_columns=["text"], label_column="intent", top_k=20)
    trainer = pl.Trainer(max_epochs=epochs, callbacks=[tracin], logger=False, enable_checkpointing=False)
    trainer.fit(PlainModule(reader), *loaders(train, probes, encode, collate))
    report(output)
    return trainer


if __name__ == "__main__":
    auto_cli(main)
