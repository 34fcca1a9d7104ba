from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_tracin.studies.models.classifier import pretrained_model
from lightning_tracin.studies.models.sentence_encoder import (
    ORDERS,
    SentenceEncoderConfig,
    SentenceEncoderForSequenceClassification,
)
from tests.support.exactness import assert_exact
from tests.support.models import padded, ragged_samples

SIZES = {"vocab_size": 60, "hidden_size": 12, "branch_size": 8, "residual_size": 10}


def tiny(**changes: Any) -> SentenceEncoderForSequenceClassification:
    torch.manual_seed(0)
    config = SentenceEncoderConfig(**{**SIZES, "initializer_range": 0.5, **changes}, num_labels=3)
    return SentenceEncoderForSequenceClassification(config).eval()


def logits_by_hand(model: SentenceEncoderForSequenceClassification, ids: list[int]) -> Tensor:
    """One sentence, piece by piece and window by window."""
    encoder = model.encoder
    embedded = [encoder.embeddings.weight[piece] for piece in ids]
    parts = [encoder.branch_norm(encoder.branch_projection(one)).chunk(3) for one in embedded]
    branches = []
    for number, (order, before) in enumerate(ORDERS):
        pieces = [part[number] for part in parts]
        for layer in (encoder.branches[number].first, encoder.branches[number].second):
            zero = torch.zeros_like(pieces[0])
            windows = [
                torch.cat(
                    [pieces[at - before + place] if 0 <= at - before + place < len(ids) else zero for place in range(order)]
                )
                for at in range(len(ids))
            ]
            pieces = [torch.relu(layer(window)) + piece for window, piece in zip(windows, pieces, strict=True)]
        branches.append(pieces)
    features = [encoder.norm(torch.cat([embedded[at], *(branch[at] for branch in branches)])) for at in range(len(ids))]
    mean = sum(encoder.projection(one) for one in features) / len(ids) ** 0.5
    one = torch.relu(encoder.inner[0](mean))
    two = torch.relu(encoder.residual[0](mean) + encoder.inner[1](one))
    three = torch.relu(encoder.inner[2](two))
    last = torch.tanh(encoder.residual[1](two) + encoder.inner[3](three))
    return model.classifier(last / last.norm() * 12**0.5)


def test_a_sentence_is_encoded_as_by_hand_alone_and_beside_longer_ones() -> None:
    model = tiny().double()
    sentences = [[1, 7, 2], [1, 9, 4, 30, 12, 2], [1, 2]]
    batch = torch.zeros(3, 6, dtype=torch.long)
    mask = torch.zeros(3, 6, dtype=torch.long)
    for row, ids in enumerate(sentences):
        batch[row, : len(ids)], mask[row, : len(ids)] = torch.tensor(ids), 1
    batch[mask == 0] = 5  # whatever padding is
    found = model(batch, mask).logits
    for row, ids in enumerate(sentences):
        torch.testing.assert_close(found[row], logits_by_hand(model, ids), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(model(torch.tensor([ids])).logits[0], found[row], rtol=1e-10, atol=1e-10)


def test_gradients_of_every_parameter_are_exact() -> None:
    model = tiny(initializer_range=0.2)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        logits = model(batch["input_ids"], batch["attention_mask"]).logits
        return functional.cross_entropy(logits, batch["labels"], reduction="none")

    train, probes = ragged_samples(9, seed=1), ragged_samples(5, seed=2)
    for frozen in (False, True):
        model.get_input_embeddings().requires_grad_(not frozen)
        coverage = assert_exact(model, loss, padded, train, probes, batch_size=4)
        assert not coverage.decisions.one_by_one


def test_a_saved_folder_is_loaded_like_any_other(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path)
    loaded = pretrained_model(str(tmp_path), ["a", "b", "c"])
    assert isinstance(loaded, SentenceEncoderForSequenceClassification)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    other = pretrained_model(str(tmp_path), ["a", "b"])
    assert other.classifier.out_features == 2
    torch.testing.assert_close(other.encoder.state_dict(), model.encoder.state_dict(), rtol=0, atol=0)


def test_the_loss_is_the_mean_of_its_samples() -> None:
    model = tiny().double()
    ids, labels = torch.tensor([[1, 4, 2], [1, 8, 2]]), torch.tensor([0, 2])
    each = [model(ids[row : row + 1], labels=labels[row : row + 1]).loss for row in range(2)]
    torch.testing.assert_close(model(ids, labels=labels).loss, torch.stack(each).mean())
