"""What people fine-tune, from an ordinary `training_step` to scores: exact by family, and computed from whole batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from lightning_tracin import TracInError
from tests.support import adapted, decoders, encoders, own_losses, texts, translators
from tests.support.models import tiny_xlmr
from tests.support.step_exactness import Case, Step, assert_step_exact

#: They take more than two seconds each on a quiet machine.
SLOW = {"Switch", "Switch, capacity of 2", "NLLB-MoE of 12"}

CASES = {**encoders.CASES, **decoders.CASES, **translators.CASES, **adapted.CASES, **own_losses.CASES}


def marked() -> Iterator[object]:
    for name, build in CASES.items():
        yield pytest.param(build, id=name, marks=[pytest.mark.slow] if name in SLOW else [])


@pytest.mark.parametrize("build", list(marked()))
def test_scores_of_a_plain_step_equal_the_loop(build: Callable[[], Case]) -> None:
    assert_step_exact(build())


class Experts(Step):
    """The classifier of a small encoder, whose words go to one of two experts; each takes a number of words at most."""

    def __init__(self, capacity: int, counts: bool) -> None:
        super().__init__(tiny_xlmr())
        self.experts, self.router = nn.ModuleList([nn.Linear(16, 16) for _ in range(2)]), nn.Linear(16, 2)
        self.capacity, self.counts = capacity, counts

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        x = self.model.roberta(batch["input_ids"], batch["attention_mask"])[0]
        live = batch["attention_mask"].flatten().bool()
        words = x.flatten(0, 1)
        chosen, out = self.router(words).argmax(1), torch.zeros_like(words)
        for number, expert in enumerate(self.experts):
            mine = (chosen == number) & live
            if self.counts:
                out = out + expert(words) * (mine & (mine.cumsum(0) <= self.capacity))[:, None]
            else:
                some = mine.nonzero()[: self.capacity, 0]
                out[some] = expert(words[some])
        logits = self.model.classifier(x + out.view_as(x))
        return nn.functional.cross_entropy(logits, batch["labels"])


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("batch_size", [32, 2])
def test_a_capacity_that_only_a_large_batch_uses_up(counts: bool, batch_size: int) -> None:
    torch.manual_seed(0)
    experts = Experts(capacity=45, counts=counts).double().eval()
    case = Case(experts, texts.classes(40), texts.by_sample, batch_size=batch_size)
    if batch_size == 2:
        assert_step_exact(case)
        return
    with pytest.raises(TracInError, match="no longer the mean of its samples' own losses for a batch of train samples"):
        assert_step_exact(case)


@pytest.mark.parametrize(("capacity", "message"), [(60, "is no longer the mean"), (4, "is neither the mean nor the sum")])
def test_experts_that_drop_tokens_are_refused_when_they_do(capacity: int, message: str) -> None:
    config, model, settings = translators.FAMILIES["NLLB-MoE"]
    settings = {**settings, "expert_capacity": capacity, "moe_eval_capacity_token_fraction": -1.0}
    with pytest.raises(TracInError, match=f"{message}.*experts.*capacity"):
        assert_step_exact(translators.translator(config, model, settings, samples=34, batch_size=32))


def test_a_penalty_that_a_model_adds_is_named() -> None:
    case = adapted.CASES["AdaLoRA"]()
    with pytest.raises(TracInError, match="depends on the weights alone"):
        assert_step_exact(Case(Step(case.module.model).eval(), case.samples, case.collate))
