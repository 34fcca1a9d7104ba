"""Every way in which Lightning resumes a fit: what the run continues, begins anew or refuses. The rows of docs/resuming.md."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_tracin import TracInCallback, TracInError, TracInRun
from lightning_tracin.cli.main import main
from tests.support.fits import Classifier, loaders, trainer
from tests.support.resumed import WHOLE, Counting, at, fit, steps


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


@pytest.mark.long
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


@pytest.mark.results
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
    "preconditioner": None,  # the fit has Adam
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


@pytest.mark.long
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_another_number_of_devices_continues_the_run(tmp_path: Path, before: int, after: int) -> None:
    for devices, epochs, path in ((before, 2, None), (after, 4, lambda: at(tmp_path, 3 * 2 if before == 2 else 10))):
        several = {"devices": devices, "strategy": "ddp_fork"} if devices > 1 else {}
        fit(tmp_path, epochs, path() if path else None, settings=several)
    each = {1: 5, 2: 3}  # steps of an epoch: of 30 or 15 samples in batches of 7
    ends = [each[before], 2 * each[before], 2 * each[before] + each[after], 2 * each[before] + 2 * each[after]]
    assert [snapshot.step for snapshot in TracInRun.open(tmp_path / "run").snapshots] == ends
    assert [s.visits for s in TracInRun.open(tmp_path / "run").snapshots] == pytest.approx([1] * 4, abs=0.01)
