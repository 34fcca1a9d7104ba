"""From text to batches: a Unigram tokenizer trained in code, and the data loaders."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from datasets import Dataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, DataCollatorWithPadding, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets import Split
from lightning_tracin.studies.datasets.corpus import text_columns

SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]  # in XLM-R's order
START, PADDING, END, UNKNOWN = SPECIAL_TOKENS
MASK = "<mask>"  # the last token, as in XLM-R
ROLES = {
    "bos_token": START,
    "cls_token": START,
    "eos_token": END,
    "sep_token": END,
    "pad_token": PADDING,
    "unk_token": UNKNOWN,
}


def texts_of(dataset: Dataset) -> list[str]:
    """All texts, including the second ones of pairs.

    Example:
        >>> texts_of(Dataset.from_dict({"text": ["a", "b"], "text_pair": ["c", "d"], "label": [0, 1]}))
        ['a', 'b', 'c', 'd']
    """
    return [text for column in text_columns(dataset.column_names) for text in dataset[column]]


def train_tokenizer(texts: list[str], vocabulary_size: int, *, masked: bool = False) -> PreTrainedTokenizerBase:
    """Train a Unigram tokenizer (Kudo 2018, arXiv 1804.10959), as XLM-R has, on texts.

    Args:
        texts: training texts.
        vocabulary_size: largest number of pieces.
        masked: whether to add a token for masked positions after all pieces.

    Raises:
        TracInError: the vocabulary is smaller than the number of characters in the texts.
    """
    tokenizer = _prepared(Tokenizer(models.Unigram()))
    characters = set(normalizers.NFKC().normalize_str("".join(texts)))
    if vocabulary_size < len(characters) + len(SPECIAL_TOKENS):
        raise TracInError(
            f"vocabulary_size={vocabulary_size} cannot hold the {len(characters):,} different characters of the training "
            f"texts and {len(SPECIAL_TOKENS)} special tokens: make it larger by at least a few hundred."
        )
    trainer = trainers.UnigramTrainer(
        vocab_size=vocabulary_size, special_tokens=SPECIAL_TOKENS, unk_token=UNKNOWN, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer = _prepared(Tokenizer(models.Unigram(_ordered_pieces(tokenizer), SPECIAL_TOKENS.index(UNKNOWN))))
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(token, SPECIAL_TOKENS.index(token)) for token in (START, END)],
    )
    roles = {**ROLES, "mask_token": MASK} if masked else ROLES
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"], **roles)


def _prepared(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


def _ordered_pieces(tokenizer: Tokenizer) -> list[tuple[str, float]]:
    """Pieces and scores in a fixed order, special tokens first; the trainer's order varies."""
    scores = dict(json.loads(tokenizer.to_str())["model"]["vocab"])
    return [(piece, scores[piece]) for piece in (*SPECIAL_TOKENS, *sorted(scores.keys() - {*SPECIAL_TOKENS}))]


def pretrained_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a local folder or the Hugging Face hub.

    Raises:
        TracInError: the tokenizer does not exist, or there is no network.
    """
    with found_on_hub("tokenizer", name):
        return AutoTokenizer.from_pretrained(name)


@contextmanager
def found_on_hub(what: str, name: str) -> Iterator[None]:
    """Turn the error for a missing model, or for a missing network, into a `TracInError` with a remedy."""
    try:
        yield
    except OSError as error:
        raise TracInError(
            f"The {what} {name!r} is neither a local folder nor available from the Hugging Face hub: correct the name; "
            "without a network, download it elsewhere, copy the folder and give its path as --model, or use --model small."
        ) from error


def encode(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Add the token ids, and hide the columns that the model does not take, such as the language."""
    encoded = dataset.map(
        lambda *texts: tokenizer(*texts, truncation=True, max_length=max_length),
        batched=True,
        input_columns=text_columns(dataset.column_names),
    )
    encoded.set_format(columns=["input_ids", "attention_mask", "label"])
    return encoded


class TextDataModule(pl.LightningDataModule):
    """Train samples, probes (as validation samples) and test samples in padded batches."""

    def __init__(self, split: Split, tokenizer: PreTrainedTokenizerBase, *, batch_size: int, max_length: int) -> None:
        super().__init__()
        self.train, self.probes, self.test = (
            encode(part, tokenizer, max_length) for part in (split.train, split.probes, split.test)
        )
        self.extra = encode(split.extra, tokenizer, max_length) if len(split.extra) else self.train.select([])
        self.batch_size = batch_size
        self.collate = DataCollatorWithPadding(tokenizer)

    def loader(self, samples: Dataset, shuffle: bool = False) -> DataLoader[Any]:
        """Padded batches of some samples."""
        return DataLoader(samples, batch_size=self.batch_size, shuffle=shuffle, collate_fn=self.collate)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled train samples."""
        return self.loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """The probes, in order."""
        return self.loader(self.probes)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test samples, in order."""
        return self.loader(self.test)
