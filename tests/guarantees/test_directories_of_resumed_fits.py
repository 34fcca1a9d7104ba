"""Which run directory a resumed fit goes on in, begins anew or refuses. More rows of docs/resuming.md."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader

from lightning_tracin import TracInCallback, TracInError, TracInRun, attribute
from tests.support.fits import Classifier, Samples, loaders, trainer
from tests.support.models import padded, tiny_xlmr
from tests.support.resumed import WHOLE, at, fit, steps


def test_an_earlier_checkpoint_than_the_last_snapshot(tmp_path: Path) -> None:
    fit(tmp_path, 3, when="fit_end")
    fit(tmp_path, 4, at(tmp_path, 5), when="fit_end")
    assert steps(tmp_path / "run") == WHOLE
    assert TracInRun.open(tmp_path / "run").influence().shape == (30, 12)


@pytest.mark.parametrize(
    "keep",
    [
        (True, True, True),
        pytest.param((False, False, False), marks=pytest.mark.results),
        (False, True, True),
        (True, False, True),
    ],
)
def test_a_finished_run_goes_on(tmp_path: Path, keep: tuple[bool, ...]) -> None:
    """Also where the weights of its snapshots are gone."""
    fit(tmp_path, 2, when="fit_end", keep_snapshots=keep[0])
    before = TracInRun.open(tmp_path / "run").influence().to_numpy()
    for epochs, kept in ((3, keep[1]), (4, keep[2])):
        fit(tmp_path, epochs, at(tmp_path, 5 * epochs - 5), when="fit_end", keep_snapshots=kept)
    run = TracInRun.open(tmp_path / "run")
    assert steps(run.path) == WHOLE
    assert run.influence().shape == (30, 12)
    np.testing.assert_array_equal(run.influence(snapshots=[0, 1]), before)


def test_a_directory_that_was_moved_is_found_by_its_run(tmp_path: Path) -> None:
    fit(tmp_path, 2)
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    fit(tmp_path, 4, at(tmp_path, 10), run="elsewhere", every_n_epochs=1)
    assert steps(tmp_path / "elsewhere") == WHOLE
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("run", ["run", "another"])
def test_a_directory_that_is_gone_or_another_begins_at_the_true_step(tmp_path: Path, run: str) -> None:
    fit(tmp_path, 2)
    if run == "run":
        shutil.rmtree(tmp_path / "run")
    with pytest.warns(UserWarning, match="from optimizer step 11 on"):
        fit(tmp_path, 4, at(tmp_path, 10), run=run)
    assert steps(tmp_path / run) == WHOLE[2:]
    assert TracInRun.open(tmp_path / run).record.began_at == 10


def test_steps_since_the_last_snapshot_are_covered_in_another_directory(tmp_path: Path) -> None:
    fit(tmp_path, 3, every_n_epochs=2)
    fit(tmp_path, 4, at(tmp_path, 15), run="another", every_n_epochs=2)
    assert steps(tmp_path / "another") == [(4, 20, 5)] or steps(tmp_path / "another") == [(4, 20, 10)]
    run = TracInRun.open(tmp_path / "another")
    assert run.record.began_at == 20 - run.snapshots[0].steps


def test_a_directory_that_is_older_than_the_checkpoint_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, 2)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    fit(tmp_path, 4, at(tmp_path, 10))
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "copy").rename(tmp_path / "run")
    with pytest.raises(TracInError, match=r"up to step 20 .* is of step 10, but it was of step 20 when the checkpoint was saved"):
        fit(tmp_path, 5, at(tmp_path, 20))
    fit(tmp_path, 5, at(tmp_path, 10))  # a remedy
    assert steps(tmp_path / "run") == [*WHOLE, (5, 25, 5)]


def test_a_checkpoint_of_a_way_that_was_left_is_refused(tmp_path: Path) -> None:
    """The fit went on from an earlier checkpoint with other batches, so that later snapshots are of other weights."""
    fit(tmp_path, 3)
    shutil.copytree(tmp_path / "checkpoints", tmp_path / "kept")
    fit(tmp_path, 3, at(tmp_path, 5), others=[Shifted()])
    assert steps(tmp_path / "run") == WHOLE[:3]
    (left,) = (tmp_path / "kept").glob("*step=15.ckpt")
    with pytest.raises(
        TracInError, match=r"The snapshot of step 15 .* is not the one that was there when the checkpoint was saved"
    ):
        fit(tmp_path, 4, left)
    (before,) = (tmp_path / "kept").glob("*step=5.ckpt")
    fit(tmp_path, 4, before)  # a remedy
    assert steps(tmp_path / "run") == WHOLE


def test_a_state_of_an_older_version_is_taken_up(tmp_path: Path) -> None:
    fit(tmp_path, 2)
    checkpoint = torch.load(at(tmp_path, 10), weights_only=True)
    (key,) = (name for name in checkpoint["callbacks"] if "TracIn" in name)
    state = checkpoint["callbacks"].pop(key)
    assert state.pop("last_digest")
    checkpoint["callbacks"]["TracInCallback{'every_n_epochs': 1, 'every_n_train_steps': None}"] = state
    torch.save(checkpoint, tmp_path / "old.ckpt")
    fit(tmp_path, 4, tmp_path / "old.ckpt")
    assert steps(tmp_path / "run") == WHOLE


class Shifted(pl.Callback):
    """Changes the weights before the first step."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for parameter in pl_module.parameters():
            parameter.data.add_(0.01)


