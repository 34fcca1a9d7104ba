"""What the callback makes of fits that are not plain ones: the rows of docs/fits.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from pytorch_lightning.plugins.precision import MixedPrecision
from pytorch_lightning.tuner import Tuner
from torch import Tensor

from lightning_tracin import TracInCallback, TracInRun
from tests.support.fits import Classifier, Samples, loaders, trainer
from tests.support.models import padded
from tests.support.oracles import gradient_loop, ingredients_loop


class Keeping(pl.Callback):
    """Keeps the trained weights as they are after every step."""

    def __init__(self) -> None:
        self.after: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.after.append({name: tensor.detach().clone() for name, tensor in pl_module.named_parameters()})


def fit(folder: Path, module: pl.LightningModule | None = None, before: Sequence[Any] = (), **settings: Any) -> TracInRun:
    pl.seed_everything(3)
    options = {"max_epochs": 2, **settings}
    trainer(folder, [*before, TracInCallback(folder / "run", top_k=5, preconditioner=None)], **options).fit(
        module or Classifier(), *loaders()
    )
    return TracInRun.open(folder / "run")


def steps(run: TracInRun) -> list[tuple[int, int, int]]:
    return [(snapshot.epoch, snapshot.step, snapshot.steps) for snapshot in run.snapshots]


def reference(run: TracInRun, index: int) -> np.ndarray:
    """Inner products at a snapshot by a loop over single samples, in single precision: [train, probes]."""
    module = Classifier().eval()
    weights = run.snapshots[index].state_dict()
    for name, parameter in module.named_parameters():
        parameter.data.copy_(weights[name])
    names = list(run.snapshots[index].record.groups)

    def loss(sample: dict[str, Any]) -> Tensor:
        return module.model(**padded([sample])).loss

    train, probes = (gradient_loop(module, loss, Samples(count, seed).samples, names) for count, seed in ((30, 1), (12, 2)))
    return ingredients_loop(train, probes, dict.fromkeys(names, 0), 1)[0][0].numpy()


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({"precision": "bf16-mixed"}, torch.float32),
        ({"precision": "bf16-true"}, torch.bfloat16),
        ({"gradient_clip_val": 1e-3}, torch.float32),
    ],
)
def test_influence_is_of_the_snapshot_in_single_precision_and_unclipped(
    tmp_path: Path, settings: dict[str, Any], dtype: torch.dtype
) -> None:
    run = fit(tmp_path, **settings)
    assert steps(run) == [(1, 5, 5), (2, 10, 5)]
    for index in range(2):
        assert {tensor.dtype for name, tensor in run.snapshots[index].state_dict().items() if "weight" in name} == {dtype}
        want = reference(run, index)
        np.testing.assert_allclose(run.influence("dot", snapshots=[index]), want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def test_steps_that_a_scaler_of_gradients_skips_count_no_learning_rate(tmp_path: Path) -> None:
    """As under 16-mixed, where the scale begins too high: here on the CPU, so in bfloat16 but with the scaler."""

    class Watched(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.used: list[list[float]] = []

        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()["optimizer"]
            optimizer.register_step_pre_hook(lambda one, *_: self.used.append([float(group["lr"]) for group in one.param_groups]))
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

        def on_after_backward(self) -> None:
            if self.trainer.fit_loop.epoch_loop.batch_idx in (1, 2):
                next(self.parameters()).grad.fill_(float("inf"))

    module, scaler = Watched(), torch.amp.GradScaler("cpu", init_scale=4.0)
    precision = MixedPrecision("bf16-mixed", "cpu")
    precision.scaler = scaler
    run = fit(tmp_path, module, plugins=[precision], max_epochs=2)
    assert len(module.used) == 6  # of ten batches
    assert steps(run) == [(1, 3, 3), (2, 6, 3)]
    for index, snapshot in enumerate(run.snapshots):
        np.testing.assert_allclose(snapshot.learning_rates, np.mean(module.used[3 * index : 3 * index + 3], axis=0))
        np.testing.assert_allclose(snapshot.record.last_learning_rates, module.used[3 * index + 2])


class OwnAverage(pl.Callback):
    """A user's average, put in the place of the trained weights when an epoch and when the fit ends."""

    def __init__(self, each_epoch: bool = False) -> None:
        self.each_epoch = each_epoch
        self.average: dict[str, Tensor] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        for name, tensor in pl_module.state_dict().items():
            before = self.average.get(name, tensor)
            self.average[name] = before.lerp(tensor, 0.1) if tensor.is_floating_point() else tensor.clone()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.each_epoch:
            pl_module.load_state_dict(self.average)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.load_state_dict(self.average)


@pytest.mark.parametrize(
    "averaging",
    [
        WeightAveraging,
        lambda: StochasticWeightAveraging(1e-3, swa_epoch_start=1),
        OwnAverage,
        lambda: OwnAverage(each_epoch=True),
    ],
    ids=["Lightning's", "stochastic", "a user's", "a user's, each epoch"],
)
@pytest.mark.parametrize("last", [True, False], ids=["behind", "before"])
@pytest.mark.filterwarnings("ignore:Swapping scheduler")
def test_snapshots_hold_the_trained_weights_not_their_average(tmp_path: Path, averaging: Any, last: bool) -> None:
    pl.seed_everything(3)
    keeping, average = Keeping(), averaging()
    watcher = TracInCallback(tmp_path / "run", top_k=5, every_n_epochs=2)
    callbacks = [keeping, watcher, average] if last else [keeping, average, watcher]
    module = Classifier()
    trainer(tmp_path, callbacks, max_epochs=3).fit(module, *loaders())
    run = TracInRun.open(tmp_path / "run")
    assert [snapshot.step for snapshot in run.snapshots] == [10, 15]
    assert run.record.averaging == (None if isinstance(average, OwnAverage) else type(average).__name__)
    for snapshot in run.snapshots:
        want, held = keeping.after[snapshot.step - 1], snapshot.state_dict()
        assert all(torch.equal(tensor, held[name]) for name, tensor in want.items())
    assert not torch.equal(module.model.classifier.out_proj.weight, keeping.after[-1]["model.classifier.out_proj.weight"])


