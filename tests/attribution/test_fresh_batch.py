"""A step may do to its batch what it likes: the next evaluation gets it as the loader made it."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from transformers import BatchEncoding
from transformers.modeling_outputs import ModelOutput

from lightning_tracin import TracInCallback, TracInRun
from lightning_tracin.attribution.fresh_batch import fresh
from tests.support.fits import Classifier, loaders, trainer

Pair = namedtuple("Pair", ["ids", "labels"])


@dataclass(frozen=True)
class Frozen:
    ids: Tensor
    extra: dict[str, Any] = field(default_factory=dict)


class Graph:
    def __init__(self, ids: Tensor) -> None:
        self.ids, self.parts = ids, [ids.clone()]


@dataclass
class Output(ModelOutput):
    ids: Tensor | None = None


def ids() -> Tensor:
    return torch.arange(4)


@pytest.mark.parametrize(
    ("batch", "spoil", "look"),
    [
        ({"ids": ids()}, lambda b: b.pop("ids"), lambda b: b["ids"]),
        ({"a": {"ids": ids()}}, lambda b: b["a"].clear(), lambda b: b["a"]["ids"]),
        (OrderedDict(ids=ids()), lambda b: b.popitem(), lambda b: b["ids"]),
        (UserDict(ids=ids()), lambda b: b.pop("ids"), lambda b: b["ids"]),
        (BatchEncoding({"ids": ids()}), lambda b: b.pop("ids"), lambda b: b["ids"]),
        (Output(ids=ids()), lambda b: b["ids"].zero_(), lambda b: b["ids"]),
        ([ids(), 3], lambda b: b.pop(0), lambda b: b[0]),
        (([ids()], "x"), lambda b: b[0].clear(), lambda b: b[0][0]),
        (Pair([ids()], None), lambda b: b.ids.clear(), lambda b: b.ids[0]),
        (Frozen(ids(), {"more": ids()}), lambda b: b.extra.pop("more"), lambda b: b.extra["more"]),
        (Frozen(ids()), lambda b: b.ids.add_(1), lambda b: b.ids),
        (Graph(ids()), lambda b: (b.parts.clear(), delattr(b, "ids")), lambda b: b.parts[0] + 0 * b.ids),
        (ids(), lambda b: b.mul_(0), lambda b: b),
    ],
    ids=lambda value: type(value).__name__ if not callable(value) else "",
)
def test_what_is_done_to_a_fresh_batch_leaves_the_batch_as_it_was(
    batch: Any, spoil: Callable[[Any], Any], look: Callable[[Any], Tensor]
) -> None:
    again = fresh(batch)
    assert type(again) is type(batch)
    assert torch.equal(look(again), ids())
    spoil(again)
    assert torch.equal(look(batch), ids())


class Popping(Classifier):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        labels = batch.pop("labels")
        batch["input_ids"] = batch["input_ids"].clamp_(max=59)
        return torch.nn.functional.cross_entropy(self.model(**batch).logits, labels)


def test_a_step_that_pops_its_labels_has_the_scores_of_one_that_does_not(tmp_path: Path) -> None:
    scores = []
    for name, module in (("plain", Classifier()), ("pops", Popping())):
        pl.seed_everything(3)
        callback = TracInCallback(tmp_path / name / "run", top_k=5)
        trainer(tmp_path / name, [callback], max_epochs=1).fit(module, *loaders())
        scores.append(TracInRun.open(tmp_path / name / "run").influence().to_numpy())
    assert abs(scores[0] - scores[1]).max() < 1e-5
