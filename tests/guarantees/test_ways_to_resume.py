"""Every way in which Lightning resumes a fit: what the run continues, begins anew or refuses. The rows of docs/resuming.md."""

from __future__ import annotations

import importlib
import math
import os
import shutil
import signal
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
from lightning_tracin.cli.main import main
from tests.support.fits import Classifier, Samples, loaders, trainer
from tests.support.models import padded, tiny_xlmr


class Counting(pl.Callback):
    """Counts what the fit does, without the package: samples, and the rate of each optimizer step."""

    def __init__(self) -> None:
        self.samples: list[int] = []
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self.rates.append(float(optimizer.param_groups[0]["lr"]))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any) -> None:
        self.samples.append(len(batch["labels"]))


def fit(
    folder: Path,
    epochs: int,
    checkpoint: Any = None,
    run: str | None = "run",
    others: Any = (),
    size: int = 7,
    settings: dict[str, Any] | None = None,
    every: dict[str, int] | None = None,
    **options: Any,
) -> Any:
    """Fit from a checkpoint on; `run=None` is a fit without the callback. Each epoch has 30 samples, in 5 steps of 7."""
    pl.seed_everything(5)
    saver = ModelCheckpoint(folder / "checkpoints", filename="{epoch}-{step}", save_top_k=-1, save_last=True, **(every or {}))
    watchers = [] if run is None else [TracInCallback(folder / run, **{"top_k": 5, "when": "never", **options})]
    fitting = trainer(folder, [*watchers, *others, saver], enable_checkpointing=True, max_epochs=epochs, **(settings or {}))
    fitting.fit(Classifier(), *loaders(batch_size=size), ckpt_path=checkpoint)
    return fitting


def steps(path: Path) -> list[tuple[int, int, int]]:
    return [(snapshot.epoch, snapshot.step, snapshot.steps) for snapshot in TracInRun.open(path).snapshots]


def at(folder: Path, step: int) -> Path:
    """The checkpoint of a step."""
    (found,) = (folder / "checkpoints").glob(f"epoch=*-step={step}.ckpt")
    return found


WHOLE = [(1, 5, 5), (2, 10, 5), (3, 15, 5), (4, 20, 5)]


@pytest.mark.parametrize("given", ["file", "last", "best", "registry"])
def test_ways_to_name_the_checkpoint_continue_the_run(tmp_path: Path, given: str) -> None:
    if given == "best":  # of the same Trainer only
        fitting = fit(tmp_path, 2)
        fitting.fit_loop.max_epochs = 4
        fitting.fit(Classifier(), *loaders(), ckpt_path="best")
    else:
        fit(tmp_path, 2)
        fit(tmp_path, 4, {"file": at(tmp_path, 10), "last": "last", "registry": str(at(tmp_path, 5))}[given])
    assert steps(tmp_path / "run") == WHOLE
    assert TracInRun.open(tmp_path / "run").record.began_at == 0


