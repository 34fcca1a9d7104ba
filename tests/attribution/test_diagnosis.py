"""Each reason why a batch's loss is not made of its samples' own is told, with its own remedy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import MixtralConfig, MixtralForCausalLM

from lightning_tracin import TracInCallback, TracInError
from lightning_tracin.attribution.losses import Probed, find_loss
from tests.support.fits import Classifier, Samples, trainer
from tests.support.models import padded

Collate = Callable[[list[dict[str, Any]]], dict[str, Tensor]]


class Text(pl.LightningModule):
    """A small classifier of bags of words; subclasses break it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.hidden, self.head = nn.Embedding(60, 8, padding_idx=1), nn.Linear(8, 8), nn.Linear(8, 3)

    def pooled(self, batch: dict[str, Tensor]) -> Tensor:
        mask = batch["attention_mask"][..., None].float()
        return (torch.tanh(self.hidden(self.table(batch["input_ids"]))) * mask).sum(1) / mask.sum(1)

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        return self.head(self.pooled(batch))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.logits(batch), batch["labels"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


class DropoutByHand(Text):
    def pooled(self, batch: dict[str, Tensor]) -> Tensor:
        return F.dropout(super().pooled(batch), 0.3)


class TrainInStep(Text):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3)

    def pooled(self, batch: dict[str, Tensor]) -> Tensor:
        return self.drop(super().pooled(batch))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.drop.train()
        return super().training_step(batch, batch_idx)


class MaskedInStep(Text):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        ids = batch["input_ids"].masked_fill(torch.rand(batch["input_ids"].shape) < 0.3, 3)
        return super().training_step({**batch, "input_ids": ids}, batch_idx)


class Padded(Text):
    """A mean over all positions, padding among them."""

    def pooled(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.tanh(self.hidden(self.table(batch["input_ids"]))).mean(1)


class Negatives(Text):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        one, other = self.pooled(batch), self.hidden(self.pooled(batch))
        return F.cross_entropy(one @ other.T, torch.arange(len(one)))


class Contrastive(Text):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        one = F.normalize(self.pooled(batch), dim=-1)
        alike = (batch["labels"][:, None] == batch["labels"][None]).float()
        return super().training_step(batch, batch_idx) + 0.3 * ((torch.matmul(one, one.T) - alike) ** 2).mean()


class BatchNormed(Text):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8, track_running_stats=False)

    def pooled(self, batch: dict[str, Tensor]) -> Tensor:
        return self.norm(super().pooled(batch))


