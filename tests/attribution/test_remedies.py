"""The lines that a message shows are right for the module's task: pasted, they give what each sample has alone."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_tracin.attribution.losses import find_loss
from lightning_tracin.attribution.remedies import remedy_for
from tests.guarantees.test_loss_families import FAMILIES, collated, probed, samples_of

PLAIN = [
    "one label",
    "multi-label",
    "regression",
    "tokens",
    "masked",
    "causal, padded",
    "causal, prompted",
    "seq2seq",
    "questions",
]


def pasted(module: nn.Module) -> Callable[[Any], Tensor]:
    lines = remedy_for(module).partition("\n\n")[2]
    scope: dict[str, Any] = {}
    exec(textwrap.dedent(lines), scope)
    return lambda batch: scope["per_sample_loss"](module, batch)


@pytest.mark.parametrize("name", PLAIN)
def test_the_lines_give_what_each_sample_has_alone(name: str) -> None:
    module = FAMILIES[name][0]()
    samples = samples_of(name, 6, 9)
    got = pasted(module)(collated(samples))
    want = torch.stack([module.training_step(collated([sample]), 0) for sample in samples])  # type: ignore[operator]
    torch.testing.assert_close(got.double(), want.double(), rtol=1e-5, atol=1e-6)
    module.per_sample_loss = pasted(module)  # type: ignore[assignment]
    assert find_loss(module, lambda: [probed(samples)]).name == "per_sample_loss"


def test_a_model_within_others_is_called_by_its_path() -> None:
    class GPT2LMHeadModel(nn.Module): ...

    class PeftModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_model = GPT2LMHeadModel()

        def get_base_model(self) -> nn.Module:
            return self.base_model

    module = nn.Module()
    module.body = nn.Module()
    module.body.net = PeftModel()
    assert "per_sample(self.body.net(**batch).logits, batch['labels'], shift=True)" in remedy_for(module)


def test_an_unknown_task_gets_general_lines_and_a_problem_type_its_own() -> None:
    assert "per_sample(self(batch), batch['labels'])" in remedy_for(nn.Linear(1, 1))

    class BertForSequenceClassification(nn.Module):
        config = SimpleNamespace(problem_type="regression", num_labels=1)

    assert "batch['labels']).square()" in remedy_for(BertForSequenceClassification())
