"""An account of a fit with several processes says what that of one process with the joint batches says."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from lightning_tracin.storage.account import AccountStore
from tests.support.accounted_fits import Module, Tokens, fit, numbers, probes, require_same
from tests.support.fits import trainer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are started by fork")

#: Samples of the batch of one process, and steps of an epoch.
SIZE, STEPS = 3, 5


class Spread:
    """Samplers as Lightning gives them to processes: one of all epochs."""

    def __init__(self, dataset: Dataset[Any], ranks: int, rank: int) -> None:
        self.sampler = DistributedSampler(dataset, ranks, rank, shuffle=True, seed=0)

    def of(self, epoch: int) -> list[int]:
        self.sampler.set_epoch(epoch)
        return list(self.sampler)


class Blocks:
    """A sampler that gives each process a part of its own, so that some processes never see some languages."""

    def __init__(self, dataset: Dataset[Any], ranks: int, rank: int) -> None:
        each = len(dataset) // ranks  # type: ignore[arg-type]
        self.mine = list(range((ranks - rank - 1) * each, (ranks - rank) * each))

    def of(self, epoch: int) -> list[int]:
        return self.mine[epoch % 2 :] + self.mine[: epoch % 2]


class OfRank:
    """The batches of one process, as a batch sampler."""

    def __init__(self, dataset: Dataset[Any], kind: Any, ranks: int, rank: int) -> None:
        self.epoch, self.order = 0, kind(dataset, ranks, rank)
        self.sampler = self  # which Lightning tells the epoch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order.of(self.epoch)
        yield from (order[at : at + SIZE] for at in range(0, SIZE * STEPS, SIZE))


class Joint(OfRank):
    """The batches of all processes together."""

    def __init__(self, dataset: Dataset[Any], kind: Any, ranks: int) -> None:
        self.epoch, self.sampler = 0, self
        self.each = [OfRank(dataset, kind, ranks, rank) for rank in range(ranks)]

    def __iter__(self) -> Iterator[list[int]]:
        for one in self.each:
            one.set_epoch(self.epoch)
        yield from (list(chain(*batches)) for batches in zip(*self.each, strict=True))


class Sharing(Module):
    """Gives each process its own part of the samples."""

    def __init__(self, optimizer: str, dataset: Dataset[Any]) -> None:
        super().__init__(optimizer)
        self.dataset = [dataset]  # not copied with the module

    def train_dataloader(self) -> DataLoader[Any]:
        (dataset,) = self.dataset
        return DataLoader(dataset, batch_sampler=OfRank(dataset, Blocks, self.trainer.world_size, self.trainer.global_rank))


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "AdamW": {"optimizer": "adamw"},
    "accumulated": {"settings": {"accumulate_grad_batches": 2}},
    "clipped by norm, AdamW": {"optimizer": "adamw", "settings": {"gradient_clip_val": 0.05}},
    "clipped by value, accumulated": {
        "settings": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}
    },
    "every second step, AdamW": {"optimizer": "adamw", "options": {"every_n_steps": 2}},
}


CASES = [*((2, way) for way in WAYS), (3, "AdamW"), (3, "accumulated")]


@pytest.mark.parametrize("injected", [True, False], ids=["Lightning's sampler", "own sampler"])
@pytest.mark.parametrize(("ranks", "way"), CASES)
def test_processes_say_what_one_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, way: str, injected: bool
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    chosen = {"optimizer": "sgd", "options": {}, "settings": {}, **WAYS[way]}
    train = Tokens(ranks * SIZE * STEPS, seed=1, run=SIZE * STEPS // 2)
    joint = DataLoader(train, batch_sampler=Joint(train, Spread if injected else Blocks, ranks))
    fit(tmp_path / "one", joint, Module(chosen["optimizer"]), chosen["options"], **chosen["settings"])

    several = {"strategy": "ddp_fork_find_unused_parameters_true", "devices": ranks, **chosen["settings"]}
    if injected:
        fit(
            tmp_path / "several",
            DataLoader(train, batch_size=SIZE, shuffle=True),
            Module(chosen["optimizer"]),
            chosen["options"],
            **several,
        )
    else:
        module = Sharing(chosen["optimizer"], train)
        fit(tmp_path / "several", None, module, chosen["options"], use_distributed_sampler=False, **several)
    require_same(numbers(tmp_path / "several"), numbers(tmp_path / "one"), 1e-9)


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_processes_credit_samples_as_one_does(tmp_path: Path, optimizer: str) -> None:
    train, options = Tokens(2 * SIZE * STEPS, seed=1, run=SIZE * STEPS // 2), {"samples": True}
    fit(tmp_path / "one", DataLoader(train, batch_sampler=Joint(train, Blocks, 2)), Module(optimizer), options)
    several: dict[str, Any] = {"strategy": "ddp_fork_find_unused_parameters_true", "devices": 2, "use_distributed_sampler": False}
    fit(tmp_path / "several", None, Sharing(optimizer, train), options, **several)
    one, found = (AccountStore(tmp_path / name / "run").samples() for name in ("one", "several"))
    assert bool(one.any(1).all())
    assert float((found - one).norm() / one.norm()) < 1e-6


def of_two(folder: Path, checkpoint: Path | None = None, **options: Any) -> None:
    train = Tokens(2 * SIZE * STEPS, seed=1, run=SIZE * STEPS // 2)
    saver = ModelCheckpoint(folder / "checkpoints", filename="{epoch}", save_top_k=-1)
    loader = DataLoader(train, batch_size=SIZE, shuffle=True)
    several: dict[str, Any] = {"strategy": "ddp_fork_find_unused_parameters_true", "devices": 2, "enable_checkpointing": True}
    fit(folder, loader, Module("adamw"), options, [saver], checkpoint, **several)


@pytest.mark.long
def test_two_processes_resume_in_the_middle_of_a_window(tmp_path: Path) -> None:
    of_two(tmp_path)
    expected = numbers(tmp_path)
    of_two(tmp_path, tmp_path / "checkpoints" / "epoch=0.ckpt")
    require_same(numbers(tmp_path), expected, 1e-12)


@pytest.mark.long
def test_two_processes_resume_what_samples_of_both_contributed(tmp_path: Path) -> None:
    of_two(tmp_path, samples=True)
    expected = AccountStore(tmp_path / "run").samples()
    of_two(tmp_path, tmp_path / "checkpoints" / "epoch=0.ckpt", samples=True)
    found = AccountStore(tmp_path / "run").samples()
    assert float((found - expected).norm() / expected.norm()) < 1e-6


def test_all_processes_refuse_together(tmp_path: Path) -> None:
    of_two(tmp_path)
    with pytest.raises(Exception, match="holds another account"):
        of_two(tmp_path)
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(Exception, match="does not hold the account that the checkpoint belongs to"):
        of_two(tmp_path, tmp_path / "checkpoints" / "epoch=0.ckpt")


@pytest.mark.long
def test_processes_keep_their_weights(tmp_path: Path) -> None:
    """What the account exchanges does not disturb what the processes exchange for the fit."""
    train = Tokens(2 * SIZE * STEPS, seed=1)
    for name in ("with", "without"):
        saver = ModelCheckpoint(tmp_path / name, filename="last")
        several: dict[str, Any] = {"strategy": "ddp_fork_find_unused_parameters_true", "devices": 2, "enable_checkpointing": True}
        loader = DataLoader(train, batch_size=SIZE, shuffle=True)
        if name == "with":
            fit(tmp_path, loader, Module("adamw", dropout=0.2), {}, [saver], **several)
        else:
            trainer(tmp_path, [saver], precision="64-true", max_epochs=2, **several).fit(
                Module("adamw", dropout=0.2), loader, probes()
            )
    one, other = (torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"] for name in ("with", "without"))
    assert all(torch.equal(one[name], value) for name, value in other.items())
