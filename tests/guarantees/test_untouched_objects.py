"""A fit with the callback leaves the user's objects as a fit without it: hooks, collate functions, datasets and generators."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_tracin import TracInCallback, TracInError, attribute
from tests.support.fits import Classifier, Samples, trainer
from tests.support.models import padded

GENERATORS = {"python": random.Random(0), "numpy": np.random.default_rng(0), "torch": torch.Generator()}


def states() -> list[str]:
    """The states of the generators, as text."""
    return [
        repr(GENERATORS["python"].getstate()),
        repr(GENERATORS["numpy"].bit_generator.state),
        repr(GENERATORS["torch"].get_state().tolist()),
    ]


def seed() -> None:
    GENERATORS["python"].seed(0)
    GENERATORS["numpy"].bit_generator.state = np.random.default_rng(0).bit_generator.state
    GENERATORS["torch"].manual_seed(0)


def draw() -> float:
    return GENERATORS["python"].random() + GENERATORS["numpy"].random() + float(torch.rand((), generator=GENERATORS["torch"]))


class Counting:
    """Transfer hooks with state and random numbers."""

    calls = 0

    def count(self) -> None:
        self.calls += 1
        draw()


class Module(Classifier, Counting):
    def __init__(self, own_hooks: bool) -> None:
        super().__init__()
        self.own_hooks = own_hooks
        self.register_buffer("seen", torch.zeros(()))

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.own_hooks:
            self.count()
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.own_hooks:
            self.count()
            self.seen += 1
        return batch


class Collate:
    """A collate function with a state."""

    def __init__(self) -> None:
        self.calls, self.generator = 0, np.random.default_rng(5)

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        self.calls += 1
        self.generator.random()
        return padded(samples)


def drawing(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    draw()
    return padded(samples)


class Drawing(Samples):
    """A dataset that draws a number for each sample."""

    def __init__(self, count: int, seed: int) -> None:
        super().__init__(count, seed)
        self.generator = random.Random(seed)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.generator.random()
        return super().__getitem__(index)


class Data(pl.LightningDataModule, Counting):
    """A data module with hooks for batches."""

    def __init__(self) -> None:
        super().__init__()
        self.collate = Collate()

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Drawing(30, 1), batch_size=7, shuffle=True, collate_fn=self.collate)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Drawing(12, 2), batch_size=5, collate_fn=drawing)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.count()
        return batch


def fitted(folder: Path, own_hooks: bool, when: str | None) -> dict[str, Any]:
    """What is left of a fit: weights, buffers, counts and generators."""
    seed()
    pl.seed_everything(3)
    module, data = Module(own_hooks), Data()
    watchers = [] if when is None else [TracInCallback(folder / "run", top_k=5, every_n_epochs=1, when=when)]
    fitting = trainer(folder, watchers, max_epochs=2)
    fitting.fit(module, datamodule=data)
    assert isinstance(fitting.train_dataloader.dataset, Drawing)
    return {
        "state": {name: tensor.clone() for name, tensor in module.state_dict().items()},
        "calls": (module.calls, data.calls, data.collate.calls),
        "generators": states(),
        "collate": repr(data.collate.generator.bit_generator.state),
        "dataset": repr(fitting.train_dataloader.dataset.generator.getstate()),
        "global": (random.random(), float(np.random.rand()), float(torch.rand(()))),
    }


@pytest.mark.parametrize("own_hooks", [True, False], ids=["hooks of the module", "hooks of the data module"])
@pytest.mark.parametrize("when", ["never", "snapshot", "fit_end"])
def test_a_fit_leaves_the_users_objects_as_without_the_callback(tmp_path: Path, own_hooks: bool, when: str) -> None:
    want, got = fitted(tmp_path / "without", own_hooks, None), fitted(tmp_path / "with", own_hooks, when)
    for name, tensor in want.pop("state").items():
        assert torch.equal(got["state"][name], tensor), name
    del got["state"]
    assert got == want


def test_attribute_leaves_the_users_objects_as_they_are(tmp_path: Path) -> None:
    fitted(tmp_path, True, "never")
    module, data = Module(True), Data()
    train, probes = data.train_dataloader(), data.val_dataloader()
    before = [*states(), repr(train.dataset.generator.getstate()), data.collate.calls, module.calls]
    attribute(module, tmp_path / "run", train, probes, progress=False)
    assert [*states(), repr(train.dataset.generator.getstate()), data.collate.calls, module.calls] == before


def test_a_collate_function_that_cannot_be_copied_is_refused_before_the_fit(tmp_path: Path) -> None:
    class Locked(Collate):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("cannot pickle '_thread.lock' object")

    train = DataLoader(Samples(30, 1), batch_size=7, collate_fn=Locked())
    fitting = trainer(tmp_path, [TracInCallback(tmp_path / "run", top_k=5)], max_epochs=1)
    with pytest.raises(TracInError, match=r"The collate function Locked cannot be copied \(cannot pickle"):
        fitting.fit(Classifier(), train, DataLoader(Samples(6, 2), batch_size=3, collate_fn=padded))
    assert fitting.global_step == 0
