"""Checkpoints of real fits that are not one fit are refused by the reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BaseFinetuning, GradientAccumulationScheduler, ModelCheckpoint, StochasticWeightAveraging
from safetensors.torch import save_file

from lightning_tracin import TracInCallback, TracInError, TracInRun, attribute, import_checkpoints
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


class Plain(Classifier):
    """One group of the parameters that are not frozen, at a constant rate."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([one for one in self.parameters() if one.requires_grad], 1e-2)


class Stepwise(Plain):
    """With a scheduler, which `StochasticWeightAveraging` replaces."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


class Scheduled(pl.Callback):
    """Changes an option of the optimizer's groups at every epoch."""

    def __init__(self, name: str, *values: Any) -> None:
        self.name, self.values = name, values

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.optimizers[0].param_groups[0][self.name] = self.values[trainer.current_epoch]


class Forgetful(pl.Callback):
    """Begins the optimizer's moments anew at every epoch."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.optimizers[0].state.clear()


class Tuned(pl.Callback):
    """Changes a hyperparameter at every epoch."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.save_hyperparameters({"dropout": 0.1 * trainer.current_epoch})


class Unfreezing(BaseFinetuning):
    """Trains the head alone, and everything from the second epoch on."""

    def freeze_before_training(self, pl_module: pl.LightningModule) -> None:
        self.freeze(pl_module.model.roberta)

    def finetune_function(self, pl_module: pl.LightningModule, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.model.roberta, optimizer, lr=1e-3)


def saved(folder: Path, module: pl.LightningModule, *callbacks: pl.Callback, epochs: int = 3) -> Path:
    """A fit's checkpoints, one an epoch."""
    saver = ModelCheckpoint(folder / "c", filename="{step}", save_top_k=-1)
    fit = trainer(folder, [*callbacks, saver], enable_checkpointing=True, max_epochs=epochs)
    pl.seed_everything(3)
    fit.fit(module, *loaders())
    return folder / "c"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("module", [Plain, Stepwise, Classifier])