def test_the_directory_of_another_run_is_refused_with_remedies_that_work(tmp_path: Path) -> None:
    fit(tmp_path / "one", 2)
    fit(tmp_path / "two", 1)
    shutil.copytree(tmp_path / "two" / "run", tmp_path / "one" / "other")
    with pytest.raises(
        TracInError, match=r"holds the run \w+, but the fit goes on at step 10 from a checkpoint of the run \w+\."
    ):
        fit(tmp_path / "one", 3, at(tmp_path / "one", 10), run="other")
    fit(tmp_path / "one", 3, at(tmp_path / "one", 10), run="other", overwrite=True)
    assert steps(tmp_path / "one" / "other") == [(3, 15, 5)]


def test_a_checkpoint_without_a_state_does_not_go_on_in_a_run(tmp_path: Path) -> None:
    fit(tmp_path, 2, run=None)
    fit(tmp_path / "other", 1)
    shutil.move(tmp_path / "other" / "run", tmp_path / "run")
    with pytest.raises(
        TracInError, match=r"at step 10 from a checkpoint without the state of a TracInCallback, so it is not known"
    ):
        fit(tmp_path, 3, at(tmp_path, 10))


def test_each_of_two_callbacks_finds_its_own_run(tmp_path: Path) -> None:
    """Also with their schedules exchanged, and one of the directories moved."""

    def fitted(epochs: int, one: Path, two: Path, every: tuple[int, int], path: Path | None = None) -> None:
        watchers = [
            TracInCallback(place, top_k=5, when="never", every_n_epochs=n) for place, n in zip((one, two), every, strict=True)
        ]
        saver = ModelCheckpoint(tmp_path / "checkpoints", filename="{epoch}-{step}")
        fitting = trainer(tmp_path, [*watchers, saver], enable_checkpointing=True, max_epochs=epochs)
        fitting.fit(Classifier(), *loaders(), ckpt_path=path)

    fitted(2, tmp_path / "one", tmp_path / "two", (1, 2))
    (tmp_path / "one").rename(tmp_path / "moved")
    fitted(4, tmp_path / "moved", tmp_path / "two", (2, 1), at(tmp_path, 10))
    assert [step for _, step, _ in steps(tmp_path / "moved")] == [5, 10, 20]
    assert [step for _, step, _ in steps(tmp_path / "two")] == [10, 15, 20]


def test_a_callback_object_of_another_fit_takes_nothing_along(tmp_path: Path) -> None:
    watcher = TracInCallback(tmp_path / "one", top_k=5, when="never")
    trainer(tmp_path, [watcher], max_epochs=1).fit(Classifier(), *loaders())
    fit(tmp_path, 3, run=None)
    watcher.dirpath = tmp_path / "two"
    trainer(tmp_path, [watcher], max_epochs=4).fit(Classifier(), *loaders(), ckpt_path=at(tmp_path, 15))
    assert steps(tmp_path / "two") == [(4, 20, 5)]


