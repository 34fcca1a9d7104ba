"""Losses, frozen models and data that change during a fit: the scores of the moment of the snapshot, or an error."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_tracin import TracInCallback, TracInError, TracInRun, attribute
from tests.support.fits import Classifier, Samples, loaders, trainer
from tests.support.models import padded
from tests.support.oracles import gradient_loop


class Scheduled(Classifier):
    """A loss that grows with the epoch and the step."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.model(**batch).loss * (1 + self.current_epoch + 0.01 * self.global_step)


class ByAttribute(Classifier):
    """A loss that grows with an attribute that no snapshot keeps."""

    factor = 1.0

    def on_train_epoch_start(self) -> None:
        self.factor = 1.0 + self.trainer.current_epoch

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.model(**batch).loss * self.factor


class Distilled(Classifier):
    """A frozen teacher follows the model by moving averages."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(self.model).requires_grad_(False)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        labels = batch.pop("labels")
        logits, wanted = self.model(**batch).logits, self.teacher(**batch).logits
        return F.cross_entropy(logits, labels) + F.kl_div(logits.log_softmax(-1), wanted.softmax(-1), reduction="batchmean")

    @torch.no_grad()
    def on_train_batch_end(self, *_: Any) -> None:
        for slow, fast in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
            slow.lerp_(fast, 0.3)


def fitted(folder: Path, kind: type[Classifier], when: str) -> tuple[Classifier, TracInRun]:
    pl.seed_everything(3)
    module = kind()
    callback = TracInCallback(folder / "run", top_k=5, when=when, preconditioner=None)
    trainer(folder, [callback], max_epochs=2).fit(module, *loaders())
    return module, TracInRun.open(folder / "run")


@pytest.mark.parametrize("kind", [Scheduled, Distilled])
def test_every_moment_of_computing_gives_the_scores_of_the_snapshot(tmp_path: Path, kind: type[Classifier]) -> None:
    _, live = fitted(tmp_path / "snapshot", kind, "snapshot")
    _, late = fitted(tmp_path / "fit_end", kind, "fit_end")
    _, never = fitted(tmp_path / "never", kind, "never")
    again = attribute(kind(), never, *loaders(), progress=False)
    for snapshot in live.snapshots:
        want = live.influence("dot", snapshots=[snapshot.index]).to_numpy()
        for other in (late, again):
            got = other.influence("dot", snapshots=[snapshot.index]).to_numpy()
            np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_the_scores_are_those_of_the_epoch_and_step_of_the_snapshot(tmp_path: Path) -> None:
    module, run = fitted(tmp_path, Scheduled, "fit_end")
    module = module.eval()
    for epoch, snapshot in enumerate(run.snapshots):
        module.load_state_dict(snapshot.state_dict(), strict=False)
        factor = 1 + epoch + 0.01 * snapshot.step
        names = list(snapshot.record.groups)

        def loss(one: dict[str, Any], factor: float = factor) -> Tensor:
            return module.model(**padded([one])).loss * factor

        train, probes = (gradient_loop(module, loss, Samples(*which).samples, names) for which in ((30, 1), (12, 2)))
        want = sum(train[name] @ probes[name].T for name in train).numpy()
        got = run.influence("dot", snapshots=[snapshot.index]).to_numpy()
        np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_a_loss_that_cannot_be_restored_is_an_error_and_never_a_score(tmp_path: Path) -> None:
    with pytest.raises(TracInError, match=r"with what snapshot 0000-step5 keeps, but was .* Compute influence at each snapshot"):
        fitted(tmp_path / "late", ByAttribute, "fit_end")
    _, live = fitted(tmp_path / "live", ByAttribute, "snapshot")
    assert len(live.snapshots) == 2
    _, never = fitted(tmp_path / "never", ByAttribute, "never")
    with pytest.raises(TracInError, match="with what snapshot 0001-step10 keeps"):
        attribute(ByAttribute(), never, *loaders(), progress=False)


class Chunks(Classifier):
    """Trains on another chunk of the data in each epoch."""

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Samples(30, 1 + self.current_epoch), batch_size=7, collate_fn=padded)


class Growing(Samples):
    """One more sample after each epoch."""

    def grow(self) -> None:
        self.samples.append(self.samples[0])
        self.language.append("de")


class Augmented(Samples):
    """Replaces a random token of each sample that is fetched."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = copy.deepcopy(super().__getitem__(index))
        sample["input_ids"][1] = int(torch.randint(4, 60, ()))
        return sample


CHANGED = r"not those that the fit began with .*ContributionCallback"


def test_another_chunk_in_each_epoch_is_refused(tmp_path: Path) -> None:
    callback = TracInCallback(tmp_path / "run", top_k=5)
    fitting = trainer(tmp_path, [callback], max_epochs=2, reload_dataloaders_every_n_epochs=1)
    with pytest.raises(TracInError, match=CHANGED):
        fitting.fit(Chunks(), val_dataloaders=loaders()[1])


def test_the_same_data_loaded_again_are_the_same(tmp_path: Path) -> None:
    class Reloading(Classifier):
        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(Samples(30, 1), batch_size=7, collate_fn=padded)

    callback = TracInCallback(tmp_path / "run", top_k=5)
    fitting = trainer(tmp_path, [callback], max_epochs=2, reload_dataloaders_every_n_epochs=1)
    fitting.fit(Reloading(), val_dataloaders=loaders()[1])
    assert len(TracInRun.open(tmp_path / "run").snapshots) == 2


def test_data_that_grow_are_refused(tmp_path: Path) -> None:
    data = Growing(30, 1)

    class Grows(pl.Callback):
        def on_train_epoch_end(self, *_: Any) -> None:
            data.grow()

    fitting = trainer(tmp_path, [TracInCallback(tmp_path / "run", top_k=5), Grows()], max_epochs=2)
    with pytest.raises(TracInError, match=CHANGED):
        fitting.fit(Classifier(), DataLoader(data, batch_size=7, collate_fn=padded), loaders()[1])


def test_random_augmentation_is_refused_before_the_first_step(tmp_path: Path) -> None:
    fitting = trainer(tmp_path, [TracInCallback(tmp_path / "run", top_k=5)], max_epochs=1)
    with pytest.raises(TracInError, match=CHANGED):
        fitting.fit(Classifier(), DataLoader(Augmented(30, 1), batch_size=7, collate_fn=padded), loaders()[1])
    assert fitting.global_step == 0
