"""Recorded learning rates are the optimizer's own at each step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_tracin import TracInCallback, TracInRun
from tests.support.fits import Classifier, Samples, loaders, trainer
from tests.support.models import padded


def watch(optimizer: torch.optim.Optimizer, rates: list[list[float]]) -> None:
    """Note the rates that each real step uses, from within the optimizer itself."""
    optimizer.register_step_pre_hook(
        lambda stepping, args, kwargs: rates.append([float(group["lr"]) for group in stepping.param_groups])
    )


class Watched(Classifier):
    def __init__(self, schedule: str) -> None:
        super().__init__()
        self.schedule, self.used = schedule, []

    def configure_optimizers(self) -> Any:
        configured = super().configure_optimizers()
        optimizer = configured["optimizer"]
        watch(optimizer, self.used)
        if self.schedule == "none":
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"]
            return optimizer
        if self.schedule == "epoch":
            configured["lr_scheduler"]["interval"] = "epoch"
        return configured


class Manual(Watched):
    """Steps on every second batch, by hand, with a schedule stepped by hand."""

    def __init__(self) -> None:
        super().__init__("step")
        self.automatic_optimization = False

    def per_sample_loss(self, batch: dict[str, Tensor]) -> Tensor:
        logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.manual_backward(self.per_sample_loss(batch).mean())
        if batch_idx % 2 == 1:
            optimizer = self.optimizers()
            optimizer.step()
            optimizer.zero_grad()
            self.lr_schedulers().step()


@pytest.mark.parametrize("schedule", ["step", "epoch", "none", "manual", "accumulation"])
@pytest.mark.parametrize("every", [{"every_n_epochs": 1}, {"every_n_train_steps": 2}])
def test_rates_between_snapshots_are_the_means_of_those_used(tmp_path: Path, schedule: str, every: dict[str, int]) -> None:
    pl.seed_everything(0)
    module = Manual() if schedule == "manual" else Watched("step" if schedule == "accumulation" else schedule)
    fit = trainer(
        tmp_path,
        [TracInCallback(tmp_path / "run", when="never", **every)],
        accumulate_grad_batches=2 if schedule == "accumulation" else 1,
    )
    fit.fit(module, *loaders())
    run = TracInRun.open(tmp_path / "run")
    used = torch.tensor(module.used, dtype=torch.float64)
    assert sum(snapshot.steps for snapshot in run.snapshots) == len(used) > 0
    start = 0
    for snapshot in run.snapshots:
        mine = used[start : start + snapshot.steps]
        start += snapshot.steps
        assert snapshot.step == start
        torch.testing.assert_close(torch.tensor(snapshot.learning_rates, dtype=torch.float64), mine.mean(0))
        torch.testing.assert_close(torch.tensor(snapshot.record.last_learning_rates, dtype=torch.float64), mine[-1])


def test_visits_count_how_often_a_sample_is_seen(tmp_path: Path) -> None:
    for name, settings, want in (
        ("whole", {}, [1.0, 1.0]),
        ("half", {"limit_train_batches": 2}, [14 / 30, 14 / 30]),
    ):
        callback = TracInCallback(tmp_path / name, when="never")
        trainer(tmp_path, [callback], max_epochs=2, **settings).fit(Classifier(), *loaders())
        assert [snapshot.visits for snapshot in TracInRun.open(tmp_path / name).snapshots] == pytest.approx(want)


def test_several_optimizers_have_groups_of_their_own(tmp_path: Path) -> None:
    class Two(Manual):
        def configure_optimizers(self) -> Any:
            head = list(self.model.classifier.parameters())
            return [torch.optim.SGD(self.model.roberta.parameters(), 1e-3), torch.optim.SGD(head, 0.5)]

        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
            first, second = self.optimizers()
            self.manual_backward(self.per_sample_loss(batch).mean())
            second.step()
            if batch_idx % 2:
                first.step()

    trainer(tmp_path, [TracInCallback(tmp_path / "run", when="never")], max_epochs=1).fit(Two(), *loaders())
    snapshot = TracInRun.open(tmp_path / "run").snapshots[0]
    assert snapshot.learning_rates == pytest.approx((1e-3, 0.5))
    assert snapshot.step == 5
    assert snapshot.record.groups["model.classifier.dense.weight"] == 1
    assert snapshot.record.groups["model.roberta.embeddings.word_embeddings.weight"] == 0


def test_parameters_that_no_optimizer_moves_have_rate_zero(tmp_path: Path) -> None:
    class Partly(Classifier):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.model.classifier.parameters(), 0.1)

    trainer(tmp_path, [TracInCallback(tmp_path / "run", when="never")], max_epochs=1).fit(Partly(), *loaders())
    snapshot = TracInRun.open(tmp_path / "run").snapshots[0]
    assert snapshot.learning_rates == pytest.approx((0.1, 0.0))
    assert snapshot.record.groups["model.roberta.embeddings.word_embeddings.weight"] == 1


class Uneven(torch.utils.data.Sampler[list[int]]):
    """Batches of different sizes: 1, 2, 3, ... samples."""

    def __iter__(self) -> Iterator[list[int]]:
        start, size = 0, 1
        while start < 30:
            yield list(range(start, min(start + size, 30)))
            start, size = start + size, size + 1

    def __len__(self) -> int:
        return 8


def constant_first(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {"temperature": torch.ones(1, 1), **padded(samples)}


def time_major(samples: list[dict[str, Any]]) -> list[Any]:
    batch = padded(samples)
    return [torch.ones(1), batch["input_ids"].T, batch["attention_mask"].T, batch["labels"]]


class TakesEither(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if isinstance(batch, list):
            _, ids, mask, labels = batch
            return self.model(input_ids=ids.T, attention_mask=mask.T, labels=labels).loss
        labels, _ = batch.pop("labels"), batch.pop("temperature")
        return torch.nn.functional.cross_entropy(self.model(**batch).logits, labels)


@pytest.mark.parametrize("collate", [constant_first, time_major])
def test_visits_count_the_samples_of_batches_of_any_size(tmp_path: Path, collate: Any) -> None:
    train = DataLoader(Samples(30, 1), batch_sampler=Uneven(), collate_fn=collate)
    probes = DataLoader(Samples(6, 2), batch_size=3, collate_fn=collate)
    callback = TracInCallback(tmp_path / "run", probes=probes, top_k=5)
    trainer(tmp_path, [callback], max_epochs=2, limit_val_batches=0).fit(TakesEither(), train)
    assert [snapshot.visits for snapshot in TracInRun.open(tmp_path / "run").snapshots] == [1.0, 1.0]