def test_overfitting_some_batches_sees_their_samples_only(tmp_path: Path) -> None:
    run = fit(tmp_path, overfit_batches=2)
    assert steps(run) == [(1, 2, 2), (2, 4, 2)]
    assert [snapshot.visits for snapshot in run.snapshots] == pytest.approx([14 / 30] * 2)
    assert run.influence().shape == (30, 12)


def test_fit_that_ends_within_an_epoch_has_a_snapshot_of_its_last_step(tmp_path: Path) -> None:
    keeping = Keeping()
    run = fit(tmp_path, before=[keeping], max_epochs=-1, max_steps=7)
    assert steps(run) == [(1, 5, 5), (2, 7, 2)]
    held = run.snapshots[1].state_dict()
    assert all(torch.equal(tensor, held[name]) for name, tensor in keeping.after[6].items())


@pytest.mark.parametrize("settings", [{"fast_dev_run": True}, {"barebones": True}])
def test_nothing_is_written_where_nothing_else_is(tmp_path: Path, settings: dict[str, Any]) -> None:
    pl.seed_everything(3)
    fitting = trainer(tmp_path, [TracInCallback(tmp_path / "run", top_k=5)], max_epochs=1, **settings)
    fitting.fit(Classifier(), *loaders())
    assert fitting.global_step > 0
    assert not (tmp_path / "run").exists()


class Tunable(Classifier):
    """Has what the Tuner changes, and gives its own loaders."""

    def __init__(self) -> None:
        super().__init__()
        self.lr, self.batch_size = 1e-3, 4

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.lr)

    def train_dataloader(self) -> Any:
        return loaders(batch_size=self.batch_size)[0]

    def val_dataloader(self) -> Any:
        return loaders()[1]


@pytest.mark.parametrize("tune", ["lr_find", "scale_batch_size"])
def test_fits_of_the_tuner_are_not_recorded(tmp_path: Path, tune: str) -> None:
    pl.seed_everything(3)
    module = Tunable()
    fitting = trainer(tmp_path, [TracInCallback(tmp_path / "run", top_k=5)], max_epochs=2)
    if tune == "lr_find":
        Tuner(fitting).lr_find(module, num_training=6)
    else:
        Tuner(fitting).scale_batch_size(module, max_trials=2, steps_per_trial=1)
    assert not (tmp_path / "run").exists()
    fitting.fit(module)
    run = TracInRun.open(tmp_path / "run")
    each = -(-30 // module.batch_size)
    assert steps(run) == [(1, each, each), (2, 2 * each, each)]
    assert run.snapshots[0].learning_rates == pytest.approx((module.lr,))


class Failing(Classifier):
    """Ends its second epoch with an error, once."""

    error: type[BaseException] | None = None

    def on_train_epoch_end(self) -> None:
        if self.trainer.current_epoch == 1 and self.error is not None:
            raise self.error


@pytest.mark.parametrize(("error", "seen"), [(ZeroDivisionError, ZeroDivisionError), (KeyboardInterrupt, SystemExit)])
def test_interrupted_fit_keeps_its_snapshots_and_can_be_resumed(
    tmp_path: Path, error: type[BaseException], seen: type[BaseException]
) -> None:
    saver = ModelCheckpoint(tmp_path / "checkpoints", filename="{epoch}", save_top_k=-1)
    settings = {"before": [saver], "enable_checkpointing": True}
    module = Failing()
    module.error = error
    with pytest.raises(seen):
        fit(tmp_path, module, **settings)
    assert steps(TracInRun.open(tmp_path / "run"))[0] == (1, 5, 5)
    resuming = trainer(tmp_path, [TracInCallback(tmp_path / "run", top_k=5, preconditioner=None)], max_epochs=3)
    resuming.fit(Failing(), *loaders(), ckpt_path=tmp_path / "checkpoints" / "epoch=0.ckpt")
    run = TracInRun.open(tmp_path / "run")
    assert steps(run) == [(1, 5, 5), (2, 10, 5), (3, 15, 5)]
    assert run.influence().shape == (30, 12)


@pytest.mark.results
def test_fit_that_is_resumed_from_its_end_says_that_nothing_was_done(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path / "checkpoints", filename="{epoch}", save_top_k=-1)
    fit(tmp_path, before=[saver], enable_checkpointing=True)
    before = (tmp_path / "run" / "results" / "top.csv").stat().st_mtime_ns
    again = trainer(tmp_path, [TracInCallback(tmp_path / "run", top_k=5)], max_epochs=2)
    with pytest.warns(UserWarning, match=r"The fit made no step, .* resume with a `ckpt_path` from before the last step"):
        again.fit(Classifier(), *loaders(), ckpt_path=tmp_path / "checkpoints" / "epoch=1.ckpt")
    assert (tmp_path / "run" / "results" / "top.csv").stat().st_mtime_ns == before
