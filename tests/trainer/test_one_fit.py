"""Checkpoints of real fits that are not one fit are refused by the reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import save_file

from lightning_tracin import TracInError, import_checkpoints
from lightning_tracin.trainer.checkpoints import read_checkpoint
from lightning_tracin.trainer.one_fit import require_one_fit, require_same_weights
from tests.support.fits import Classifier, loaders, trainer


def fit(folder: Path, seed: int, **moment: Any) -> None:
    module = Classifier()  # seeds on its own
    pl.seed_everything(seed)
    saver = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **moment)
    trainer(folder, [saver], enable_checkpointing=True, max_epochs=2).fit(module, *loaders())


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    fit(folder, 1)
    return folder


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_two_fits_in_one_folder_are_refused(tmp_path: Path) -> None:
    for seed in (1, 2):
        fit(tmp_path / "c", seed)
    assert (tmp_path / "c" / "step=5-v1.ckpt").exists()
    with pytest.raises(TracInError, match=r"step=\d+-v1\.ckpt and .* are both of step \d+, with other weights; give the"):
        import_checkpoints(tmp_path / "run", tmp_path / "c", Classifier(), *loaders(), top_k=5)
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_duplicate_saved_after_the_fit_changes_nothing(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path / "c", filename="{step}", save_top_k=-1)
    fit = trainer(tmp_path, [saver], enable_checkpointing=True, max_epochs=2)
    fit.fit(Classifier(), *loaders())
    fit.save_checkpoint(tmp_path / "c" / "after.ckpt")
    run = import_checkpoints(tmp_path / "run", tmp_path / "c", Classifier(), *loaders(), top_k=5)
    assert [(one.epoch, one.step, one.visits) for one in run.snapshots] == [(1, 5, 1), (2, 10, 1)]
    assert run.record.estimated_rates is None


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_two_fits_without_a_common_step_are_refused(tmp_path: Path, one: Path) -> None:
    fit(tmp_path / "other", 2, every_n_train_steps=8)
    given = [one / "step=5.ckpt", tmp_path / "other" / "step=8.ckpt"]
    with pytest.raises(TracInError, match="are not of one unchanged fit: the optimizer's 'exp_avg_sq' falls faster"):
        import_checkpoints(tmp_path / "run", given, Classifier(), *loaders(), top_k=5)


def test_one_fit_is_not_refused(one: Path) -> None:
    require_one_fit(read_checkpoint(one / "step=5.ckpt", 5), read_checkpoint(one / "step=10.ckpt", 5))
    require_same_weights(read_checkpoint(one / "step=5.ckpt", 5), read_checkpoint(one / "step=5.ckpt", 5))


@pytest.mark.parametrize(("dirpath", "refused"), [("/a", True), ("/b", False)])
def test_a_best_score_that_gets_worse_is_named(one: Path, dirpath: str, refused: bool) -> None:
    before, after = (read_checkpoint(one / f"step={step}.ckpt", 5) for step in (5, 10))
    key = "ModelCheckpoint{'monitor': 'val_loss', 'mode': 'min'}"
    earlier = replace(before, callbacks={key: {"dirpath": "/a", "best_model_score": torch.tensor(0.5)}})
    later = replace(after, callbacks={key: {"dirpath": dirpath, "best_model_score": torch.tensor(0.7)}})
    if not refused:
        require_one_fit(earlier, later)
        return
    with pytest.raises(TracInError, match=r"best score of ModelCheckpoint gets worse, from 0\.5 to 0\.7"):
        require_one_fit(earlier, later)


def edited(saved: dict[str, Any], what: str) -> None:
    group = saved["optimizer_states"][0]["param_groups"]
    if what == "epoch":
        saved["epoch"] = 0
    elif what == "hyperparameter":
        saved["hyper_parameters"] = {"width": 3}
    elif what == "groups":
        group[0]["params"] = group[0]["params"][:-1]
    elif what == "weight_decay":
        group[1]["weight_decay"] = 0.5
    elif what == "base_lrs":
        saved["lr_schedulers"][0]["base_lrs"] = [0.5, 0.5]
    elif what == "precision":
        saved["state_dict"] = {name: one.double() for name, one in saved["state_dict"].items()}
    elif what == "steps":
        for values in saved["optimizer_states"][0]["state"].values():
            values["step"] = torch.tensor(2.0)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("epoch", "passes over the train samples"),
        ("hyperparameter", "hyperparameter 'width' changes from None to 3"),
        ("groups", "the optimizer groups change from"),
        ("weight_decay", r"'weight_decay' of optimizer group 1 changes from 0\.01 to 0\.5"),
        ("base_lrs", "'base_lrs' of the scheduler changes"),
        ("precision", r"changes from torch\.float32 .* to torch\.float64"),
        ("steps", "the optimizer has made 5 and then 2 steps"),
    ],
)
def test_what_changes_is_named(tmp_path: Path, one: Path, what: str, message: str) -> None:
    saved = torch.load(one / "step=10.ckpt", weights_only=True)
    edited(saved, what)
    torch.save(saved, tmp_path / "later.ckpt")
    with pytest.raises(TracInError, match=message):
        require_one_fit(read_checkpoint(one / "step=5.ckpt", 5), read_checkpoint(tmp_path / "later.ckpt", 5))


def test_logs_that_do_not_continue_are_named(tmp_path: Path) -> None:
    for step, loss in ((5, 1.0), (10, 2.0)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"w": torch.zeros(2)}, folder / "model.safetensors")
        lines = [{"step": at, "loss": loss, "learning_rate": 0.1} for at in range(5, step + 1, 5)]
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "epoch": step / 5, "log_history": lines}))
    with pytest.raises(TracInError, match="the log of checkpoint-10 does not continue the log of checkpoint-5"):
        require_one_fit(read_checkpoint(tmp_path / "checkpoint-5", 5), read_checkpoint(tmp_path / "checkpoint-10", 5))
