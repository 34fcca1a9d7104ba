"""Parts of the updates of the models and losses that are trained in practice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import pytorch_lightning as pl
import torch
import transformers as hf
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_tracin.gradients.group_split import UNDIVIDED
from tests.support import plain_optimizers as plain
from tests.support.fits import Samples
from tests.support.models import padded, tiny_xlmr
from tests.support.step_fits import (
    ByHand,
    Module,
    Plain,
    Tokens,
    batches_of,
    fitted,
    loader,
    require_same,
    require_sums,
    weights_of,
)
from tests.support.zoo import CAUSAL

ADAMW = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)


class Texts(Samples):
    """Ragged texts whose languages are not evenly mixed: a batch may have one only, or lack one."""

    def __init__(self, count: int, seed: int, languages: Sequence[str] = ("de", "de", "de", "de", "ru", "en", "ru")) -> None:
        super().__init__(count, seed, tuple(languages))


def tokenwise(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    batch = padded(samples)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, ::3] = -100
    return {**batch, "labels": labels}


class Trained(pl.LightningModule):
    def __init__(self, make: Callable[[], nn.Module], weights: Tensor | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model, self.weights = make().double().eval(), weights
        self.frozen_mode = True

    def train(self, mode: bool = True) -> Any:  # no dropout
        return super().train(False)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        if self.weights is None:
            return self.model(**batch).loss
        logits = self.model(**{name: value for name, value in batch.items() if name != "labels"}).logits
        return nn.functional.cross_entropy(logits, batch["labels"], weight=self.weights)

    def configure_optimizers(self) -> Any:
        return ADAMW([one for one in self.parameters() if one.requires_grad])


def _lora() -> nn.Module:
    model = peft.get_peft_model(tiny_xlmr(), peft.LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS"))
    for name, one in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(one, std=0.1)
    return model


def _dora() -> nn.Module:
    config = peft.LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS", use_dora=True)
    return peft.get_peft_model(tiny_xlmr(), config)


def _tied() -> nn.Module:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**{**CAUSAL, "tie_word_embeddings": True}))


CASES: dict[str, tuple[Callable[[], nn.Module], Any, Tensor | None]] = {
    "encoder": (tiny_xlmr, padded, None),
    "encoder, eager attention": (partial(tiny_xlmr, "eager"), padded, None),
    "class weights": (tiny_xlmr, padded, torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)),
    "LoRA": (_lora, padded, None),
    "DoRA": (_dora, padded, None),
    "causal, tied, mean over tokens": (_tied, tokenwise, None),
}


def weight_of(sample: dict[str, Tensor], weights: Tensor | None) -> float:
    """What a sample counts in a batch: its tokens, or its class's weight."""
    labels = sample["labels"]
    if labels.ndim > 1:
        return float((labels[:, 1:] != -100).sum())
    return 1.0 if weights is None else float(weights[labels].sum())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [4, 1])
