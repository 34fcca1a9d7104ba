"""Ragged samples of each kind of task, with the collate functions that people use."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.models import PAD, padded, ragged_samples

IGNORED = -100
Sample = dict[str, Any]


def classes(count: int = 14) -> list[Sample]:
    return ragged_samples(count, seed=11, longest=9)


def tags(count: int = 14) -> list[Sample]:
    """A label for each token; some are ignored, as those of a word's later pieces are."""
    chosen = random.Random(5)
    samples = classes(count)
    for sample in samples:
        sample["labels"] = [chosen.choice([IGNORED, 0, 1, 2]) for _ in sample["input_ids"]]
        sample["labels"][1] = 1
    return samples


def spans(count: int = 14) -> list[Sample]:
    """A question's answer: its first and last position."""
    chosen = random.Random(6)
    samples = classes(count)
    for sample in samples:
        del sample["labels"]
        ends = sorted(chosen.randrange(len(sample["input_ids"])) for _ in range(2))
        sample["start_positions"], sample["end_positions"] = ends
    return samples


def masked(count: int = 14) -> list[Sample]:
    """Fixed masks: the third token, and some more."""
    chosen = random.Random(7)
    samples = classes(count)
    for sample in samples:
        ids = sample["input_ids"]
        hidden = {1, *(at for at in range(len(ids)) if chosen.random() < 0.3)}
        sample["labels"] = [token if at in hidden else IGNORED for at, token in enumerate(ids)]
        sample["input_ids"] = [3 if at in hidden else token for at, token in enumerate(ids)]
    return samples


def texts(count: int = 14) -> list[Sample]:
    """The next token is the label; some begin with a prompt that is ignored."""
    samples = classes(count)
    for number, sample in enumerate(samples):
        prompt = number % 2
        sample["labels"] = [IGNORED] * prompt + sample["input_ids"][prompt:]
    return samples


def translations(count: int = 14) -> list[Sample]:
    """Source, and target of another length."""
    chosen = random.Random(8)
    samples = classes(count)
    for sample in samples:
        sample["labels"] = [chosen.randrange(4, 60) for _ in range(chosen.randint(1, 6))] + [2]
    return samples


def packed_rows(count: int = 14) -> list[Sample]:
    """Each row holds two to three sequences; positions start again with each, and there is no attention mask."""
    chosen, rows = random.Random(9), []
    for _ in range(count):
        lengths = [chosen.randint(2, 5) for _ in range(chosen.randint(2, 3))]
        ids = [[chosen.randrange(4, 60) for _ in range(length)] for length in lengths]
        rows.append(
            {
                "input_ids": [token for one in ids for token in one],
                "position_ids": [at for length in lengths for at in range(length)],
                "labels": [token for one in ids for token in (IGNORED, *one[1:])],
            }
        )
    return rows


def many_labels(count: int = 14) -> list[Sample]:
    chosen, samples = random.Random(10), classes(count)
    for sample in samples:
        sample["labels"] = [float(chosen.random() < 0.5) for _ in range(3)]
    return samples


def padded_with(fill: dict[str, int], mask: bool = True) -> Callable[[list[Sample]], dict[str, Tensor]]:
    """A collate function that pads each named list on the right with its value, and stacks everything else."""

    def collate(samples: list[Sample]) -> dict[str, Tensor]:
        batch = {}
        for name in samples[0]:
            values = [torch.tensor(sample[name]) for sample in samples]
            if name in fill:
                batch[name] = torch.nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=fill[name])
            else:
                batch[name] = torch.stack(values)
        if mask:
            lengths = torch.tensor([len(sample["input_ids"]) for sample in samples])
            batch["attention_mask"] = (torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]).long()
        return batch

    return collate


def of_length(length: int, collate: Callable[[list[Sample]], dict[str, Tensor]]) -> Callable[[list[Sample]], dict[str, Tensor]]:
    """Pads every batch to one length."""

    def longer(samples: list[Sample]) -> dict[str, Tensor]:
        batch = collate(samples)
        missing = length - batch["input_ids"].shape[1]
        fill = {"input_ids": PAD, "attention_mask": 0, "labels": IGNORED}
        return {name: F.pad(value, (0, missing), value=fill[name]) if value.ndim == 2 else value for name, value in batch.items()}

    return longer


by_sample = padded
by_token = padded_with({"input_ids": PAD, "labels": IGNORED})
by_span = padded_with({"input_ids": PAD})
packed = padded_with({"input_ids": PAD, "labels": IGNORED, "position_ids": 0}, mask=False)
