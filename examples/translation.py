"""Translation into English: whose sentence pairs help to translate each language?

On made commands, with a small model: `python examples/translation.py`. On real ones, with a pretrained model:
`python examples/translation.py --data xsid/data --model google/mt5-small --items 300`.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import transformers as hf
from jsonargparse import auto_cli
from plain_module import PlainModule
from voice_commands import SMALL, into_english, load, loaders, report, tokenizer_of

from lightning_tracin import TracInCallback


def main(
    output: str = "runs/translation", data: str | None = None, model: str | None = None, items: int = 100, epochs: int = 5
) -> pl.Trainer:
    pl.seed_everything(0)
    train, probes = into_english(*load(data, items))
    tokenizer = tokenizer_of(model, train)

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        return dict(tokenizer(row["text"], text_target=row["english"], return_token_type_ids=False))

    if model is None:
        sizes: dict[str, Any] = {"d_model": SMALL["hidden_size"], "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
        ids: dict[str, Any] = {"pad_token_id": tokenizer.pad_token_id, "decoder_start_token_id": tokenizer.pad_token_id}
        translator = hf.MT5ForConditionalGeneration(hf.MT5Config(vocab_size=len(tokenizer), **ids, **sizes))
    else:
        translator = hf.AutoModelForSeq2SeqLM.from_pretrained(model)
    tracin = TracInCallback(output, item_column="item", text_columns=["text"], label_column="intent", top_k=20, per_token=True)
    trainer = pl.Trainer(max_epochs=epochs, callbacks=[tracin], logger=False, enable_checkpointing=False)
    trainer.fit(PlainModule(translator), *loaders(train, probes, encode, hf.DataCollatorForSeq2Seq(tokenizer)))
    report(output)
    return trainer


if __name__ == "__main__":
    auto_cli(main)