class BatchNormedTokens(BatchNormed):
    """Alone, a sample has tokens enough for statistics."""

    def pooled(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.norm(self.hidden(self.table(batch["input_ids"])).transpose(1, 2)).transpose(1, 2)
        mask = batch["attention_mask"][..., None].float()
        return (torch.tanh(hidden) * mask).sum(1) / mask.sum(1)


class BatchNormInTraining(BatchNormed):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.norm.train()
        return super().training_step(batch, batch_idx)


class SquaredWeights(Text):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + 1e-3 * sum(one.square().sum() for one in self.parameters())


class SquaredWeightsOfASum(SquaredWeights):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        penalty = super().training_step(batch, 0) - Text.training_step(self, batch, 0)
        return F.cross_entropy(self.logits(batch), batch["labels"], reduction="sum") + penalty


class SquaredWeightsOfAWeightedMean(Text):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        weighted = F.cross_entropy(self.logits(batch), batch["labels"], torch.tensor([1.0, 3.0, 9.0]))
        return weighted + 1e-3 * torch.linalg.matrix_norm(self.hidden.weight) ** 2


class SquaredWeightsBesideALossByHand(Text):
    """No loss function of torch's is called."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        losses = -self.logits(batch).log_softmax(-1).gather(1, batch["labels"][:, None])
        return losses.mean() + 0.01 * self.hidden.weight.square().sum()


class Root(Text):
    """A function of the mean that is no mean."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx).sqrt()


class Spread(Text):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        found = self.pooled(batch)
        return super().training_step(batch, batch_idx) + 0.1 * (found - found.mean(0)).square().sum(1).mean()


class MaskedByNumpy(MaskedInStep):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        mask = torch.from_numpy(np.random.rand(*batch["input_ids"].shape) < 0.3)
        return Text.training_step(self, {**batch, "input_ids": batch["input_ids"].masked_fill(mask, 3)}, batch_idx)


class Orthogonal(Text):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        gram = self.hidden.weight @ self.hidden.weight.T
        return super().training_step(batch, batch_idx) + 0.01 * (gram - torch.eye(8)).pow(2).sum()


class Experts(Text):
    """Switches with a capacity: an expert takes the first tokens that come to it."""

    capacity, coefficient = 4, 0.0

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(8, 2), nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        hidden = self.table(batch["input_ids"])
        flat = hidden.reshape(-1, 8)
        shares = self.router(flat).softmax(-1)
        mixed = torch.zeros_like(flat)
        for index, expert in enumerate(self.experts):
            taken = (shares.argmax(-1) == index).nonzero()[: self.capacity, 0]
            mixed = mixed.index_add(0, taken, expert(flat[taken]) * shares[taken, index, None])
        mask = batch["attention_mask"][..., None].float()
        pooled = (mixed.view_as(hidden) * mask).sum(1) / mask.sum(1)
        balance = 2 * ((shares * mask.reshape(-1, 1)).sum(0) / mask.sum()).square().sum()
        return F.cross_entropy(self.head(pooled), batch["labels"]) + self.coefficient * balance


class Balanced(Experts):
    capacity, coefficient = 10_000, 0.05


class Mixture(Classifier):
    """A language model of transformers, which adds its router's loss itself, in place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = MixtralConfig(
            vocab_size=60,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_local_experts=4,
            pad_token_id=1,
            output_router_logits=True,
            router_aux_loss_coef=0.02,
        )
        self.model = MixtralForCausalLM(config)  # type: ignore[assignment]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss: Tensor = self.model(**{**batch, "labels": labels}).loss
        return loss


class Fgm(Text):
    """Adversarial training: a second loss at embeddings moved along their gradient."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        (gradient,) = torch.autograd.grad(loss, self.table.weight, retain_graph=True)
        moved = gradient / (gradient.norm() + 1e-8)
        self.table.weight.data.add_(moved)
        adversarial = super().training_step(batch, batch_idx)
        self.table.weight.data.sub_(moved)
        return loss + adversarial


class FgmByBackward(Text):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        with torch.enable_grad():
            super().training_step(batch, batch_idx).backward(retain_graph=True)
            gradient = self.table.weight.grad
            assert gradient is not None
            moved = gradient / (gradient.norm() + 1e-8)
            self.table.weight.grad = None
        hidden = F.embedding(batch["input_ids"], self.table.weight + moved)
        return F.cross_entropy(self.head(torch.tanh(self.hidden(hidden)).mean(1)), batch["labels"])


class Neighbours(Text):
    """Smooths each sample's representation with the next one's."""

    def pooled(self, batch: dict[str, Tensor]) -> Tensor:
        found = super().pooled(batch)
        return 0.8 * found + 0.2 * found.roll(1, 0)


def masking(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    batch = padded(samples)
    batch["input_ids"][torch.rand(batch["input_ids"].shape) < 0.2] = 3
    return batch


RANDOM = "The reason: the same batch has another loss when it is evaluated again: "
REASONS: dict[str, tuple[type[pl.LightningModule], Collate, str]] = {
    "dropout by hand": (DropoutByHand, padded, f"{RANDOM}dropout is called by hand .* `F.dropout.x, p, training=self.training.`"),
    "train in step": (TrainInStep, padded, f"{RANDOM}the step puts 'drop' into training mode.* `if self.training:`"),
    "masking in step": (MaskedInStep, padded, f"{RANDOM}the step draws random numbers .rand.: masking.* `if self.training:`"),
    "masking in collate": (Text, masking, "The reason: the collate function .* random masking or augmentation. Draw it once"),
    "padding": (Padded, padded, "The reason: a sample's loss changes with the padding .*`attention_mask`.*padding='max_length'"),
    "in-batch negatives": (Negatives, padded, "The reason: the samples are compared with each other .in-batch negatives"),
    "contrastive": (Contrastive, padded, "The reason: the samples are compared with each other .in-batch negatives"),
    "batch norm": (BatchNormed, padded, "The reason: a BatchNorm uses the statistics of the batch.*`track_running_stats=True`"),
    "batch norm of tokens": (BatchNormedTokens, padded, "The reason: a BatchNorm uses .*`track_running_stats=True`"),
    "batch norm in training": (BatchNormInTraining, padded, "The reason: a BatchNorm uses .*`track_running_stats=True`"),
    "L2": (SquaredWeights, padded, "depends on the weights alone .an L2 or orthogonality penalty.*`weight_decay`"),
    "L2 of a sum": (SquaredWeightsOfASum, padded, "depends on the weights alone .an L2 or orthogonality penalty.*`weight_decay`"),
    "L2 of a weighted mean": (SquaredWeightsOfAWeightedMean, padded, "depends on the weights alone .an L2 or .*`weight_decay`"),
    "L2 beside a loss by hand": (SquaredWeightsBesideALossByHand, padded, "depends on the weights alone .an L2 .*`weight_decay`"),
    "root": (Root, padded, "neither the mean nor the sum .* Add a method `per_sample_loss.self, batch.`"),
    "spread": (Spread, padded, "The reason: the loss has a term beside its samples' losses that depends on the batch"),
    "masking by numpy": (MaskedByNumpy, padded, f"{RANDOM}the step draws random numbers: masking.* `if self.training:`"),
    "orthogonality": (Orthogonal, padded, "depends on the weights alone .an L2 or orthogonality penalty.*`weight_decay`"),
    "capacity": (Experts, padded, "The reason: the loss changes when .* another order, and the model has experts.*capacity"),
    "load balancing": (Balanced, padded, "The reason: the loss has a term of its router .*`output_router_logits=False`"),
    "load balancing of Mixtral": (
        Mixture,
        padded,
        "a term of its router .*`coefficient . outputs.aux_loss`",
    ),
    "FGM": (
        Fgm,
        padded,
        "`training_step` computes gradients itself .adversarial training such as FGM.*per_sample_loss",
    ),
    "FGM by backward": (FgmByBackward, padded, "The reason: `training_step` computes gradients itself .adversarial training"),
    "neighbours": (Neighbours, padded, "The reason: the loss changes when the same samples come in another order"),
}


def probed(samples: list[dict[str, Any]], collate: Collate) -> Probed:
    def some(positions: Sequence[int]) -> Any:
        return collate([samples[position] for position in positions])

    return Probed(some(range(len(samples))), [some([i]) for i in range(len(samples))], "train samples", some)


@pytest.mark.parametrize("name", REASONS)
def test_the_reason_is_told_apart(name: str) -> None:
    kind, collate, message = REASONS[name]
    batches = [probed(Samples(size, size).samples, collate) for size in (5, 2, 8)]
    with pytest.raises(TracInError, match=message):
        find_loss(kind().eval(), lambda: batches)


@pytest.mark.parametrize("name", ["masking in collate", "batch norm", "L2", "load balancing", "FGM", "train in step", "padding"])
def test_a_fit_ends_in_the_reason_before_its_first_step(tmp_path: Path, name: str) -> None:
    kind, collate, message = REASONS[name]
    pl.seed_everything(0)
    train, probes = (DataLoader(Samples(*which), batch_size=7, collate_fn=collate) for which in ((30, 1), (9, 2)))
    fitting = trainer(tmp_path, [TracInCallback(tmp_path / "run", top_k=5)], max_epochs=1)
    with pytest.raises(TracInError, match=message):
        fitting.fit(kind(), train, probes)
    assert fitting.global_step == 0


class ScaledGradient(torch.autograd.Function):
    """The loss is that of each sample; the gradient depends on how many there are."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * len(gradient)


class WrongGradient(Text):
    def pooled(self, batch: dict[str, Tensor]) -> Tensor:
        return ScaledGradient.apply(super().pooled(batch))


def test_a_gradient_without_a_known_reason_keeps_its_own_message(tmp_path: Path) -> None:
    train, probes = (DataLoader(Samples(*which), batch_size=7, collate_fn=padded) for which in ((30, 1), (9, 2)))
    with pytest.raises(TracInError, match=r"gradient of a batch is not the sum(?!.*The reason)"):
        trainer(tmp_path, [TracInCallback(tmp_path / "run", top_k=5)], max_epochs=1).fit(WrongGradient(), train, probes)


def test_an_error_of_the_step_itself_stays_what_it_is() -> None:
    class Broken(Text):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            raise ValueError("my own")

    with pytest.raises(ValueError, match="my own"):
        find_loss(Broken().eval(), lambda: [probed(Samples(5, 1).samples, padded)])


class PaddedOfItsOwn(Padded):
    def per_sample_loss(self, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(self.logits(batch), batch["labels"], reduction="none")


def test_a_loss_for_each_sample_has_its_reason_too() -> None:
    batches = [probed(Samples(size, size).samples, padded) for size in (5, 2, 8)]
    with pytest.raises(TracInError, match=r"losses of `per_sample_loss` sum to .* The reason: .* with the padding of its batch"):
        find_loss(PaddedOfItsOwn().eval(), lambda: batches)


class LearnedWeights(Text):
    """Two losses that are weighed by parameters: a term of these alone is no penalty."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.Parameter(torch.tensor([0.3, -0.2]))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        losses = torch.stack([super().training_step(batch, batch_idx), F.cross_entropy(self.logits(batch) / 2, batch["labels"])])
        return ((-self.scales).exp() * losses + self.scales).sum()


def test_learned_weights_of_losses_are_no_penalty() -> None:
    batches = [probed(Samples(size, size).samples, padded) for size in (5, 2, 8)]
    assert find_loss(LearnedWeights().eval(), lambda: batches).name == "training_step (mean)"
