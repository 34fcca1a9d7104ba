"""The pretrained encoder on clones: shared words keep their pretrained rows, a clone's own words have rows of other pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lightning_tracin.studies.datasets.clones import is_cloned
from lightning_tracin.studies.models.classifier import label_names
from lightning_tracin.studies.models.shipped_encoder import shipped_model, shipped_tokenizer


class PermutedEncoder(nn.Module):
    """The encoder with one frozen embedding for each word of a world.

    Args:
        words: the word of each id; None where the id is not a word.
        classes: number of labels.
        padding: the id of padding.
    """

    def __init__(self, words: Sequence[str | None], classes: int, padding: int) -> None:
        super().__init__()
        names = label_names([str(number) for number in range(classes)])
        self.model, self.padding = shipped_model(classifier_dropout=0.0, **names), padding
        rows = rows_of(words, self.model.encoder.embeddings.weight.detach())
        self.model.set_input_embeddings(nn.Embedding(len(rows), rows.shape[1], _weight=rows, _freeze=True))

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [texts, classes] of ids [texts, words]."""
        logits: Tensor = self.model(input_ids=ids, attention_mask=(ids != self.padding).long()).logits
        return logits


def rows_of(words: Sequence[str | None], table: Tensor, seed: int = 0) -> Tensor:
    """The embedding of each word: [words, width].

    A word as it is written in the text has the mean of its pieces' rows. A word of a clone has the row of a random piece, another
    one for each word, so that nothing which the encoder was trained on says what the word means. An id without a word, or
    with one that has no pieces, has the row of the piece that starts a text.

    Args:
        words: the words.
        table: the encoder's embeddings, [pieces, width].
        seed: of the rows of clones' words.
    """
    tokenizer = _tokenizer()
    drawn: Iterator[int] = iter(np.random.default_rng(seed).permutation(len(table)).tolist())
    start: Any = tokenizer.bos_token_id

    def row(word: str | None) -> Tensor:
        if word is None:
            return table[start]
        if is_cloned(word):
            return table[next(drawn)]
        pieces = tokenizer(word, add_special_tokens=False)["input_ids"]
        return table[pieces].mean(0) if pieces else table[start]

    return torch.stack([row(word) for word in words])


@lru_cache(maxsize=1)
def _tokenizer() -> PreTrainedTokenizerBase:
    return shipped_tokenizer()