@pytest.mark.parametrize("start", [1, 2])
def test_averaging_that_begins_is_no_other_fit(tmp_path: Path, module: type[Classifier], start: int) -> None:
    rate = 1e-3 if module is not Classifier else [1e-3, 1e-4]
    made = saved(tmp_path, module(), StochasticWeightAveraging(rate, start, annealing_epochs=2), epochs=4)
    run = import_checkpoints(tmp_path / "run", made, module(), *loaders(), top_k=5)
    assert [one.step for one in run.snapshots] == [5, 10, 15, 20]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_schedule_of_the_second_decay_is_no_other_fit(tmp_path: Path) -> None:
    made = saved(tmp_path, Plain(), Scheduled("betas", (0.9, 0.999), (0.9, 0.5), (0.9, 0.3)))
    assert len(import_checkpoints(tmp_path / "run", made, Plain(), *loaders(), top_k=5).snapshots) == 3


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("callback", "name"),
    [
        (Scheduled("weight_decay", 0.1, 0.01, 0.0), "weight_decay"),
        (Scheduled("eps", 1e-8, 1e-7, 1e-6), "eps"),
        (Tuned(), "dropout"),
        (Forgetful(), "exp_avg_sq"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_fit_changed_itself_can_be_named(tmp_path: Path, callback: pl.Callback, name: str) -> None:
    made = saved(tmp_path, Plain(), callback)
    with pytest.raises(TracInError, match=rf"give the checkpoints of one fit, or, if .* add `changed=\['{name}'\]`\.$"):
        import_checkpoints(tmp_path / "run", made, Plain(), *loaders(), top_k=5)
    run = import_checkpoints(tmp_path / "run", made, Plain(), *loaders(), top_k=5, changed=[name])
    assert [(one.step, one.learning_rates) for one in run.snapshots] == [(step, (1e-2,)) for step in (5, 10, 15)]
    assert TracInRun.open(run.path).record.cautions == (
        f"Its checkpoints were taken for those of one fit without a look at {name}.",
    )


def test_what_was_changed_is_a_list(tmp_path: Path, one: Path) -> None:
    with pytest.raises(TracInError, match="changed should be a list of names, but is the string 'weight_decay'"):
        import_checkpoints(tmp_path / "run", one, Classifier(), *loaders(), top_k=5, changed="weight_decay")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_two_fits_are_refused_whatever_may_have_changed(tmp_path: Path) -> None:
    for seed in (1, 2):
        fit(tmp_path / "c", seed)
    with pytest.raises(TracInError, match="with other weights"):
        import_checkpoints(tmp_path / "run", tmp_path / "c", Classifier(), *loaders(), top_k=5, changed=["exp_avg_sq", "step"])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_groups_that_the_fit_added_are_imported_as_two_runs(tmp_path: Path) -> None:
    live = TracInCallback(tmp_path / "live", top_k=5, preconditioner=None)
    made = saved(tmp_path, Plain(), live, Unfreezing())
    frozen, whole = Plain(), Plain()
    frozen.model.roberta.requires_grad_(False)
    head, body = list(whole.model.classifier.parameters()), list(whole.model.roberta.parameters())
    with pytest.raises(TracInError, match=r"groups change from \(4,\) to \(4, 37\) .* as two runs, each with its `optimizers=\["):
        import_checkpoints(tmp_path / "run", made, frozen, *loaders(), top_k=5)
    first = import_checkpoints(tmp_path / "first", made / "step=5.ckpt", frozen, *loaders(), top_k=5)
    optimizer = torch.optim.AdamW([{"params": head}, {"params": body}])
    files = [made / f"step={step}.ckpt" for step in (10, 15)]
    second = import_checkpoints(tmp_path / "second", files, whole, *loaders(), top_k=5, optimizers=[optimizer])
    expected = TracInRun.open(tmp_path / "live").snapshots
    for found, other in zip([*first.snapshots, *second.snapshots], expected, strict=True):
        assert found.record.groups == other.record.groups
        assert found.learning_rates == pytest.approx(other.learning_rates)
    done = attribute(whole, second, *loaders(), progress=False)
    scores = TracInRun.open(tmp_path / "live").influence("dot", "uniform", [2])
    np.testing.assert_allclose(done.influence("dot", "uniform", [1]), scores, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_group_without_all_parameters_is_not_taken_for_all(tmp_path: Path) -> None:
    module = Plain()
    module.model.roberta.requires_grad_(False)
    made = saved(tmp_path, module)
    with pytest.raises(TracInError, match="saved with groups of 4 parameters, but the optimizers have 41"):
        import_checkpoints(tmp_path / "run", made, Plain(), *loaders(), top_k=5)
    other = Plain()
    optimizer = torch.optim.AdamW(other.model.classifier.parameters())
    run = import_checkpoints(tmp_path / "run", made, other, *loaders(), top_k=5, optimizers=[optimizer])
    assert run.snapshots[0].learning_rates == (1e-2, 0.0)  # nothing trained the others


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    live = TracInCallback(tmp_path / "live", top_k=5, preconditioner=None)
    made = saved(tmp_path, Plain(), live, GradientAccumulationScheduler({0: 1, 1: 2, 2: 3}))
    run = import_checkpoints(tmp_path / "run", made, Plain(), *loaders(), top_k=5)
    expected = TracInRun.open(tmp_path / "live").snapshots
    facts = [[(one.step, one.steps, one.learning_rates) for one in each] for each in (run.snapshots, expected)]
    assert facts[0] == facts[1]
    assert [one.step for one in expected] == [5, 8, 10]
    assert [one.visits for one in run.snapshots] == pytest.approx([one.visits for one in expected])
    assert run.record.estimated_rates is None


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_weights_that_the_module_would_round_are_refused(tmp_path: Path) -> None:
    made = saved(tmp_path, Plain(), epochs=1)
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(TracInError, match=rf"in torch\.float32, which {dtype} of Plain would round; convert the module"):
            import_checkpoints(tmp_path / "run", made, Plain().to(dtype), *loaders(), top_k=5)
    run = import_checkpoints(tmp_path / "run", made, Plain().double(), *loaders(), top_k=5)
    stored, read = run.snapshots[0].state_dict(), torch.load(made / "step=5.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(stored[name], read[name].double()) for name in read)


def test_logs_that_do_not_continue_are_named(tmp_path: Path) -> None:
    for step, loss in ((5, 1.0), (10, 2.0)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"w": torch.zeros(2)}, folder / "model.safetensors")
        lines = [{"step": at, "loss": loss, "learning_rate": 0.1} for at in range(5, step + 1, 5)]
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "epoch": step / 5, "log_history": lines}))
    with pytest.raises(TracInError, match="the log of checkpoint-10 does not continue the log of checkpoint-5"):
        require_one_fit(read_checkpoint(tmp_path / "checkpoint-5", 5), read_checkpoint(tmp_path / "checkpoint-10", 5))
