"""An account of a fit with several processes says what that of one process with the joint batches says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from tests.support.accounted_fits import Module, Tokens, fit, numbers, require_same

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