class EndedBySlurm(pl.Callback):
    """Gets SLURM's signal after step 8, on which Lightning saves a checkpoint, and is ended soon after."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 8:
            os.kill(os.getpid(), signal.SIGUSR1)
        if trainer.global_step == 9:
            raise TimeoutError("the job's time is over")


@pytest.mark.parametrize("named", ["hpc", None], ids=["by its name", "by itself"])
def test_a_job_that_slurm_starts_again_continues_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str | None
) -> None:
    job = {"JOB_ID": "1", "JOB_NAME": "fit", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(TimeoutError):
        fit(tmp_path, 4, others=[EndedBySlurm()])
    assert signal.getsignal(signal.SIGUSR1) == before
    assert (tmp_path / "hpc_ckpt_1.ckpt").exists()
    fit(tmp_path, 4, named)
    assert steps(tmp_path / "run") == WHOLE


@pytest.mark.parametrize("every", [{"every_n_epochs": 1}, {"every_n_train_steps": 4}])
def test_in_the_middle_of_an_epoch_the_samples_are_those_that_were_seen(tmp_path: Path, every: dict[str, int]) -> None:
    first, second = Counting(), Counting()
    fit(tmp_path, 2, others=[first], every={"every_n_train_steps": 3}, **every)
    fit(tmp_path, 3, at(tmp_path, 6), others=[second], **every)
    samples, rates = first.samples[:6] + second.samples, first.rates[:6] + second.rates
    found = TracInRun.open(tmp_path / "run").snapshots
    ends = [0, *(snapshot.step for snapshot in found)]
    assert ends == ([0, 5, 10, 15] if "every_n_epochs" in every else [0, 4, 8, 12, 15])
    for snapshot, start, end in zip(found, ends[:-1], ends[1:], strict=True):
        assert snapshot.epoch == math.ceil(end / 5)
        assert snapshot.visits == pytest.approx(sum(samples[start:end]) / 30)
        assert snapshot.learning_rates[0] == pytest.approx(np.mean(rates[start:end]))


def test_a_callback_that_is_added_counts_the_steps_of_the_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, 3, run=None)
    with pytest.warns(
        UserWarning, match=r"covers its fit from optimizer step 16 on\. Snapshots of the 15 steps before are missing"
    ):
        fitting = fit(tmp_path, 5, at(tmp_path, 15), when="fit_end")
    assert fitting.global_step == 25
    assert steps(tmp_path / "run") == [(4, 20, 5), (5, 25, 5)]
    run = TracInRun.open(tmp_path / "run")
    assert run.record.began_at == 15
    assert [snapshot.record.global_step for snapshot in run.snapshots] == [20, 25]
    assert "covers its fit from optimizer step 16 on" in (run.path / "results" / "report.html").read_text()
    main(["status", "--run", str(run.path)])
    assert "covers its fit from optimizer step 16 on" in capsys.readouterr().out


def test_a_callback_that_is_added_within_an_epoch_knows_the_epoch(tmp_path: Path) -> None:
    fit(tmp_path, 2, run=None, every={"every_n_train_steps": 4})
    counting = Counting()
    fit(tmp_path, 3, at(tmp_path, 8), others=[counting], every_n_train_steps=1)
    found = TracInRun.open(tmp_path / "run").snapshots
    assert [(snapshot.epoch, snapshot.step) for snapshot in found] == [(math.ceil(step / 5), step) for step in range(9, 16)]
    assert [snapshot.visits for snapshot in found] == pytest.approx([count / 30 for count in counting.samples])


def test_a_callback_that_is_added_to_a_trainer_counts_its_steps(tmp_path: Path) -> None:
    fitting = fit(tmp_path, 2, run=None)
    fitting.callbacks.append(TracInCallback(tmp_path / "run", top_k=5, when="never"))
    fitting.fit_loop.max_epochs = 3
    fitting.fit(fitting.lightning_module, *loaders())
    assert steps(tmp_path / "run") == [(3, 15, 5)]
    assert TracInRun.open(tmp_path / "run").record.began_at == 10


class Alternating(pl.LightningModule):
    """Two optimizers by hand: the second makes every second step."""

    def __init__(self, kind: Any = torch.optim.Adam) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.inner, self.kind = Classifier(), kind
        self.log_step = 0

    def per_sample_loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        logits = self.inner.model(batch["input_ids"], batch["attention_mask"]).logits
        return torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.manual_backward(self.per_sample_loss(batch).mean())
        for number, optimizer in enumerate(self.optimizers()):
            if number == 0 or batch_idx % 2:
                optimizer.step()
        self.zero_grad()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> Any:
        every = list(self.parameters())
        return self.kind(every[:3], lr=1e-3), self.kind(every[3:], lr=1e-3)


def test_several_optimizers_are_counted_by_what_they_know(tmp_path: Path) -> None:
    for epochs, watchers in ((2, []), (3, [TracInCallback(tmp_path / "run", top_k=5, when="never")])):
        saver = ModelCheckpoint(tmp_path / "checkpoints", filename="{epoch}-{step}")
        fitting = trainer(tmp_path, [*watchers, saver], enable_checkpointing=True, max_epochs=epochs)
        path = None if epochs == 2 else at(tmp_path, 14)  # 10 steps of the first, 4 of the second
        fitting.fit(Alternating(), *loaders(), ckpt_path=path)
    assert steps(tmp_path / "run") == [(3, 15, 5)]
    (snapshot,) = TracInRun.open(tmp_path / "run").snapshots
    assert snapshot.learning_rates == pytest.approx((1e-3, 1e-3))


CHANGES: dict[str, tuple[dict[str, Any], list[int]]] = {
    "every_n_epochs": ({"every_n_epochs": 2}, [5, 10, 20, 25]),
    "every_n_train_steps": ({"every_n_train_steps": 4}, [5, 10, 12, 16, 20, 24, 25]),
    "when": ({"when": "snapshot"}, [5, 10, 15, 20, 25]),
    "keep_snapshots": ({"when": "snapshot", "keep_snapshots": False}, [5, 10, 15, 20, 25]),
    "top_k": ({"top_k": 9}, [5, 10, 15, 20, 25]),
    "similarity": ({"similarity": "dot", "weighting": "learning_rate"}, [5, 10, 15, 20, 25]),
    "memory_budget": ({"memory_budget": 10**7}, [5, 10, 15, 20, 25]),
    "overwrite": ({"overwrite": True}, [5, 10, 15, 20, 25]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_options_that_may_change(tmp_path: Path, name: str) -> None:
    changed, wanted = CHANGES[name]
    fit(tmp_path, 2)
    fit(tmp_path, 5, at(tmp_path, 10), **changed)
    run = TracInRun.open(tmp_path / "run")
    assert [snapshot.step for snapshot in run.snapshots] == wanted
    assert sum(snapshot.steps for snapshot in run.snapshots) == 25
    assert sum(snapshot.visits for snapshot in run.snapshots) == pytest.approx(5)
    assert run.record.began_at == 0
    kept = {option: getattr(run.record.options, option) for option in changed if option != "overwrite"}
    assert kept == {option: value for option, value in changed.items() if option != "overwrite"}
    if changed.get("when") == "snapshot":
        assert run.influence().shape == (30, 12)


REFUSED: dict[str, Any] = {
    "batch_size": 8,
    "dtype": "float64",
    "parameters": ["model.classifier.*"],
    "projection_dim": 16,
    "language_means": True,
    "per_layer": False,
    "preconditioner": "adam",
    "max_probes_per_language": 2,
    "languages": ["de", "en", "fr"] * 10,
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_may_not_change_are_refused_with_remedies_that_work(tmp_path: Path, name: str) -> None:
    fit(tmp_path, 2)
    before = TracInRun.open(tmp_path / "run").record
    with pytest.raises(TracInError, match=r"holds a run with \w+ .*, but this fit has .*; scores of both cannot be mixed"):
        fit(tmp_path, 3, at(tmp_path, 10), **{name: REFUSED[name]})
    assert TracInRun.open(tmp_path / "run").record == before
    fit(tmp_path, 3, at(tmp_path, 10), run="other", **{name: REFUSED[name]})  # one remedy
    assert steps(tmp_path / "other") == [(3, 15, 5)]
    assert TracInRun.open(tmp_path / "other").record.began_at == 10
    fit(tmp_path, 3, at(tmp_path, 10))  # the other
    assert steps(tmp_path / "run") == WHOLE[:3]


def test_other_batches_continue_the_run(tmp_path: Path) -> None:
    fit(tmp_path, 2)
    fit(tmp_path, 4, at(tmp_path, 10), size=10)
    run = TracInRun.open(tmp_path / "run")
    assert steps(run.path) == [(1, 5, 5), (2, 10, 5), (3, 13, 3), (4, 16, 3)]
    assert [snapshot.visits for snapshot in run.snapshots] == pytest.approx([1] * 4)


def test_fewer_epochs_than_were_made_are_refused_by_lightning(tmp_path: Path) -> None:
    fit(tmp_path, 3)
    with pytest.raises(Exception, match="max_epochs=1"):
        fit(tmp_path, 1, at(tmp_path, 15))
    assert steps(tmp_path / "run") == WHOLE[:3]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_another_number_of_devices_continues_the_run(tmp_path: Path, before: int, after: int) -> None:
    for devices, epochs, path in ((before, 2, None), (after, 4, lambda: at(tmp_path, 3 * 2 if before == 2 else 10))):
        several = {"devices": devices, "strategy": "ddp_fork"} if devices > 1 else {}
        fit(tmp_path, epochs, path() if path else None, settings=several)
    each = {1: 5, 2: 3}  # steps of an epoch: of 30 or 15 samples in batches of 7
    ends = [each[before], 2 * each[before], 2 * each[before] + each[after], 2 * each[before] + 2 * each[after]]
    assert [snapshot.step for snapshot in TracInRun.open(tmp_path / "run").snapshots] == ends
    assert [s.visits for s in TracInRun.open(tmp_path / "run").snapshots] == pytest.approx([1] * 4, abs=0.01)


def test_an_earlier_checkpoint_than_the_last_snapshot(tmp_path: Path) -> None:
    fit(tmp_path, 3, when="fit_end")
    fit(tmp_path, 4, at(tmp_path, 5), when="fit_end")
    assert steps(tmp_path / "run") == WHOLE
    assert TracInRun.open(tmp_path / "run").influence().shape == (30, 12)


@pytest.mark.parametrize("keep", [(True, True, True), (False, False, False), (False, True, True), (True, False, True)])
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
