"""Refits share first weights, order and schedule, go on where they stopped, and give the same in other processes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

from lightning_tracin import TracInError
from lightning_tracin.trainer.refits import Fit, MembersOnly, Refits
from tests.support.fits import Classifier, loaders, trainer


class Recorded(pl.Callback):
    """Notes which batches the fit saw."""

    seen: ClassVar[list[list[int]]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append([int(ids[1]) for ids in batch["input_ids"]])


def factory(root: Path, callbacks: Any = ()) -> Fit:
    train, probes = loaders()
    return Fit(Classifier(), trainer(root, list(callbacks), max_epochs=2), train, probes)


def all_but(*left_out: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    members = np.ones((1, 30), dtype=bool)
    members[0, list(left_out)] = False
    return members


def test_batches_are_the_loaders_own_without_those_left_out() -> None:
    whole = MembersOnly(BatchSampler(RandomSampler(range(20)), 6, drop_last=False), np.ones(20, dtype=bool), seed=3)
    part = MembersOnly(BatchSampler(RandomSampler(range(20)), 6, drop_last=False), np.arange(20) % 5 > 0, seed=3)
    first = list(whole)
    assert sorted(index for batch in first for index in batch) == list(range(20))
    assert [[index for index in batch if index % 5] for batch in first] == list(part)
    assert list(whole) == first
    whole.set_epoch(1)
    assert list(whole) != first


def test_the_loaders_order_is_kept() -> None:
    batches = MembersOnly(BatchSampler(SequentialSampler(range(6)), 2, drop_last=False), np.ones(6, dtype=bool), seed=0)
    assert list(batches) == [[0, 1], [2, 3], [4, 5]]


def test_a_batch_without_members_is_an_error() -> None:
    batches = MembersOnly(BatchSampler(SequentialSampler(range(6)), 2, drop_last=False), np.arange(6) > 1, seed=0)
    with pytest.raises(TracInError, match="All 2 samples of a batch are left out"):
        list(batches)


def test_fits_of_the_same_members_are_the_same_and_of_others_are_not(tmp_path: Path) -> None:
    members = np.concatenate([all_but(), all_but(3, 4), all_but()])
    losses = Refits(partial(factory, tmp_path), tmp_path / "one").losses(members)
    assert losses.shape == (3, 12)
    np.testing.assert_array_equal(losses[0], losses[2])
    assert not np.allclose(losses[0], losses[1])
    again = Refits(partial(factory, tmp_path), tmp_path / "two").losses(members)
    np.testing.assert_array_equal(losses, again)
    other = Refits(partial(factory, tmp_path), tmp_path / "two").losses(members, seed=1)
    assert not np.allclose(losses, other)


def test_losses_are_those_of_the_fitted_module(tmp_path: Path) -> None:
    fits = []

    def remembered() -> Fit:
        fits.append(factory(tmp_path))
        return fits[-1]

    (losses,) = Refits(remembered, tmp_path / "refits").losses(all_but(0))
    model, probes = fits[-1].module.eval().model, fits[-1].probes
    want = [model(**probes.collate_fn([probes.dataset[i]])).loss.item() for i in range(12)]
    np.testing.assert_allclose(losses, want, rtol=1e-5)


def test_all_fits_have_the_same_number_of_steps(tmp_path: Path) -> None:
    steps = []

    def counted() -> Fit:
        Recorded.seen = []
        steps.append(Recorded.seen)
        return factory(tmp_path, [Recorded()])

    Refits(counted, tmp_path / "refits").losses(np.concatenate([all_but(), all_but(0, 7, 9)]))
    _, whole, part = steps
    assert len(whole) == len(part) == 10
    assert sum(map(len, whole)) == 60
    assert sum(map(len, part)) == 54
    assert all(set(fewer) <= set(batch) for fewer, batch in zip(part, whole, strict=True))


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    calls = []

    def counted() -> Fit:
        calls.append(1)
        return factory(tmp_path)

    refits = Refits(counted, tmp_path / "refits")
    refits.losses(all_but())
    assert len(calls) == 2  # one to look at, one to fit
    Refits(counted, tmp_path / "refits").losses(np.concatenate([all_but(), all_but(1)]))
    assert len(calls) == 4


@pytest.mark.long
def test_other_processes_give_the_same(tmp_path: Path) -> None:
    members = np.concatenate([all_but(), all_but(5)])
    here = Refits(partial(factory, tmp_path), tmp_path / "here").losses(members)
    there = Refits(partial(factory, tmp_path), tmp_path / "there", workers=2).losses(members)
    np.testing.assert_allclose(here, there, rtol=1e-5)


def test_bad_input(tmp_path: Path) -> None:
    refits = Refits(partial(factory, tmp_path), tmp_path / "refits")
    with pytest.raises(TracInError, match="the factory has 30 train samples"):
        refits.losses(np.ones((1, 29), dtype=bool))
    with pytest.raises(TracInError, match="at least one train sample"):
        refits.losses(np.zeros((1, 30), dtype=bool))
    with pytest.raises(TracInError, match="cannot be sent to other processes"):
        Refits(lambda: factory(tmp_path), tmp_path / "lambda", workers=2).losses(np.concatenate([all_but(0), all_but(1)]))
    refits.losses(all_but())

    def changed() -> Fit:
        made = factory(tmp_path)
        torch.nn.init.zeros_(made.module.model.classifier.dense.bias)
        return made

    with pytest.raises(TracInError, match="with other initial weights"):
        Refits(changed, tmp_path / "refits").losses(all_but())
