"""Steps whose loss people write themselves, around one small encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support import texts
from tests.support.models import tiny_xlmr
from tests.support.step_exactness import Case, Step

Batch = dict[str, Tensor]


class TwoPasses(Step):
    """R-Drop without randomness: the second pass does not see every third token; both agree by a symmetric divergence."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        first = self.model(batch["input_ids"], batch["attention_mask"]).logits
        seen = batch["attention_mask"] * (torch.arange(batch["input_ids"].shape[1]) % 3 != 2)
        second = self.model(batch["input_ids"], seen).logits
        apart = self.divergence(first, second) + self.divergence(second, first)
        losses = F.cross_entropy(first, batch["labels"]) + F.cross_entropy(second, batch["labels"])
        return losses / 2 + 0.7 * apart / 2

    def divergence(self, one: Tensor, other: Tensor) -> Tensor:
        return F.kl_div(one.log_softmax(-1), other.softmax(-1), reduction="batchmean")


class Focal(Step):
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses = F.cross_entropy(
            self.model(batch["input_ids"], batch["attention_mask"]).logits, batch["labels"], reduction="none"
        )
        return ((1 - (-losses).exp()) ** 2 * losses).mean()


class ClassWeights(Step):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.criterion = nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0]), label_smoothing=0.1)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return {"loss": self.criterion(self.model(batch["input_ids"], batch["attention_mask"]).logits, batch["labels"])}


class FocalTokens(Step):
    """A mean over labelled tokens by hand."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        hidden = self.model.roberta(batch["input_ids"], batch["attention_mask"])[0]
        logits = self.model.classifier.out_proj(hidden)
        losses = F.cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="none")
        labelled = (batch["labels"] != texts.IGNORED).to(losses)
        return ((1 - (-losses).exp()) ** 2 * losses * labelled).sum() / labelled.sum()


class Regression(Step):
    """One number a sample."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self.model(batch["input_ids"], batch["attention_mask"]).logits
        return F.mse_loss(logits[:, 0], batch["labels"].to(logits))


class TwoTasks(Step):
    """A label for the sample, and one for every token: its remainder."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        hidden = self.model.roberta(batch["input_ids"], batch["attention_mask"])[0]
        words = (batch["input_ids"] % 3).where(batch["attention_mask"].bool(), texts.IGNORED)
        tokens = F.cross_entropy(self.model.classifier.out_proj(hidden).flatten(0, 1), words.flatten())
        return F.cross_entropy(self.model.classifier(hidden), batch["labels"]) + 0.3 * tokens


class Distilled(Step):
    """Half of the loss is the divergence from a frozen teacher."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.teacher = tiny_xlmr(seed=4).requires_grad_(False)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self.model(batch["input_ids"], batch["attention_mask"]).logits / 2
        with torch.no_grad():
            wanted = self.teacher(batch["input_ids"], batch["attention_mask"]).logits / 2
        apart = nn.KLDivLoss(reduction="batchmean")(logits.log_softmax(-1), wanted.softmax(-1))
        return 0.5 * F.cross_entropy(logits * 2, batch["labels"]) + 2 * apart


def _case(step: type[Step], make: Callable[[], list[texts.Sample]], collate: Any, **model: Any) -> Callable[[], Case]:
    return lambda: Case(step(tiny_xlmr(**model)).double().eval(), make(), collate)


CASES = {
    "two passes": _case(TwoPasses, texts.classes, texts.by_sample),
    "focal loss": _case(Focal, texts.classes, texts.by_sample),
    "focal loss of tokens": _case(FocalTokens, texts.tags, texts.by_token),
    "class weights and label smoothing": _case(ClassWeights, texts.classes, texts.by_sample),
    "several labels": _case(
        Step, texts.many_labels, texts.padded_with({"input_ids": 1}), problem_type="multi_label_classification"
    ),
    "regression": _case(Regression, texts.classes, texts.by_sample),
    "two tasks": _case(TwoTasks, texts.classes, texts.by_sample),
    "distillation": _case(Distilled, texts.classes, texts.by_sample),
}
