"""Products of per-sample gradients equal those of a loop of `autograd.grad` over single samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.exactness import assert_exact
from tests.support.models import padded, ragged_samples, tiny_xlmr


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_xlm_roberta_with_ragged_batches(attention: str, batch_size: int) -> None:
    model = tiny_xlmr(attention).eval()
    train, probes = ragged_samples(33, seed=1), ragged_samples(6, seed=2)
    assert_exact(model, lambda batch: model(**batch).loss * len(batch["labels"]), padded, train, probes, batch_size)


def test_position_ids_that_the_whole_batch_shares() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.positions = nn.Embedding(60, 8), nn.Embedding(24, 8)
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, ids: Tensor) -> Tensor:
            mask = (ids != 1)[..., None]
            both = self.words(ids) + self.positions(torch.arange(ids.shape[1])[None])
            return self.head((self.norm(both) * mask).sum(1))

    torch.manual_seed(0)
    model = Positions()
    assert_exact(
        model,
        lambda batch: F.cross_entropy(model(batch["input_ids"]), batch["labels"], reduction="sum"),
        padded,
        ragged_samples(9, seed=3),
        ragged_samples(5, seed=4),
        batch_size=4,
    )


class Tied(nn.Module):
    """A language model whose head is its embedding, with a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(60, 8)
        self.twice = nn.Linear(8, 8)
        self.head = nn.Linear(8, 60)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        hidden = torch.tanh(self.twice(torch.tanh(self.twice(self.words(ids)))))
        logits = self.head(hidden[:, :-1])
        losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        return (losses * (ids[:, 1:] != 1)).sum()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_tied_and_repeated_layers_have_their_cross_terms(batch_size: int) -> None:
    model = Tied()
    samples = ragged_samples(14, seed=5)
    assert_exact(model, lambda batch: model(batch["input_ids"]), padded, samples[:9], samples[9:], batch_size)


def test_in_place_activations_and_layers_that_the_loss_ignores() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.unused = nn.Linear(5, 7), nn.Linear(7, 3), nn.Linear(7, 2)

        def forward(self, x: Tensor) -> Tensor:
            hidden = F.relu(self.first(x), inplace=True)
            self.unused(hidden)
            return self.second(hidden)

    torch.manual_seed(0)
    model = InPlace()
    samples = [(torch.randn(5), i % 3) for i in range(11)]

    def collate(rows: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        return torch.stack([x for x, _ in rows]), torch.tensor([y for _, y in rows])

    assert_exact(
        model,
        lambda batch: F.cross_entropy(model(batch[0]), batch[1], reduction="sum"),
        collate,
        samples[:7],
        samples[7:],
        batch_size=3,
    )


def test_many_probes_of_a_wide_vocabulary_join_rare_and_common_tokens() -> None:
    """Both ways of joining rows run: tokens that nearly all samples have, and tokens that few have."""
    model = tiny_xlmr(vocab_size=3000).eval()
    train, probes = ragged_samples(40, 6, vocabulary=3000), ragged_samples(40, 7, vocabulary=3000)
    for one, other in zip(train, probes, strict=True):
        one["input_ids"][1] = other["input_ids"][-2]  # some rare tokens in common
    assert_exact(model, lambda batch: model(**batch).loss * len(batch["labels"]), padded, train, probes, batch_size=16)


def test_batch_whose_loss_does_not_depend_on_a_layer() -> None:
    """Gates close a branch for whole batches of train samples, and of probes."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.branch, self.head = nn.Embedding(60, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, ids: Tensor) -> Tensor:
            hidden = self.words(ids)
            gate = (ids.sum(1) % 2 == 0).float()[:, None, None]
            return self.head((hidden + gate * self.branch(hidden)).sum(1))

    torch.manual_seed(0)
    model = Gated()
    samples = [dict(one, input_ids=(one["input_ids"] + [5] * 14)[:14]) for one in ragged_samples(24, seed=8)]
    samples.sort(key=lambda sample: -(sum(sample["input_ids"]) % 2))

    def loss(batch: Any) -> Tensor:
        return F.cross_entropy(model(batch["input_ids"]), batch["labels"], reduction="sum")

    for order in (samples, samples[::-1]):
        assert_exact(model, loss, padded, order, order, batch_size=4)
