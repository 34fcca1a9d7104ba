"""What must not change the products: how samples are batched, ordered and padded, and how probes are cut into pieces."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_tracin.gradients import Coverage
from tests.support.exactness import ingredients, verified_coverage
from tests.support.models import PAD, padded, ragged_samples
from tests.support.zoo import MODELS, Loss

TRAIN, PROBES = ragged_samples(9, seed=51, longest=8), ragged_samples(5, seed=52, longest=8)


@cache
def model_of(family: str) -> tuple[nn.Module, Loss]:
    return MODELS[family]()


@cache
def coverage_of(family: str) -> Coverage:
    """It has looked at a batch, as the package does once before a fit, and not for each order of the samples."""
    model, loss = model_of(family)
    return verified_coverage(model, loss, padded, TRAIN[:4], [*groups_of(model)])


def groups_of(model: nn.Module) -> dict[str, int]:
    return {name: 0 for name, parameter in model.named_parameters() if parameter.requires_grad}


@cache
def reference(family: str) -> tuple[Tensor, Tensor, Tensor]:
    return computed(family, TRAIN, PROBES, 1, 1)


def computed(
    family: str, train: list[Any], probes: list[Any], batch_size: int, probe_batch_size: int, collate: Any = padded
) -> tuple[Tensor, Tensor, Tensor]:
    model, loss = model_of(family)
    groups, coverage = groups_of(model), coverage_of(family)
    return ingredients(model, loss, collate, train, probes, groups, batch_size, probe_batch_size, coverage=coverage)


def assert_same(got: tuple[Tensor, Tensor, Tensor], want: tuple[Tensor, Tensor, Tensor]) -> None:
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5 * float(other.abs().max()))


families = st.sampled_from(["xlm-roberta", "mt5", "mixtral"])


@given(families, st.integers(2, 10), st.integers(2, 6))
def test_batch_sizes(family: str, batch_size: int, probe_batch_size: int) -> None:
    assert_same(computed(family, TRAIN, PROBES, batch_size, probe_batch_size), reference(family))


@given(families, st.permutations(range(len(TRAIN))), st.permutations(range(len(PROBES))), st.integers(2, 6))
def test_order(family: str, order: list[int], probe_order: list[int], batch_size: int) -> None:
    got = computed(family, [TRAIN[i] for i in order], [PROBES[j] for j in probe_order], batch_size, 3)
    dot, norm, probe_norm = reference(family)
    assert_same(got, (dot[:, order][:, :, probe_order], norm[:, order], probe_norm[:, probe_order]))


def padded_by(extra: int, left: bool) -> Any:
    def collate(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = padded(samples)
        pad = torch.full((len(samples), extra), PAD)
        ids = torch.cat([batch["input_ids"], pad], 1)
        if left:
            ids = torch.stack([torch.roll(line, int((line == PAD).sum())) for line in ids])
        mask = (ids != PAD).long()
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        return {"input_ids": ids, "attention_mask": mask, "labels": batch["labels"], "position_ids": positions}

    return collate


def without_positions(collate: Any) -> Any:
    def stripped(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = collate(samples)
        del batch["position_ids"]
        return batch

    return stripped


@given(families, st.integers(1, 7), st.integers(1, 6))
def test_longer_padding(family: str, extra: int, batch_size: int) -> None:
    got = computed(family, TRAIN, PROBES, batch_size, 3, without_positions(padded_by(extra, left=False)))
    assert_same(got, reference(family))


def next_token_loss(batch: dict[str, Tensor]) -> Tensor:
    """With positions as they are given: XLM-R counts them from the first token that is not padding."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    model, _ = model_of("llama")
    logits = model(input_ids=ids, attention_mask=mask, position_ids=batch["position_ids"]).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (losses * mask[:, 1:] * mask[:, :-1]).sum()


@cache
def without_padding() -> tuple[Tensor, Tensor, Tensor]:
    model, _ = model_of("llama")
    return ingredients(model, next_token_loss, padded_by(0, left=False), TRAIN, PROBES, groups_of(model), 1, 1)


@given(st.integers(0, 5), st.integers(1, 6))
def test_padding_on_the_left(extra: int, batch_size: int) -> None:
    model, _ = model_of("llama")
    got = ingredients(model, next_token_loss, padded_by(extra, left=True), TRAIN, PROBES, groups_of(model), batch_size, 3)
    assert_same(got, without_padding())