def test_models_of_transformers(tmp_path: Path, name: str, size: int) -> None:
    make, collate, weights = CASES[name]
    train = Texts(15, seed=3)
    module, other = Trained(make, weights), Trained(make, weights)
    probes = DataLoader(Texts(8, seed=4), batch_size=4, collate_fn=collate)
    spy = fitted(tmp_path, module, DataLoader(train, batch_size=size, collate_fn=collate), {}, probes=probes)
    hand = ByHand(other, train, lambda _: plain.adam(0.01, weight_decay=0.1, decoupled=True))
    trainable = [one for one, parameter in other.named_parameters() if parameter.requires_grad]
    hand.totals = {one: {} for one in trainable}
    for batch in batches_of(15, size) * 2:
        samples = {index: collate([train[index]]) for index in batch}
        counts = {index: weight_of(sample, weights) for index, sample in samples.items()}
        hand.zero()
        for index in batch:
            loss = other.training_step(samples[index], 0) * (counts[index] / sum(counts.values()))
            other.zero_grad()
            loss.backward()
            for one in trainable:
                gradient, mine = hand.parameters[one].grad, hand.parts[one]
                if gradient is not None:
                    mine[train.language[index]] = mine.get(train.language[index], 0) + gradient.clone()
        hand.step()
    noisy = [one for one in trainable if one.endswith("key.bias")]  # their gradients are nothing but rounding
    for one in noisy:
        del hand.totals[one]
    for (one, mine), theirs in zip(module.named_parameters(), other.parameters(), strict=True):
        assert one in noisy or torch.allclose(mine, theirs, atol=1e-8), f"{one}: the oracle itself is wrong"
    require_same(spy, hand.totals, 1e-5)
    assert spy.account is not None
    assert spy.account.approximate is None
    assert not spy.account.remainders


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_half_precision(tmp_path: Path, precision: str, optimizer: str) -> None:
    make = ADAMW if optimizer == "adamw" else partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    train, found = Tokens(40, seed=1), []
    for number, own in enumerate(("32-true", precision)):
        module = Module(Plain, make).to(torch.bfloat16 if own == "bf16-true" else torch.float32)
        before = weights_of(module)
        spy = fitted(tmp_path / str(number), module, DataLoader(train, batch_size=20), {}, precision=own, max_epochs=1)
        rounded = torch.finfo(next(module.parameters()).dtype).eps  # of the weights, in each of two steps
        for one, weights in weights_of(module).items():
            gap = sum(part.double() for part in spy.found[one].values()) - (weights.double() - before[one].double())
            assert float(gap.norm()) <= rounded * float(weights.norm()) + 2e-2 * float((weights - before[one]).norm()), one
        assert spy.account is not None
        assert spy.account.approximate is None
        assert not spy.account.remainders
        found.append(spy.found)
    for one, parts in found[0].items():
        largest = max(float(part.norm()) for part in parts.values())
        for source, part in parts.items():
            off = float((found[1][one][source].float() - part).norm()) / largest
            assert off < (0.1 if optimizer == "sgd" else 0.5), (one, source, off)


class Interacting(Module):
    """Batch norm, a contrastive term over the batch, and a temperature of the module's own."""

    def __init__(self, temperature: bool) -> None:
        super().__init__(lambda: nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.BatchNorm1d(20), nn.Linear(20, 6)), ADAMW)
        self.temperature = nn.Parameter(torch.zeros((), dtype=torch.float64)) if temperature else 0.0

    def per_sample_loss(self, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.model(batch["tokens"])[:, :3] * self._scale, batch["labels"], reduction="none")

    @property
    def _scale(self) -> Any:
        return torch.exp(self.temperature) if isinstance(self.temperature, Tensor) else 1.0

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        states = self.model(batch["tokens"])
        near = states @ states.T * self._scale
        own = torch.arange(len(states))
        return self.per_sample_loss(batch).mean() + 0.1 * nn.functional.cross_entropy(near, own)


@pytest.mark.parametrize("temperature", [True, False])
def test_samples_that_interact_add_up(tmp_path: Path, temperature: bool, caplog: pytest.LogCaptureFixture) -> None:
    module = Interacting(temperature)
    before = weights_of(module)
    with caplog.at_level("INFO"):
        spy = fitted(tmp_path, module, loader(Tokens(20, seed=1)), {})
    assert require_sums(spy, before, weights_of(module)) < 1e-9
    assert spy.account is not None
    assert spy.account.approximate is None
    assert not spy.account.remainders
    assert {one for one, mine in spy.found.items() if UNDIVIDED in mine} == ({"temperature"} if temperature else set())
    said = (
        '1 parameters (1 elements, such as temperature) cannot be split by group; their part of the change is the row "undivided"'
    )
    assert (said in caplog.text) == temperature


@pytest.mark.parametrize("languages", [("de",), ("de", "en")])
def test_packed_batches_are_undivided_unless_they_have_one_language(tmp_path: Path, languages: tuple[str, ...]) -> None:
    class Packed(Texts):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"input_ids": self.samples[index]["input_ids"]}

    def make() -> nn.Module:
        return hf.LlamaForCausalLM(hf.LlamaConfig(**{**CAUSAL, "use_cache": False, "attn_implementation": "eager"}))

    collate = hf.DataCollatorWithFlattening(return_position_ids=True, separator_id=-100)
    module = Trained(make)
    before = weights_of(module)
    probes = DataLoader(Packed(6, 4, languages), batch_size=3, collate_fn=collate)
    spy = fitted(tmp_path, module, DataLoader(Packed(12, 3, languages), batch_size=4, collate_fn=collate), {}, probes=probes)
    require_sums(spy, before, weights_of(module), 1e-5)
    sources = set().union(*(mine.keys() for mine in spy.found.values()))
    assert (UNDIVIDED in sources) == (len(languages) > 1)