def test_weights_alone_begin_another_fit(tmp_path: Path) -> None:
    fit(tmp_path, 2)
    module = Classifier.load_from_checkpoint(at(tmp_path, 10))
    with pytest.raises(TracInError, match=r"holds another run .*Choose another `dirpath`"):
        trainer(tmp_path, [TracInCallback(tmp_path / "run", top_k=5)], max_epochs=1).fit(module, *loaders())
    trainer(tmp_path, [TracInCallback(tmp_path / "new", top_k=5)], max_epochs=1).fit(module, *loaders())
    assert steps(tmp_path / "new") == [(1, 5, 5)]
    assert TracInRun.open(tmp_path / "new").record.began_at == 0


def test_a_checkpoint_of_weights_alone_is_refused_by_lightning(tmp_path: Path) -> None:
    fitting = fit(tmp_path, 2)
    fitting.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    with pytest.raises(KeyError, match="contains only the model"):
        fit(tmp_path, 3, tmp_path / "weights.ckpt")
    assert steps(tmp_path / "run") == WHOLE[:2]


def small(lightning: Any) -> Any:
    """A module of either package."""

    class Small(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny_xlmr()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.model(**batch).loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            pass

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.01)

    return Small()


@pytest.mark.parametrize(("first", "second"), [("pytorch_lightning", "lightning.pytorch"), ("lightning.pytorch",) * 2])
def test_both_lightning_packages_take_up_a_run(tmp_path: Path, first: str, second: str) -> None:
    pytest.importorskip("lightning")

    def fitted(package: str, epochs: int, path: Path | None) -> None:
        lightning = importlib.import_module(package)
        saver = importlib.import_module(f"{package}.callbacks").ModelCheckpoint(
            tmp_path / "checkpoints", filename="{epoch}-{step}", save_top_k=-1
        )
        watcher = TracInCallback(tmp_path / "run", top_k=5, when="never")
        fitting = lightning.Trainer(
            max_epochs=epochs, callbacks=[watcher, saver], logger=False, accelerator="cpu", devices=1, default_root_dir=tmp_path
        )
        fitting.fit(small(lightning), *loaders(), ckpt_path=path)

    fitted(first, 2, None)
    fitted(second, 4, at(tmp_path, 10))
    assert steps(tmp_path / "run") == WHOLE


@pytest.mark.results
def test_a_resumed_run_is_completed_later(tmp_path: Path) -> None:
    fit(tmp_path, 3, run=None)
    fit(tmp_path, 4, at(tmp_path, 15))
    train, probes = DataLoader(Samples(30, 1), batch_size=7, collate_fn=padded), loaders()[1]
    run = attribute(Classifier(), tmp_path / "run", train, probes, progress=False)
    assert "step 16 on" in (run.path / "results" / "report.html").read_text()


def test_the_default_directory_of_a_new_version_begins_anew_and_the_old_one_continues(tmp_path: Path) -> None:
    def fitted(epochs: int, place: Path | None = None, path: Path | None = None) -> None:
        saver = ModelCheckpoint(tmp_path / "checkpoints", filename="{epoch}-{step}", save_top_k=-1)
        watcher = TracInCallback(place, top_k=5, when="never")
        fitting = trainer(
            tmp_path, [watcher, saver], enable_checkpointing=True, max_epochs=epochs, logger=CSVLogger(tmp_path, name="csv")
        )
        fitting.fit(Classifier(), *loaders(), ckpt_path=path)

    first, second = (tmp_path / "csv" / f"version_{number}" / "tracin" for number in (0, 1))
    fitted(2)
    fitted(3, None, at(tmp_path, 10))
    assert (steps(first), steps(second)) == (WHOLE[:2], WHOLE[2:3])
    fitted(4, first, at(tmp_path, 10))
    assert steps(first) == WHOLE
